"""AlexNet, as the paper prints it and as its code built it.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 3;
the authors' source, released by the Computer History Museum in 2025 (computerhistory/AlexNet-Source-Code), net #145.
Where the two differ, each difference is an option of one builder. Chapter 3 teaches the plan, chapter 9 the
differences. The nets that share its name and plan are in `alexnet_variants`.

A net is data here: a row for each convolution, and a line that names the layers in their order.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from repro.models.layers import Dropout2012, RoundUpConv2d, check_input, init_normal, rounded_up_size
from repro.models.normalization import Convention, LocalResponseNorm, ResponseNormWithinMap
from repro.models.registry import OptionError, register
from repro.receptive_field import output_size


@dataclass(frozen=True)
class Convolution:
    """One row of a plan: what `nn.Conv2d` needs besides its input channels."""

    channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


# Section 3.5. Two columns: convolutions 2, 4 and 5 read the maps of their own GPU, convolution 3 those of both.
TWO_COLUMNS = (
    Convolution(96, 11, stride=4),
    Convolution(256, 5, padding=2, groups=2),
    Convolution(384, 3, padding=1),
    Convolution(384, 3, padding=1, groups=2),
    Convolution(256, 3, padding=1, groups=2),
)
# Section 3.2's control; the code keeps convolution 5 as wide as both columns' together.
ONE_COLUMN = (
    Convolution(48, 11, stride=4),
    Convolution(128, 5, padding=2),
    Convolution(192, 3, padding=1),
    Convolution(192, 3, padding=1),
    Convolution(256, 3, padding=1),
)
COLUMNS = 2
IMAGE_CHANNELS = 3
POOLED = (1, 2, 5)  # the convolutions that a pool follows
POOL_SIZE, POOL_STRIDE = 3, 2  # overlapping, section 3.4
HIDDEN = 4096  # units of each hidden fully connected layer
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0  # section 3.3
WITHIN_SIZE, WITHIN_ALPHA, WITHIN_BETA = 5, 1e-3, 0.75  # `cnorm2a` of the code; α is divided by 25 in use
INIT_STD, MIDDLE, BIAS_ONE = 0.01, (3, 4, 5), (2, 4, 5, 6, 7)  # section 5, by the layers' numbers

CLASSIFIER = "fc6 relu6 dropout6 fc7 relu7 dropout7 fc8"

Maker = Callable[[int], nn.Module]
Lrn = Literal["paper", "code", "library", "none"]
DropoutKind = Literal["2012", "inverted", "none"]


def assemble(order: str, makers: Mapping[str, Maker]) -> nn.Sequential:
    """The layers that `order` names, as "conv1 relu1 pool1"; the maker of a kind is told the layer's number."""
    return nn.Sequential(OrderedDict((name, makers[name[:-1]](int(name[-1]))) for name in order.split()))


class AlexNet(nn.Module):
    """`(N, C, H, W)` to logits `(N, num_classes)`: convolutions in `features`, linear layers in `classifier`.

    Any input but those of `input_sizes` raises `InputShapeError`.
    """

    def __init__(
        self, name: str, features: nn.Sequential, classifier: nn.Sequential, *input_sizes: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.name, self.input_sizes = name, input_sizes
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.input_sizes[0], self.name, *self.input_sizes[1:])
        return self.classifier(torch.flatten(self.features(x), 1))


def conv_maker(convolutions: tuple[Convolution, ...], kind: Callable[..., nn.Module] = nn.Conv2d) -> Maker:
    """The maker of a plan's convolutions, numbered from 1."""
    inputs = (IMAGE_CHANNELS, *(c.channels for c in convolutions))

    def make(number: int) -> nn.Module:
        c = convolutions[number - 1]
        return kind(inputs[number - 1], c.channels, c.kernel_size, c.stride, c.padding, groups=c.groups)

    return make


def make_relu(_: int) -> nn.Module:
    return nn.ReLU(inplace=True)


def make_classifier(
    order: str, in_features: int, num_classes: int, make_dropout: Maker, hidden: int = HIDDEN
) -> nn.Sequential:
    """The three fully connected layers, numbered 6 to 8 as the paper counts."""
    widths = (in_features, hidden, hidden, num_classes)

    def make_linear(number: int) -> nn.Module:
        return nn.Linear(widths[number - 6], widths[number - 5])

    return assemble(order, {"fc": make_linear, "relu": make_relu, "dropout": make_dropout})


