"""What the flower report says of its classes, augmentation, settings and net. Chapter 8."""

from typing import Any

from torch import nn

from repro.claims.checks.nets import _given, _net, _table
from repro.claims.checks.registry import check


@check
def named_in_imagenet(words: list[str]) -> int:
    """How many of these words name one of the 1,000 classes of the ImageNet challenge, or are part of its name."""
    from torchvision.models import AlexNet_Weights

    classes = {name.lower() for name in AlexNet_Weights.IMAGENET1K_V1.meta["categories"]}
    return sum(any(word in name.split() for name in classes) for word in words)


@check
def augmentation(recipe: str) -> list[str]:
    """What a recipe does to its training pictures, in alphabetical order."""
    from repro.training import load_recipe

    return sorted(load_recipe(recipe).augmentation.model_dump(exclude_defaults=True))


@check
def settings(recipe: str, fields: list[str]) -> list[float]:
    """Numbers of a recipe, by the names of their fields, as `optimizer.momentum`."""
    from repro.training import load_recipe

    found = []
    for name in fields:
        value: Any = load_recipe(recipe)
        for part in name.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


@check
def differing_layers(model: str, other: str, **options: Any) -> int:
    """How many of the layers with weights differ in their parameters or in the shape of what they give."""
    both = [_table(name, _given(options)).layers_with_weights() for name in (model, other)]
    pairs = zip(*both, strict=True)
    return sum((a.parameters, a.output_shape) != (b.parameters, b.output_shape) for a, b in pairs)


@check
def strides(model: str, layers: list[str], **options: Any) -> list[int]:
    """The stride of each of these layers."""
    net: Any = _net(model, _given(options))
    return [net.get_submodule(name).stride[0] for name in layers]


@check
def pools(model: str, **options: Any) -> list[str]:
    """The windows of a net's max-pooling layers, as `3×3, stride 2`."""
    found = [m for m in _net(model, _given(options)).modules() if isinstance(m, nn.MaxPool2d)]
    return [f"{m.kernel_size}×{m.kernel_size}, stride {m.stride}" for m in found]


@check
def dropout_probabilities(model: str, **options: Any) -> list[float]:
    """The probability with which each dropout layer of a net drops a unit."""
    modules: list[Any] = [m for m in _net(model, _given(options)).modules() if "Dropout" in type(m).__name__]
    return [m.p for m in modules]
