"""Nets that are called AlexNet and are not the net of 2012: they share its plan and its name.

torchvision's net follows Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), and is
what most tutorials and Fleuret's course (lecture 8.2) show; `alexnet_flowers` is the Keras net of a student report, as
its code builds it; `alexnet_cifar10` carries the plan to 32×32 pictures. Chapter 3 compares them, chapter 8 trains the
second and the third.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from repro.models.alexnet import (
    CLASSIFIER,
    POOL_SIZE,
    POOL_STRIDE,
    TWO_COLUMNS,
    AlexNet,
    Convolution,
    Maker,
    assemble,
    conv_maker,
    final_side,
    make_classifier,
    make_relu,
    without,
)
from repro.models.layers import check_input
from repro.models.normalization import LocalResponseNorm
from repro.models.registry import register

TORCHVISION_INPUT = (3, 224, 224)
TORCHVISION_CONVOLUTIONS = (
    Convolution(64, 11, stride=4, padding=2),
    Convolution(192, 5, padding=2),
    Convolution(384, 3, padding=1),
    Convolution(256, 3, padding=1),
    Convolution(256, 3, padding=1),
)
TORCHVISION_ORDER = "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
TORCHVISION_CLASSIFIER = "dropout6 fc6 relu6 dropout7 fc7 relu7 fc8"


@register(
    "alexnet",
    input_size=TORCHVISION_INPUT,
    source='torchvision, after Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014',
)
def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """The one-tower net that tutorials and torchvision call AlexNet: `(N, 3, 224, 224)` to logits `(N, num_classes)`.

    No normalisation, other widths (64-192-384-256-256), a first convolution padded by 2, and dropout before the hidden
    layers. 61,100,840 parameters with 1000 classes. Its `state_dict` is that of `torchvision.models.alexnet`, whose
    adaptive pooling to 6×6 does nothing at this size and is left out; so weights of either load into the other.
    """
    makers: dict[str, Maker] = {
        "conv": conv_maker(TORCHVISION_CONVOLUTIONS),
        "relu": make_relu,
        "pool": lambda _: nn.MaxPool2d(POOL_SIZE, POOL_STRIDE),
    }
    features = assemble(TORCHVISION_ORDER, makers)
    side = final_side(TORCHVISION_INPUT[1], TORCHVISION_CONVOLUTIONS)
    in_features = TORCHVISION_CONVOLUTIONS[-1].channels * side**2
    classifier = make_classifier(TORCHVISION_CLASSIFIER, in_features, num_classes, lambda _: nn.Dropout(dropout))
    # torchvision numbers its layers
    return AlexNet("alexnet", nn.Sequential(*features), nn.Sequential(*classifier), TORCHVISION_INPUT)


# The report's code pools before it normalises; the paper does it the other way round.
POOL_FIRST = "conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
POOL_LAST = "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
FLOWERS_INPUT = (3, 224, 224)
FLOWERS_CONVOLUTIONS = tuple(replace(c, groups=1) for c in TWO_COLUMNS)
FLOWERS_RADIUS, FLOWERS_ALPHA, FLOWERS_BETA, FLOWERS_BIAS = 5, 1e-4, 0.75, 1.0  # TensorFlow's names


@register(
    "alexnet_flowers",
    input_size=FLOWERS_INPUT,
    source="the Keras net of a student report that repeats AlexNet on 3,306 photographs of five flowers",
)
def alexnet_flowers(
    num_classes: int = 5, lrn: bool = True, pool_before_lrn: bool = True, dropout: float = 0.5
) -> AlexNet:
    """The report's net as its code builds it: `(N, 3, 224, 224)` to logits `(N, num_classes)`.

    One column, and nothing padded in convolution 1 and the pools, so 224 → 54 → 26 → 12 → 5 and not 55 → 27 → 13 → 6.
    LRN has TensorFlow's radius 5, so n = 11, α = 1e-4 on the plain sum and k = 1. Weights start Glorot-uniform and
    biases at zero, as Keras starts them. The report gives the net pixels 0…1, nothing subtracted. 46,767,493 parameters
    with five classes.
    """
    makers: dict[str, Maker] = {
        "conv": conv_maker(FLOWERS_CONVOLUTIONS),
        "relu": make_relu,
        "pool": lambda _: nn.MaxPool2d(POOL_SIZE, POOL_STRIDE),
        "norm": lambda _: LocalResponseNorm(2 * FLOWERS_RADIUS + 1, FLOWERS_ALPHA, FLOWERS_BETA, FLOWERS_BIAS),
    }
    order = POOL_FIRST if pool_before_lrn else POOL_LAST
    features = assemble(order if lrn else without(order, "norm"), makers)
    in_features = FLOWERS_CONVOLUTIONS[-1].channels * final_side(FLOWERS_INPUT[1], FLOWERS_CONVOLUTIONS) ** 2
    classifier = make_classifier(CLASSIFIER, in_features, num_classes, lambda _: nn.Dropout(dropout))
    net = AlexNet("alexnet_flowers", features, classifier, FLOWERS_INPUT)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))
    return net


# The five convolutions of the small version: output channels, and whether a 2×2 max-pooling follows.
CIFAR10_CONVOLUTIONS = ((64, True), (192, True), (384, False), (256, False), (256, True))
CIFAR10_INPUT = (3, 32, 32)


class AlexNetCIFAR10(nn.Module):
    """AlexNet's plan at CIFAR-10's size: `(N, 3, 32, 32)` to logits `(N, num_classes)`.

    Five 3×3 convolutions of stride 1 that keep the size, three 2×2 poolings that halve it (32, 16, 8, 4), and
    three fully connected layers, the first two followed by dropout. 23,238,474 parameters with ten classes.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.input_size = CIFAR10_INPUT
        layers: list[nn.Module] = []
        channels, size, _ = CIFAR10_INPUT
        for out_channels, pooled in CIFAR10_CONVOLUTIONS:
            layers += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            if pooled:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * size * size, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(1024, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, CIFAR10_INPUT, "alexnet_cifar10")
        x = self.features(x)  # (N, 256, 4, 4)
        return self.classifier(torch.flatten(x, 1))


@register(
    "alexnet_cifar10",
    input_size=CIFAR10_INPUT,
    source="after Krizhevsky et al. 2012, for CIFAR-10",
)
def alexnet_cifar10(num_classes: int = 10, dropout: float = 0.5) -> AlexNetCIFAR10:
    """AlexNet's plan for 32×32 colour images; see `AlexNetCIFAR10`."""
    return AlexNetCIFAR10(num_classes, dropout)
