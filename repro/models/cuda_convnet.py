"""The CIFAR-10 nets that AlexNet grew out of.

The example layer files of Krizhevsky's cuda-convnet (2011), which the release of AlexNet's source contains too
(computerhistory/AlexNet-Source-Code, `example-layers/`); the names are the test errors logged there. Sections 3.1 and
3.3 of the AlexNet paper train such four-layer nets. Chapter 4 compares ReLU with tanh in the first one.

Both expect pixels of the scale 0…255 less their mean: their starting weights are made for it, those of the first
convolution above all. Pools round up, so 32 → 16 → 8 → 4.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from repro.models.layers import LocallyConnected2d, check_input, init_normal, rounded_up_size
from repro.models.normalization import LocalResponseNorm, ResponseNormWithinMap
from repro.models.registry import OptionError, register

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOL_SIZE, POOL_STRIDE = 3, 2
# Maps, and the pool that follows.
CONVOLUTIONS_18PCT: tuple[tuple[int, Literal["max", "mean"]], ...] = ((32, "max"), (32, "mean"), (64, "mean"))
NORMALISED = (1, 2)  # the convolutions of that net whose pools are normalised
NORM_SIZE, NORM_ALPHA, NORM_BETA = 3, 5e-5, 0.75  # α is divided by the number of squares summed
NORMS: dict[str, Callable[[], nn.Module]] = {
    "within-map": lambda: ResponseNormWithinMap(NORM_SIZE, NORM_ALPHA, NORM_BETA),
    "across": lambda: LocalResponseNorm(NORM_SIZE, NORM_ALPHA, NORM_BETA, 1.0, convention="code"),
}
# Standard deviations of the starting weights, by layer.
STD_18PCT = {"conv1": 1e-4, "conv2": 1e-2, "conv3": 1e-2, "fc10": 1e-2}
STD_13PCT = {"conv1": 1e-4, "conv2": 1e-2, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
SOURCE = "cuda-convnet's example layers, Krizhevsky 2011"


class CudaConvnet(nn.Module):
    """Square colour images `(N, 3, S, S)` to logits `(N, num_classes)`; weights start at N(0, std²), biases at 0.

    `stds` gives the standard deviation of each layer that has weights. Any other shape raises `InputShapeError`.
    """

    def __init__(self, name: str, layers: dict[str, nn.Module], stds: dict[str, float], input_size: int) -> None:
        super().__init__()
        self.name, self.input_sizes = name, ((3, input_size, input_size),)
        *features, output = layers.items()
        self.features = nn.Sequential(OrderedDict(features))
        self.classifier = nn.Sequential(OrderedDict([output]))
        for layer_name, std in stds.items():
            init_normal(layers[layer_name], std)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, *self.input_sizes, self.name)
        return self.classifier(torch.flatten(self.features(x), 1))


def pool(kind: Literal["max", "mean"], size: int = POOL_SIZE) -> nn.Module:
    """Square windows at stride 2, the last of which may hang over the border: 32 → 16.

    A mean is over the pixels that a window really holds, as in cuda-convnet.
    """
    return (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(size, POOL_STRIDE, ceil_mode=True)


def pooled_side(name: str, input_size: int, pools: int, size: int = POOL_SIZE) -> int:
    """The side of the maps after so many pools; raises `OptionError` for pictures too small for them."""
    smallest = size * POOL_STRIDE ** (pools - 1)
    if input_size < smallest:
        raise OptionError(f"{name}: option input_size is at least {smallest}, found {input_size}")
    side = input_size
    for _ in range(pools):
        side = rounded_up_size(side, size, POOL_STRIDE)
    return side


@register("cuda_convnet_18pct", input_size=(3, 32, 32), source=SOURCE + ", layers-18pct")
def cuda_convnet_18pct(
    num_classes: int = 10,
    norm: Literal["within-map", "across", "none"] = "within-map",
    activation: Literal["relu", "tanh"] = "relu",
    overlapping: bool = True,
    input_size: int = 32,
) -> CudaConvnet:
    """The four-layer net of 18 % test error: `(N, 3, input_size, input_size)` to logits `(N, num_classes)`.

    Three 5×5 convolutions of 32, 32 and 64 maps, each pooled, the first two pools normalised, and one linear layer:
    89,578 parameters with ten classes.

    norm: over 3×3 places of each map as in the file, over 3 neighbouring maps ("across") with the same constants, or
    "none", which makes it the net "19pct".
    activation: "tanh" gives the equivalent net of section 3.1 of the AlexNet paper.
    overlapping: pools of 3×3 at stride 2, or of 2×2, which give maps of the same size.
    input_size: 32, or 24 for the crops of the runs with translations.
    """
    size = POOL_SIZE if overlapping else POOL_STRIDE
    layers: dict[str, nn.Module] = {}
    channels = 3
    for number, (out_channels, kind) in enumerate(CONVOLUTIONS_18PCT, 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, out_channels, kernel_size=5, padding=2)
        layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
        layers[f"pool{number}"] = pool(kind, size)
        if norm != "none" and number in NORMALISED:
            layers[f"norm{number}"] = NORMS[norm]()
        channels = out_channels
    side = pooled_side("cuda_convnet_18pct", input_size, len(CONVOLUTIONS_18PCT), size)
    layers["fc10"] = nn.Linear(channels * side**2, num_classes)
    return CudaConvnet("cuda_convnet_18pct", layers, STD_18PCT, input_size)


@register("cuda_convnet_13pct", input_size=(3, 24, 24), source=SOURCE + ", layers-conv-local-13pct")
def cuda_convnet_13pct(num_classes: int = 10, input_size: int = 24) -> CudaConvnet:
    """The net of 13 % test error: `(N, 3, input_size, input_size)` to logits `(N, num_classes)`.

    Two 5×5 convolutions of 64 maps, each pooled, two locally connected layers of 32 maps (3×3, unshared weights), and
    one linear layer. It is trained on 24×24 crops of the 32×32 pictures, which decides how many places have kernels
    of their own: 1,116,490 parameters with ten classes.
    """
    side = pooled_side("cuda_convnet_13pct", input_size, 2)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, kernel_size=5, padding=2),
        "relu1": nn.ReLU(inplace=True),
        "pool1": pool("max"),
        "conv2": nn.Conv2d(64, 64, kernel_size=5, padding=2),
        "relu2": nn.ReLU(inplace=True),
        "pool2": pool("max"),
        "local3": LocallyConnected2d(64, 32, side, kernel_size=3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "local4": LocallyConnected2d(32, 32, side, kernel_size=3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "fc10": nn.Linear(32 * side**2, num_classes),
    }
    return CudaConvnet("cuda_convnet_13pct", layers, STD_13PCT, input_size)
