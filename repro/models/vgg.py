"""VGG: nets of 3×3 convolutions, from eleven layers with weights to nineteen.

Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1. A column
of the table is a line here, one builder makes every net, and `_bn` nets have batch normalisation between a convolution
and its ReLU.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from repro.models.alexnet import (
    CLASSIFIER,
    LRN_ALPHA,
    LRN_BETA,
    LRN_K,
    LRN_SIZE,
    DropoutKind,
    make_classifier,
)
from repro.models.layers import Dropout2012, check_input
from repro.models.normalization import LocalResponseNorm
from repro.models.registry import OptionError, register

# "3-64" is the paper's conv3-64, 64 kernels of 3×3; "|" is a max-pooling of 2×2; ReLU follows every convolution.
TABLE_1 = {
    "A": "3-64 | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "A-LRN": "3-64 LRN | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "B": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "C": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 1-256 | 3-512 3-512 1-512 | 3-512 3-512 1-512 |",
    "D": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 | 3-512 3-512 3-512 | 3-512 3-512 3-512 |",
    "E": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 3-256 | 3-512 3-512 3-512 3-512 | 3-512 3-512 3-512 3-512 |",
}
NAMES = {"vgg11": "A", "vgg11_lrn": "A-LRN", "vgg13": "B", "vgg16_1x1": "C", "vgg16": "D", "vgg19": "E"}
INPUT = (3, 224, 224)
CIFAR10_INPUT = (3, 32, 32)
# Four blocks of the study's VGG-8, in the notation of table 1 (section 2.4 of the study).
STUDY_8 = "3-64 3-64 | 3-128 3-128 | 3-256 3-256 | 3-512 3-512 |"
POOL = 2
DROPOUT = 0.5  # section 3.1

# The paper prints a "variance" of 10⁻² (section 3.1). A deviation of 0.01 must be meant, as in AlexNet: with one of 0.1
# the logits of column A start at the order of 10⁸, for pixels of 0…255 less their mean.
VGG_STD = 0.01
FROM_A = 4  # section 3.1: convolutions of column A that the deeper columns start from

Init = Literal["he", "glorot", "pytorch", "vgg"]


class VGG(nn.Module):
    """`(N, C, H, W)` to logits `(N, num_classes)`: convolutions in `features`, linear layers in `classifier`.

    Any input but that of `input_size` raises `InputShapeError`.
    """

    def __init__(
        self, name: str, features: nn.Sequential, classifier: nn.Sequential, input_size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.name, self.input_size = name, input_size
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.input_size, self.name)
        return self.classifier(torch.flatten(self.features(x), 1))


def make_features(column: str, in_channels: int, batch_norm: bool = False) -> nn.Sequential:
    """The layers of a line of `TABLE_1`, numbered as torchvision numbers them; every convolution keeps the size."""
    layers: list[nn.Module] = []
    for entry in column.split():
        if entry == "|":
            layers.append(nn.MaxPool2d(POOL))
        elif entry == "LRN":  # section 2.1: the parameters are those of Krizhevsky et al. 2012
            layers.append(LocalResponseNorm(LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K))
        else:
            kernel_size, channels = map(int, entry.split("-"))
            layers.append(nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2))
            layers += [nn.BatchNorm2d(channels)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
    return nn.Sequential(*layers)


def make_dropout(kind: DropoutKind) -> nn.Module:
    """Dropout of either kind; with "none" a layer that does nothing, so that those after it keep their numbers."""
    if kind == "none":
        return nn.Identity()
    return Dropout2012(DROPOUT) if kind == "2012" else nn.Dropout(DROPOUT)


def init_weights(model: nn.Module, init: Init) -> None:
    """Draw the starting weights of all convolutions and linear layers anew, biases at zero, by the name of a rule.

    "vgg": all from N(0, 0.01²), as the paper starts column A, whose layers the deeper columns start from.
    "glorot": uniform up to √(6 / (fan-in + fan-out)), Glorot & Bengio 2010: the paper found afterwards that no
    pre-training is needed with it.
    "he": convolutions from N(0, 2 / fan-out), He et al. 2015, and linear layers from N(0, 0.01²), as in torchvision.
    "pytorch": what the layers draw when they are made, uniform up to 1 / √fan-in, biases too.
    """
    if init == "pytorch":
        return
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        nn.init.zeros_(layer.get_parameter("bias"))
        if init == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        elif init == "he" and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=VGG_STD)


def grow(small: VGG, large: VGG) -> dict[str, str]:
    """Start a deeper column from a trained A (section 3.1): copies its first four convolutions and its linear layers.

    Returns the layers copied, those of `large` by name with those of `small`. Counted through, the second convolution
    of A (64 to 128 maps) fits no deeper column's second (64 to 64); so we read "the first four" by their place: a
    convolution goes to the same place of the same block. All else in `large`, batch normalisation included, stays.
    Raises OptionError, with nothing copied, where a layer has no counterpart of its shape.
    """
    places, sources = _places(large), _places(small)
    copied: dict[str, str] = {}
    for place in [*sources][:FROM_A] + [place for place in sources if place[0] == "classifier"]:
        source, target = sources[place], places.get(place)
        if target is None or _weight(large, target).shape != _weight(small, source).shape:
            raise OptionError(f"{large.name} has no layer of the shape of {small.name}'s {source} in its place")
        copied[target] = source
    for target, source in copied.items():
        large.get_submodule(target).load_state_dict(small.get_submodule(source).state_dict())
    return copied


def _weight(model: VGG, layer: str) -> nn.Parameter:
    return model.get_submodule(layer).get_parameter("weight")


def _places(model: VGG) -> dict[tuple[str, int, int], str]:
    """Layers with weights by part, block (the pools before it) and number in the block, in the order of their use."""
    places: dict[tuple[str, int, int], str] = {}
    for part in ("features", "classifier"):
        block = number = 0
        for name, layer in model.get_submodule(part).named_children():
            if isinstance(layer, nn.MaxPool2d):
                block, number = block + 1, 0
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                places[part, block, number] = f"{part}.{name}"
                number += 1
    return places


def build_vgg(name: str, column: str, batch_norm: bool, num_classes: int, dropout: DropoutKind, init: Init) -> VGG:
    """A column of table 1 with its three fully connected layers and starting weights."""
    features = make_features(column, INPUT[0], batch_norm)
    channels = next(layer.out_channels for layer in reversed(features) if isinstance(layer, nn.Conv2d))
    side = INPUT[1] // POOL ** column.count("|")
    classifier = make_classifier(CLASSIFIER, channels * side**2, num_classes, lambda _: make_dropout(dropout))
    model = VGG(name, features, nn.Sequential(*classifier), INPUT)  # torchvision numbers its layers
    init_weights(model, init)
    return model


def build_study(name: str, column: str, widths: tuple[int, ...], batch_norm: bool, dropout: float, init: Init) -> VGG:
    """A net of the CIFAR-10 study: the convolutions of `column`, then linear layers of these widths.

    Dropout stands behind each hidden linear layer: the study says "similar regularization techniques as AlexNet" and
    gives AlexNet 0.5 there (sections 2.1.4 and 3.4).
    """
    features = make_features(column, CIFAR10_INPUT[0], batch_norm)
    channels = next(layer.out_channels for layer in reversed(features) if isinstance(layer, nn.Conv2d))
    in_features = channels * (CIFAR10_INPUT[1] // POOL ** column.count("|")) ** 2
    classifier: list[nn.Module] = []
    *hidden, num_classes = widths
    for width in hidden:
        classifier += [nn.Linear(in_features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        in_features = width
    classifier.append(nn.Linear(in_features, num_classes))
    model = VGG(name, features, nn.Sequential(*classifier), CIFAR10_INPUT)
    init_weights(model, init)
    return model


def builder(name: str, column: str, batch_norm: bool) -> Callable[..., VGG]:
    """The function that is registered under `name`."""

    def build(num_classes: int = 1000, dropout: DropoutKind = "inverted", init: Init = "he") -> VGG:
        return build_vgg(name, TABLE_1[column], batch_norm, num_classes, dropout, init)

    build.__name__ = name
    build.__doc__ = f"""Column {column} of table 1{" with batch normalisation" if batch_norm else ""}: \
