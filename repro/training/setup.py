"""What a recipe names, made concrete: its pictures, its net, and the precision they meet in."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from repro.data import ImageSet
from repro.data.augmentation import Augmentation, Batches
from repro.data.color import ColorPCA
from repro.data.images import mean_image
from repro.data.shards import ShardSet, open_set
from repro.errors import RecipeError, ReproError
from repro.models import get_model
from repro.models.summary import layer_table
from repro.refusals import refusal
from repro.training.device import channels_last, choose_precision
from repro.training.recipe import Recipe


class Pictures(NamedTuple):
    """Both splits and their batches; whatever is computed from pictures is computed from the training split."""

    train_set: ImageSet | ShardSet
    test_set: ImageSet | ShardSet
    train_batches: Batches
    test_batches: Batches
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_pictures(recipe: Recipe, device: torch.device, workers: int | None = None) -> Pictures:
    """The data of a recipe, on `device`; `workers` threads decode what is not in memory, as many as cores if not given.

    Raises RecipeError where `data.limit` is asked of a set on disk, or an order by shards of one in memory.
    """
    data = recipe.data
    train = open_set(data.name, data.train, size=data.size, fit=data.fit, on_damage=data.on_damage)
    test = open_set(data.name, data.test, size=data.size, fit=data.fit, on_damage=data.on_damage)
    if data.order == "shards" and not isinstance(train, ShardSet):
        raise RecipeError(f"{recipe.name}: data.order = 'shards' needs prepared shards, and {data.name} has none")
    if data.limit:
        if isinstance(train, ShardSet):
            raise RecipeError(f"{recipe.name}: data.limit cuts sets in memory; prepare a smaller {data.name} instead")
        train = train.subset(torch.arange(min(data.limit, len(train))))
    mean, std = tuple(data.mean or train.mean), tuple(data.std or train.std)
    augmentation = Augmentation(**recipe.augmentation.model_dump())
    image = None if data.mean_image == "none" else _mean_image(train)
    pca = _colors(train) if augmentation.color_noise else None

    def batches(images: ImageSet | ShardSet, augmentation: Augmentation) -> Batches:
        return Batches(
            images,
            mean,
            std,
            device,
            augmentation,
            data.border,
            mean_image=image,
            mean_image_cut="centre" if data.mean_image == "none" else data.mean_image,
            pca=pca,
            workers=workers,
        )

    plain = Augmentation(crop=augmentation.crop)
    return Pictures(train, test, batches(train, augmentation), batches(test, plain), mean, std)


def _mean_image(train: ImageSet | ShardSet) -> Tensor:
    image = train.mean_image if isinstance(train, ShardSet) else mean_image(train)
    if image is None:
        raise RecipeError(f"{train}: pictures of several shapes have no mean image; set data.mean_image = 'none'")
    return image


def _colors(train: ImageSet | ShardSet) -> ColorPCA:
    return train.pca if isinstance(train, ShardSet) else ColorPCA.of(train)


class Net(NamedTuple):
    """A net with fresh weights on its device, and what follows from its shapes."""

    model: nn.Module
    input_size: tuple[int, int, int]
    classes: int
    parameters: int
    precision: str


def build_net(recipe: Recipe, device: torch.device, pictures: Pictures) -> Net:
    """The net of a recipe; raises RecipeError when its outputs are not as many as the classes of the pictures."""
    try:
        model = get_model(recipe.model, **recipe.model_options)
    except ReproError:
        raise
    except (TypeError, ValueError, RuntimeError) as e:
        raise refusal(e) or RecipeError(f"{recipe.name}: model_options {recipe.model_options}: {e}") from e
    model = channels_last(model.to(device))
    _, channels, height, width = as_input(pictures.train_batches.plain(0, 1)[0], recipe.data.channels).shape
    rows = layer_table(model, (channels, height, width))
    outputs, classes = rows[-1].output_shape[0], len(pictures.train_set.classes)
    if outputs != classes:
        raise RecipeError(
            f"{recipe.name}: {recipe.model} has {outputs} outputs, but {pictures.train_set.name} has {classes} "
            "classes; set model_options.num_classes"
        )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    precision = choose_precision(recipe.precision, device, rows.multiply_adds)
    return Net(model, (channels, height, width), classes, parameters, precision)


def as_input(images: Tensor, channels: int | None) -> Tensor:
    """Pictures (B, C, H, W) as the net takes them: grey ones repeated to as many channels as the recipe says."""
    if channels is None or images.shape[1] == channels:
        return images
    return images.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)
