"""A layer in words, for tables that set nets side by side: its part in the net, a short name, and its constants."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from torch import nn

from repro.models.layers import (
    Dropout2012,
    LocallyConnected2d,
    RBFOutput,
    ScaledTanh,
    SparseConv2d,
    TrainableSubsampling,
)
from repro.models.normalization import LocalResponseNorm, LRNConstants, ResponseNormWithinMap
from repro.models.summary import LayerCall
from repro.receptive_field import Slide, effective_kernel_size, slides

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, ScaledTanh)
# What reads its input at one place only: elementwise, or across the maps.
POINTWISE = (
    *(*ACTIVATIONS, nn.Dropout, nn.Dropout2d, Dropout2012, nn.Identity, nn.Flatten),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LocalResponseNorm, LocalResponseNorm),
)


@dataclass(frozen=True)
class Description:
    """What tables say of one layer."""

    part: str  # weights, activation, normalisation, pooling, dropout, other, or nothing
    name: str
    constants: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.constants}".rstrip()


def sides(value: Any) -> str:
    """A size along both axes: 3 and (3, 3) give `3×3`."""
    down, across = value if isinstance(value, tuple | list) else (value, value)
    return f"{down}×{across}"


def both(down: Any, across: Any) -> str:
    """One number where the axes agree, else both."""
    return f"{down}" if down == across else f"{down}×{across}"


def sliding(layer: Any, axis: int) -> Slide:
    """The window of a layer with PyTorch's attributes; those it lacks have PyTorch's defaults."""
    defaults = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return slides(*(getattr(layer, key, value) for key, value in defaults.items()))[axis]


def sliding_window(call: LayerCall) -> str:
    """Kernel, stride and what else differs from PyTorch's defaults: `11×11, stride 4, padding 2, 2 groups`.

    Where the last window hangs over the border of this input, the size is said to be `rounded up`.
    """
    axes = sliding(call.layer, 0), sliding(call.layer, 1)
    words = ["×".join(str(axis.kernel_size) for axis in axes)]
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        pair = tuple(getattr(axis, name) for axis in axes)
        if pair != (default, default):
            words.append(f"{name} {both(*pair)}")
    groups = getattr(call.layer, "groups", 1)
    if groups != 1:
        words.append(f"{groups} groups")
    sizes = zip(call.input_shape[1:], call.output_shape[1:], axes, strict=True)
    if any(
        (places - 1) * w.stride + effective_kernel_size(w.kernel_size, w.dilation) > pixels + 2 * w.padding
        for pixels, places, w in sizes
    ):
        words.append("rounded up")
    return ", ".join(words)


@singledispatch
def describe(layer: nn.Module, call: LayerCall) -> Description:
    """The words for one use of a layer; a kind that is not known here goes by the name of its class.

    `layer` is `call.layer`: it chooses the words.
    """
    kinds = {
        "activation": ACTIVATIONS,
        "normalisation": (nn.BatchNorm1d, nn.BatchNorm2d),
        "nothing": (nn.Identity, nn.Flatten),
    }
    part = next((part for part, classes in kinds.items() if isinstance(layer, classes)), "other")
    return Description(part, type(layer).__name__)


@describe.register
def _(layer: nn.Conv2d | SparseConv2d | LocallyConnected2d, call: LayerCall) -> Description:
    name = "locally connected" if isinstance(layer, LocallyConnected2d) else "convolution"
    kernels = f", {len(layer.weight)} of {layer.out_channels * layer.in_channels} kernels"
    return Description("weights", name, sliding_window(call) + (kernels if isinstance(layer, SparseConv2d) else ""))


@describe.register
def _(layer: nn.Linear, call: LayerCall) -> Description:
    return Description("weights", "linear", f"{layer.in_features} → {layer.out_features}")


@describe.register
def _(layer: RBFOutput, call: LayerCall) -> Description:
    num_classes, features = layer.codes.shape
    return Description("weights", "distance to fixed codes", f"{features} → {num_classes}")


@describe.register
def _(layer: nn.MaxPool2d | nn.AvgPool2d, call: LayerCall) -> Description:
    name = "max-pooling" if isinstance(layer, nn.MaxPool2d) else "average-pooling"
    return Description("pooling", name, sliding_window(call))


@describe.register
def _(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, call: LayerCall) -> Description:
    name = "max-pooling" if isinstance(layer, nn.AdaptiveMaxPool2d) else "average-pooling"
    return Description("pooling", name, f"to {sides(layer.output_size)}")


@describe.register
def _(layer: TrainableSubsampling, call: LayerCall) -> Description:
    return Description("pooling", "subsampling", f"{sides(layer.BLOCK)}, stride {layer.BLOCK}, coefficient and bias")


@describe.register
def _(layer: nn.Dropout | nn.Dropout2d, call: LayerCall) -> Description:
    scale = f"{1 / (1 - layer.p):.4g}" if layer.p < 1 else "∞"
    return Description("dropout", "dropout", f"p = {layer.p:g}, the rest × {scale} in training")


@describe.register
def _(layer: Dropout2012, call: LayerCall) -> Description:
    return Description("dropout", "dropout", f"p = {layer.p:g}, all × {1 - layer.p:.4g} in evaluation")


@describe.register
def _(layer: nn.LocalResponseNorm | LocalResponseNorm, call: LayerCall) -> Description:
    """The constants in the paper's convention, α on the plain sum of squares, whatever the layer's own is."""
    if isinstance(layer, LocalResponseNorm) and layer.convention == "paper":
        lrn = LRNConstants.from_paper(n=layer.size, k=layer.k, alpha=layer.alpha, beta=layer.beta)
    else:
        lrn = LRNConstants.from_pytorch(layer.size, layer.alpha, layer.beta, layer.k)
    window = f"{lrn.before + lrn.after + 1}"
    if lrn.before != lrn.after:
        window += f" ({lrn.before} before, {lrn.after} after)"
    groups = getattr(layer, "groups", 1)
    within = f", within {groups} groups" if groups > 1 else ""
    return Description("normalisation", "LRN", f"n = {window}, {_constants(lrn.k, lrn.alpha, lrn.beta)}{within}")


@describe.register
def _(layer: ResponseNormWithinMap, call: LayerCall) -> Description:
    constants = _constants(layer.k, layer.alpha / layer.size**2, layer.beta)
    return Description("normalisation", "within-map LRN", f"{sides(layer.size)}, {constants}")


def _constants(k: float, alpha: float, beta: float) -> str:
    return f"k = {k:g}, α = {alpha:g}, β = {beta:g}"