def without(order: str, kind: str) -> str:
    """`order` less its layers of this kind."""
    return " ".join(name for name in order.split() if name[:-1] != kind)


def final_side(side: int, convolutions: tuple[Convolution, ...], size: Callable[..., int] = output_size) -> int:
    """The side of the maps after the last pool, with `size` as the rule for the outputs of one layer."""
    for number, c in enumerate(convolutions, 1):
        side = size(side, c.kernel_size, c.stride, c.padding)
        if number in POOLED:
            side = size(side, POOL_SIZE, POOL_STRIDE)
    return side


@dataclass(frozen=True)
class Parts:
    """What the nets of 2012 have one way or the other; `alexnet_2012` says what each choice means."""

    lrn: Lrn
    lrn_in_columns: bool
    relu1_after_pool: bool
    within_map_norm: bool
    overlapping: bool
    middle_init_std: float
    dropout: DropoutKind
    round_up: bool
    hidden: int

    def order(self) -> str:
        """The names of the layers of `features`."""
        first = "conv1 norm1 pool1 relu1" if self.relu1_after_pool else "conv1 relu1 norm1 pool1"
        second = "conv2 relu2 norm2 within2 pool2" if self.within_map_norm else "conv2 relu2 norm2 pool2"
        order = f"{first} {second} conv3 relu3 conv4 relu4 conv5 relu5 pool5"
        return order if self.lrn != "none" else without(order, "norm")

    def makers(self, convolutions: tuple[Convolution, ...]) -> dict[str, Maker]:
        """How each kind of layer of `features` is made."""
        return {
            "conv": conv_maker(convolutions, RoundUpConv2d if self.round_up else nn.Conv2d),
            "relu": make_relu,
            "norm": self.make_norm,
            "within": lambda _: ResponseNormWithinMap(WITHIN_SIZE, WITHIN_ALPHA, WITHIN_BETA),
            "pool": self.make_pool,
        }

    def make_pool(self, _: int) -> nn.Module:
        """Either kind gives maps of the same size, as section 3.4 says: 55 → 27 → 13 → 6."""
        if self.overlapping:
            return nn.MaxPool2d(POOL_SIZE, POOL_STRIDE, ceil_mode=self.round_up)
        return nn.MaxPool2d(POOL_STRIDE)

    def make_norm(self, _: int) -> nn.Module:
        """LRN with the paper's constants, meant in one convention or the other."""
        if self.lrn == "library":  # its α is divided by n
            return nn.LocalResponseNorm(LRN_SIZE, LRN_SIZE * LRN_ALPHA, LRN_BETA, LRN_K)
        convention: Convention = "code" if self.lrn == "code" else "paper"
        groups = COLUMNS if self.lrn_in_columns else 1
        return LocalResponseNorm(LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K, convention=convention, groups=groups)

    def classifier(self, in_features: int, num_classes: int) -> nn.Sequential:
        """The fully connected layers with the dropout that was chosen."""
        order = without(CLASSIFIER, "dropout") if self.dropout == "none" else CLASSIFIER
        kind = nn.Dropout if self.dropout == "inverted" else Dropout2012
        return make_classifier(order, in_features, num_classes, lambda _: kind(0.5), self.hidden)


