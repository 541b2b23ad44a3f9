"""The other side: the pipeline that the usual tutorial teaches, at its best and not made worse.

Pictures are PIL images, transformed one at a time by `torchvision.transforms` and gathered by a shuffling `DataLoader`;
the net is trained in float32 with plain SGD. The two data sets are torchvision's own classes with their own
`__getitem__`; only reading from disk is left out, because the pictures are already in memory on both sides.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from repro.data import ImageSet
from repro.models import get_model
from repro.training import Recipe

WORKERS = (0, 2)  # both are timed; the faster one is the baseline


class _Grey(datasets.MNIST):
    """torchvision's MNIST over pictures in memory."""

    def __init__(self, images: ImageSet, transform: Callable[[Any], Tensor]) -> None:
        self.data, self.targets = images.images[..., 0], images.labels
        self.transform, self.target_transform = transform, None


class Colour(datasets.CIFAR10):
    """torchvision's CIFAR10 over pictures in memory."""

    def __init__(self, images: ImageSet, transform: Callable[[Any], Tensor]) -> None:
        self.data, self.targets = images.images.numpy(), images.labels.tolist()
        self.transform, self.target_transform = transform, None


def dataset(images: ImageSet, recipe: Recipe) -> Dataset[tuple[Tensor, int]]:
    """The pictures with the recipe's augmentation, `ToTensor` and `Normalize` as a chain of transforms."""
    channels, height, width = images.input_size
    steps: list[Callable[[Any], Any]] = []
    if recipe.augmentation.crop_padding:
        steps.append(transforms.RandomCrop((height, width), padding=recipe.augmentation.crop_padding))
    if recipe.augmentation.flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(images.mean, images.std)]
    kind = _Grey if channels == 1 else Colour
    return kind(images, transforms.Compose(steps))


def loader(samples: Dataset[tuple[Tensor, int]], batch_size: int, workers: int) -> DataLoader[Any]:
    """A shuffling loader; with workers, they start and end with each pass, as by default."""
    return DataLoader(samples, batch_size=batch_size, shuffle=True, num_workers=workers)


class TutorialTrainer:
    """Net, loss, optimizer and the five lines of every tutorial's loop."""

    def __init__(self, recipe: Recipe) -> None:
        self.model = get_model(recipe.model, **recipe.model_options)
        self.criterion = nn.CrossEntropyLoss()
        spec = recipe.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
        self.running_loss = 0.0

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for images, labels in batches:
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.running_loss += loss.item()
