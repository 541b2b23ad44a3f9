"""How much of the image each layer of a net sees: `repro.receptive_field` carried along the layers of a model."""

from collections.abc import Sequence
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
from repro.models.normalization import LocalResponseNorm, ResponseNormWithinMap
from repro.models.summary import LayerCall
from repro.receptive_field import ReceptiveField, effective_kernel_size

Axes = tuple[int, int]  # down and across
Window = tuple[int, int, int, int]  # kernel_size, stride, padding, dilation along one axis
Fields = tuple[ReceptiveField, ReceptiveField]  # down and across

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, ScaledTanh)
# What reads the image at one place only: elementwise, or across the maps.
POINTWISE = (
    *(*ACTIVATIONS, nn.Dropout, nn.Dropout2d, Dropout2012, nn.Identity, nn.Flatten),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LocalResponseNorm, LocalResponseNorm),
)


def receptive_fields(calls: Sequence[LayerCall], image: Axes) -> list[Fields | None]:
    """The field of each layer's units in an image of `(H, W)` pixels, down and across.

    None stands where it is not known: from the first layer on that is not chained to the one before it, or of a kind
    that `window` does not know.
    """
    fields: list[Fields | None] = []
    now: Fields | None = (ReceptiveField(), ReceptiveField())
    extent = image
    for call in calls:
        windows = window(call, extent) if call.chained else None
        now = (now[0].through(*windows[0]), now[1].through(*windows[1])) if now and windows else None
        fields.append(now)
        extent = _extent(call, extent)
    return fields


def window(call: LayerCall, extent: Axes) -> tuple[Window, Window] | None:
    """What one unit of a layer reads of a map of `extent`, down and across; None for a kind not known here.

    To a fully connected layer the whole map is one window.
    """
    layer = call.layer
    if isinstance(layer, POINTWISE):
        return (1, 1, 0, 1), (1, 1, 0, 1)
    if isinstance(layer, nn.Linear | RBFOutput) and len(call.input_shape) == 1:
        return (extent[0], 1, 0, 1), (extent[1], 1, 0, 1)
    if isinstance(layer, TrainableSubsampling):
        return (layer.BLOCK, layer.BLOCK, 0, 1), (layer.BLOCK, layer.BLOCK, 0, 1)
    if isinstance(layer, ResponseNormWithinMap):
        return (layer.size, 1, layer.size // 2, 1), (layer.size, 1, layer.size // 2, 1)
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | SparseConv2d | LocallyConnected2d):
        return sliding(layer, 0), sliding(layer, 1)
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        sides = list(zip(extent, call.output_shape[1:], strict=True))
        if all(before % after == 0 for before, after in sides):  # else its windows differ in size
            down, across = ((before // after, before // after, 0, 1) for before, after in sides)
            return down, across
    return None


def sliding(layer: Any, axis: int) -> Window:
    """The window of a layer with PyTorch's attributes; those it lacks have PyTorch's defaults."""

    def of_axis(value: Any) -> Any:
        return value[axis] if isinstance(value, tuple | list) else value

    defaults = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    kernel_size, stride, padding, dilation = (of_axis(getattr(layer, key, value)) for key, value in defaults.items())
    if isinstance(padding, str):  # "same" or "valid"
        padding = (effective_kernel_size(kernel_size, dilation) - 1) // 2 if padding == "same" else 0
    return kernel_size, stride, padding, dilation


def _extent(call: LayerCall, before: Axes) -> Axes:
    """Height and width behind a layer; features in a row still stand for the map that they were flattened from."""
    if len(call.output_shape) == 3:
        return call.output_shape[1], call.output_shape[2]
    return (1, 1) if isinstance(call.layer, nn.Linear | RBFOutput) else before