def build_2012(name: str, convolutions: tuple[Convolution, ...], num_classes: int, parts: Parts) -> AlexNet:
    """A net of 2012 with the starting weights of section 5; raises `OptionError` for parts that do not go together."""
    if parts.hidden % COLUMNS:
        raise OptionError(
            f"{name}: hidden {parts.hidden} does not divide between {COLUMNS} columns; give an even number"
        )
    if parts.lrn == "library" and parts.lrn_in_columns:
        raise OptionError(f"{name}: lrn 'library' sums over all maps; set lrn_in_columns to false, or lrn to 'code'")
    sides, size = ((224, 227), rounded_up_size) if parts.round_up else ((227,), output_size)
    in_features = convolutions[-1].channels * final_side(sides[0], convolutions, size) ** 2
    net = AlexNet(
        name,
        assemble(parts.order(), parts.makers(convolutions)),
        parts.classifier(in_features, num_classes),
        *((IMAGE_CHANNELS, side, side) for side in sides),
    )
    for layer_name, layer in (*net.features.named_children(), *net.classifier.named_children()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            number = int(layer_name[-1])
            std = parts.middle_init_std if number in MIDDLE else INIT_STD
            init_normal(layer, std, bias=1.0 if number in BIAS_ONE else 0.0)
    return net


SOURCE_2012 = "Krizhevsky, Sutskever & Hinton 2012"
SOURCE_CODE = "the code of Krizhevsky et al. 2012, released in 2025"


@register("alexnet_2012", input_size=(3, 224, 224), source=SOURCE_2012)
def alexnet_2012(
    num_classes: int = 1000,
    lrn: Lrn = "paper",
    lrn_in_columns: bool = False,
    relu1_after_pool: bool = False,
    within_map_norm: bool = False,
    overlapping: bool = True,
    middle_init_std: float = 0.01,
    dropout: DropoutKind = "2012",
    round_up: bool = True,
    hidden: int = HIDDEN,
) -> AlexNet:
    """The net of the paper, its two columns as grouped convolutions: `(N, 3, 224 or 227, …)` to `(N, num_classes)`.

    Maps of 55 → 27 → 13 → 6 and 60,965,224 parameters with 1000 classes. Pixels are of the scale 0…255 less their mean
    (section 2: "raw RGB values"); LRN's constants and the starting weights of the first layer are made for it.

    lrn: α times the plain sum of squares ("paper", section 3.3), α/n times it ("code"), what the paper says through
    `nn.LocalResponseNorm` ("library"), or "none" (the control of section 3.3).
    lrn_in_columns: the sum stays within the 48 or 128 maps of a GPU; the code does so.
    relu1_after_pool: the first layer normalises and pools what its convolution gives and rectifies last; the code.
    within_map_norm: after LRN 2 another response normalisation, over 5×5 places of one map; the code.
    overlapping: pools of 3×3 at stride 2, or of 2×2 (the control of section 3.4).
    middle_init_std: deviation of the starting weights of convolutions 3 to 5; 0.03 in the code, all others 0.01.
    dropout: as in section 4.2, "inverted" as in PyTorch, or "none".
    round_up: the last window of convolution 1 hangs over a border of 224 pixels; false takes 227 pixels only.
    hidden: units of each hidden fully connected layer, half of them in each column; fewer make a net that fits a page.
    """
    parts = Parts(
        lrn, lrn_in_columns, relu1_after_pool, within_map_norm, overlapping, middle_init_std, dropout, round_up, hidden
    )
    return build_2012("alexnet_2012", TWO_COLUMNS, num_classes, parts)


@register("alexnet_2012_code", input_size=(3, 224, 224), source=SOURCE_CODE + ", net #145")
def alexnet_2012_code(
    num_classes: int = 1000,
    lrn: Lrn = "code",
    lrn_in_columns: bool = True,
    relu1_after_pool: bool = True,
    within_map_norm: bool = True,
    overlapping: bool = True,
    middle_init_std: float = 0.03,
    dropout: DropoutKind = "2012",
    round_up: bool = True,
    hidden: int = HIDDEN,
) -> AlexNet:
    """Net #145 as its layer files build it: `(N, 3, 224 or 227, …)` to `(N, num_classes)`, 60,965,224 parameters.

    The options are those of `alexnet_2012`. With `lrn="none", within_map_norm=False` it is net #148, whose logged error
    is 1.37 and 1.15 points higher.
    """
    parts = Parts(
        lrn, lrn_in_columns, relu1_after_pool, within_map_norm, overlapping, middle_init_std, dropout, round_up, hidden
    )
    return build_2012("alexnet_2012_code", TWO_COLUMNS, num_classes, parts)


@register("alexnet_one_column", input_size=(3, 224, 224), source=SOURCE_CODE + ", net #145-half")
def alexnet_one_column(
    num_classes: int = 1000,
    lrn: Lrn = "code",
    relu1_after_pool: bool = True,
    within_map_norm: bool = True,
    overlapping: bool = True,
    middle_init_std: float = 0.03,
    dropout: DropoutKind = "2012",
    round_up: bool = True,
    hidden: int = HIDDEN,
) -> AlexNet:
    """One column of net #145: `(N, 3, 224 or 227, …)` to `(N, num_classes)`; the control of section 3.2.

    48, 128, 192, 192 and 256 maps: convolution 5 is as wide as both columns' together, as the footnote there says. The
    options are those of `alexnet_2012`. 59,798,312 parameters with 1000 classes.
    """
    parts = Parts(
        lrn, False, relu1_after_pool, within_map_norm, overlapping, middle_init_std, dropout, round_up, hidden
    )
    return build_2012("alexnet_one_column", ONE_COLUMN, num_classes, parts)
