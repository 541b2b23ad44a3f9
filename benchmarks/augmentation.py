"""Augmented batches of 128, no net: whole batches against torchvision's transforms, one picture at a time.

CIFAR-10 with padding, crop and flip; the flower photographs as AlexNet's section 4.1 has it, with crops of 224 out of
256 and flips, and once more with colour noise.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import transforms
from torchvision.transforms import functional as TF

from benchmarks.harness import OURS, Comparison, Side, alternate, require_close
from benchmarks.training import AS_GLIBC_DOES
from benchmarks.tutorial import WORKERS, Colour, loader
from repro.data import ImageSet, load
from repro.data.augmentation import Augmentation, Batches
from repro.data.color import ColorPCA
from repro.data.random import permutation
from repro.training.device import keep_freed_memory

SIZE = 128  # of a batch
CIFAR_GOAL, CROP_GOAL = 12.0, 5.0
CHECKED = 16  # pictures that are held against torchvision's
FLOWERS_SIDE = 256
CIFAR = Augmentation(crop_padding=4, flip=True)
ALEXNET = Augmentation(crop=224, flip=True)
NOISY = Augmentation(crop=224, flip=True, color_noise=0.1)


class ColorNoise:
    """The paper's noise on one picture (C, H, W), as a transform that draws from torch's own generator."""

    def __init__(self, pca: ColorPCA, sigma: float) -> None:
        self.directions, self.sigma = (pca.vectors * pca.eigenvalues).float(), sigma

    def __call__(self, picture: Tensor) -> Tensor:
        return picture + (self.directions @ (self.sigma * torch.randn(3)))[:, None, None]


def compare(rounds: int) -> list[Comparison]:
    """Seconds per batch."""
    small = load("cifar10", fallback="shapes")
    large = load("flowers", size=FLOWERS_SIDE, fallback="shapes")
    return [
        _compare("CIFAR batch, augmented", small, CIFAR, 60, CIFAR_GOAL if small.name == "cifar10" else None, rounds),
        *(
            _compare(subject, large, augmentation, 6, CROP_GOAL if large.name == "flowers" else None, rounds)
            for subject, augmentation in (("batch of 224 crops", ALEXNET), ("224 crops, colour noise", NOISY))
        ),
    ]


def _compare(
    subject: str, images: ImageSet, augmentation: Augmentation, batches: int, goal: float | None, rounds: int
) -> Comparison:
    pca = ColorPCA.of(images) if augmentation.color_noise else None
    whole = Batches(images, images.mean, images.std, augmentation=augmentation, pca=pca)
    samples = pipeline(images, augmentation, pca)
    note = require_torchvision_pixels(images, whole)
    sides = {OURS: _ours(whole, batches)}
    sides |= {f"torchvision, {n} workers": _theirs(samples, batches, n) for n in WORKERS}
    return Comparison(subject, f"{images.name}, {len(images):,}", alternate(subject, sides, rounds), goal, notes=[note])


def pipeline(images: ImageSet, augmentation: Augmentation, pca: ColorPCA | None) -> Dataset[tuple[Tensor, int]]:
    """The pictures with the same augmentation as a chain of transforms."""
    size = (augmentation.crop, augmentation.crop) if augmentation.crop else images.input_size[1:]
    steps: list[Callable[[Any], Any]] = [transforms.RandomCrop(size, padding=augmentation.crop_padding or None)]
    if augmentation.flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.ToTensor())
    if pca is not None:
        steps.append(ColorNoise(pca, augmentation.color_noise))
    steps.append(transforms.Normalize(images.mean, images.std))
    return Colour(images, transforms.Compose(steps))


def _ours(whole: Batches, batches: int) -> Side:
    def side() -> float:
        keep_freed_memory()  # as in training
        order = permutation(len(whole))[: batches * SIZE]
        start = time.perf_counter()
        for indices in order.split(SIZE):
            whole.augmented(indices, seed=0, epoch=0)
        return (time.perf_counter() - start) / batches

    return side


def _theirs(samples: Dataset[tuple[Tensor, int]], batches: int, workers: int) -> Side:
    def side() -> float:
        keep_freed_memory(*AS_GLIBC_DOES)
        order = torch.randperm(len(samples))[: (batches + 1) * SIZE].tolist()  # type: ignore[arg-type]
        loaded = iter(loader(Subset(samples, order), SIZE, workers))
        next(loaded)  # starting the workers belongs to the epoch
        start = time.perf_counter()
        count = sum(1 for _ in loaded)
        return (time.perf_counter() - start) / count

    return side


def require_torchvision_pixels(images: ImageSet, batches: Batches) -> str:
    """Raise AssertionError unless each augmented picture is what torchvision makes of it with the same draws."""
    indices = torch.arange(CHECKED)
    ours, _ = batches.augmented(indices, seed=0, epoch=0)
    drawn = batches.draw(indices, seed=0, epoch=0)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    height, width = ours.shape[2:]
    theirs = []
    for i in range(CHECKED):
        padded = TF.pad(TF.to_pil_image(images.images[i].permute(2, 0, 1)), [batches.augmentation.crop_padding])
        cut = TF.crop(padded, int(drawn.top[i]), int(drawn.left[i]), height, width)
        picture = TF.to_tensor(TF.hflip(cut) if drawn.mirrored[i] else cut)
        if drawn.color is not None:
            picture = picture + drawn.color[i, :, None, None]
        theirs.append(TF.normalize(picture, images.mean, images.std))
    return require_close("pixels", ours, torch.stack(theirs), tolerance=1e-6)
