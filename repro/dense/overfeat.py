"""Outputs that lie closer than the net's stride: OverFeat's last pooling at every offset.

Sermanet et al. (2013), section 3.3: the last pooling, s×s at stride s, is repeated at each of the s·s offsets, the
classifier runs over each of the pooled maps, and the score maps are interleaved. The same comes out in one pass when
the pooling moves by one place and all that follows it skips s − 1 places between two that it reads (à trous).
"""

import copy
from typing import Any

from torch import Tensor, nn

from repro.dense.convert import DenseError, FullyConvolutional, LinearAsConv2d
from repro.models.describe import POINTWISE, sliding

Pool = nn.MaxPool2d | nn.AvgPool2d
Pair = tuple[int, int]


def last_pool(net: FullyConvolutional) -> int:
    """The number of the last pooling with a stride; raises `DenseError` where none can be made finer."""
    found = [i for i, layer in enumerate(net.layers) if isinstance(layer, Pool) and strides(layer) != (1, 1)]
    if not found:
        raise DenseError("the net has no pooling with a stride above 1: its outputs cannot lie closer")
    number = found[-1]
    if any(sliding(net.layers[number], axis).padding for axis in (0, 1)):
        raise DenseError(f"{net.names[number]}: a padded pooling cannot be moved by single places")
    return number


def strides(layer: nn.Module) -> Pair:
    """From one of its windows to the next, down and across."""
    return sliding(layer, 0).stride, sliding(layer, 1).stride


def overfeat(net: FullyConvolutional) -> FullyConvolutional:
    """`net` with its last pooling at stride 1: outputs as many times closer as its stride was; the weights are shared.

    `grid` of the result says where they lie. Of a net without padding they are the crops' outputs there. A pooling that
    rounded up does so no longer: at stride 1 no window hangs over.

    Raises `DenseError` for a net without such a pooling, and for a layer behind it that cannot skip places.
    """
    number = last_pool(net)
    pool: Any = copy.copy(net.layers[number])
    factor = strides(pool)
    pool.stride, pool.ceil_mode = (1, 1), False
    layers = [*net.layers[:number], pool]
    for name, layer in zip(net.names[number + 1 :], net.layers[number + 1 :], strict=True):
        layers.append(dilated(layer, factor, name))
    return FullyConvolutional(layers, net.names, net.native_size, net.training)


def dilated(layer: nn.Module, factor: Pair, name: str) -> nn.Module:
    """The layer with its places, and its zeros around the map, `factor` times as far apart."""
    if isinstance(layer, LinearAsConv2d):
        down, across = (d * f for d, f in zip(layer.dilation, factor, strict=True))
        return LinearAsConv2d(layer.linear, layer.kernel_size, (down, across))
    if isinstance(layer, POINTWISE):
        return layer
    if not isinstance(layer, nn.Conv2d) or strides(layer) != (1, 1) or layer.padding_mode != "zeros":
        raise DenseError(f"{name} ({type(layer).__name__}): cannot skip places behind the last pooling")
    wider: Any = copy.copy(layer)  # of the same parameters
    wider.dilation = tuple(d * f for d, f in zip(layer.dilation, factor, strict=True))
    if isinstance(layer.padding, tuple):  # "same" follows the dilation by itself
        wider.padding = tuple(p * f for p, f in zip(layer.padding, factor, strict=True))
    return wider


def interleaved(net: FullyConvolutional, x: Tensor) -> Tensor:
    """What `overfeat(net)` gives for `x`, as the paper did it: a pass for each offset, and the maps interleaved."""
    number = last_pool(net)
    pool: Any = copy.copy(net.layers[number])
    down, across = strides(pool)
    pool.ceil_mode = False
    before, after = nn.Sequential(*net.layers[:number]), nn.Sequential(*net.layers[number + 1 :])
    maps = before(x)
    rows, columns = overfeat(net).grid(*x.shape[2:]).shape
    result: Tensor | None = None
    for top in range(min(down, rows)):
        for left in range(min(across, columns)):
            scores = after(pool(maps[:, :, top:, left:]))
            if result is None:
                result = scores.new_empty(*scores.shape[:2], rows, columns)
            result[:, :, top::down, left::across] = scores
    assert result is not None  # a picture of the native size has an output
    return result