`(N, 3, 224, 224)` to logits `(N, num_classes)`.

    dropout: after both hidden linear layers, "inverted" as in PyTorch, "2012" as in the AlexNet paper, or "none".
    init: the rule of the starting weights, see `init_weights`.
    """
    return build


for _name, _column in NAMES.items():
    _source = f"Simonyan & Zisserman 2015, table 1, column {_column}"
    register(_name, input_size=INPUT, source=_source)(builder(_name, _column, batch_norm=False))
    if _column != "A-LRN":  # one kind of normalisation is enough
        _source += ", and batch normalisation as in torchvision"
        register(f"{_name}_bn", input_size=INPUT, source=_source)(builder(f"{_name}_bn", _column, batch_norm=True))


STUDY = "the CIFAR-10 study, section {}"


@register("vgg16_cifar10", input_size=CIFAR10_INPUT, source=STUDY.format("2.2"))
def vgg16_cifar10(num_classes: int = 10, dropout: float = 0.5, init: Init = "pytorch") -> VGG:
    """Column D for 32×32 colour images: `(N, 3, 32, 32)` to `(N, num_classes)`, 33,638,218 parameters with 10 classes.

    Five pools leave one place of 512 maps; 4096 and 4096 hidden units follow, with dropout.

    init: the rule of the starting weights, see `init_weights`. The study names none, so the default is PyTorch's.
    """
    return build_study("vgg16_cifar10", TABLE_1["D"], (4096, 4096, num_classes), False, dropout, init)


@register("vgg16_bn_cifar10", input_size=CIFAR10_INPUT, source=STUDY.format("2.3"))
def vgg16_bn_cifar10(num_classes: int = 10, dropout: float = 0.5, init: Init = "pytorch") -> VGG:
    """`vgg16_cifar10` with batch normalisation between each convolution and its ReLU: 33,646,666 parameters.

    `(N, 3, 32, 32)` to `(N, num_classes)`; the options are the same.
    """
    return build_study("vgg16_bn_cifar10", TABLE_1["D"], (4096, 4096, num_classes), True, dropout, init)


@register("vgg8_cifar10", input_size=CIFAR10_INPUT, source=STUDY.format("2.4"))
def vgg8_cifar10(num_classes: int = 10, dropout: float = 0.5, init: Init = "pytorch") -> VGG:
    """Eight convolutions in four blocks and 4096 hidden units: `(N, 3, 32, 32)` to `(N, num_classes)`.

    13,119,050 parameters with 10 classes. The study counts its convolutions; with its two linear layers it has ten
    layers with weights.
    """
    return build_study("vgg8_cifar10", STUDY_8, (4096, num_classes), False, dropout, init)
