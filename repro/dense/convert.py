"""From a net with fully connected layers to one of convolutions alone, with the same weights.

A fully connected layer behind a map of h×w places is a convolution with a kernel of h×w that fits once; over a larger
map it fits more often, and gives a map of scores (OverFeat, section 3.3; the VGG paper, section 3.2).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.dense.grid import DenseGrid
from repro.errors import ReproError
from repro.models.describe import POINTWISE
from repro.models.layers import InputShapeError, SparseConv2d, TrainableSubsampling
from repro.models.normalization import ResponseNormWithinMap
from repro.models.summary import LayerCall, layer_calls
from repro.receptive_field import FieldTable, Windows, receptive_field, register_window, slides

InputSize = int | tuple[int, int] | tuple[int, int, int]

SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, SparseConv2d, TrainableSubsampling, ResponseNormWithinMap)
DEFAULT_SIDE = 224
AGREEMENT = 1e-4  # of the largest output: rounding leaves about 1e-6, another function far more


class DenseError(ReproError, ValueError):
    """A net that cannot be made fully convolutional, or not in the way that was asked."""

    exit_code = 2


class LinearAsConv2d(nn.Module):
    """A fully connected layer over every window of its size: `(N, C, H, W)` to `(N, out_features, H', W')`.

    The layer itself, weights and all, stays the one it was. Each window is a row of a matrix, which the layer's weights
    multiply as they lie: a library's convolution would bring the 103 million weights of VGG's first such layer into an
    order of its own at every call.

    dilation: from one place that a window reads to the next.
    """

    def __init__(self, linear: nn.Linear, kernel_size: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.linear, self.kernel_size, self.dilation = linear, kernel_size, dilation

    def forward(self, x: Tensor) -> Tensor:
        reach = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        height, width = (n - r for n, r in zip(x.shape[2:], reach, strict=True))
        if self.kernel_size == (1, 1):
            windows = x.permute(0, 2, 3, 1)
        else:  # columns in the order of a flattened map
            windows = F.unfold(x, self.kernel_size, self.dilation).transpose(1, 2)  # (N, H'·W', C·k²)
        # As one matrix: given more dimensions that do not lie in order, a library may multiply picture by picture.
        scores = self.linear(windows.reshape(-1, self.linear.in_features))
        return scores.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}"


class FullyConvolutional(nn.Module):
    """A chain of layers that slide: `(N, C, H, W)` to a map of logits `(N, num_classes, h, w)`.

    Made by `convolutionize`. Its layers are those of the net it came from and share its weights, so training and
    evaluation are set on both at once. Dropout stays where it was. Raises `InputShapeError` for a picture smaller than
    a crop of the native size.
    """

    def __init__(
        self, layers: Iterable[nn.Module], names: Sequence[str], native_size: tuple[int, int, int], training: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.names = tuple(names)  # of the layers, in the net that this one came from
        self.native_size = native_size  # (C, H, W) of a crop that gives one output
        self.training = training

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = self.native_size
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] < height or x.shape[3] < width:
            found = "×".join(map(str, x.shape))
            raise InputShapeError(f"expected a batch N×{channels}×H×W of at least {height}×{width}, found {found}")
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def first_connected(self) -> int:
        """The number of the first layer that was fully connected; of layers, where none was."""
        return next((i for i, layer in enumerate(self.layers) if isinstance(layer, LinearAsConv2d)), len(self.layers))

    def fields(self, height: int, width: int) -> FieldTable:
        """The receptive fields over a picture of this size: a row for each layer, in their order."""
        return receptive_field(self, (self.native_size[0], height, width))

    def grid(self, height: int, width: int) -> DenseGrid:
        """Where the outputs for a picture of this size lie; raises `InputShapeError` when it is smaller than a crop."""
        _, *native = self.native_size
        if height < native[0] or width < native[1]:
            raise InputShapeError(f"a picture of {height}×{width} is smaller than a crop of {native[0]}×{native[1]}")
        last = self.fields(height, width)[-1]
        down, across = map(int, last.effective_stride)
        return DenseGrid((height, width), (native[0], native[1]), (down, across), last.output_size)

    def own_units(self) -> Tensor:
        """Of the map of a crop that the first fully connected layer reads, the units that no padding reaches: bool.

        In the dense run they have the same values, wherever the crop lies; the others read zeros in the crop, and in
        the dense run what surrounds it. Without padding all units are of the first kind, and so are the outputs.
        """
        _, height, width = self.native_size
        if self.first_connected == 0:
            return torch.ones(height, width, dtype=torch.bool)
        table = self.fields(height, width)
        layer = table[self.first_connected - 1]
        # A unit that reads padding anywhere on the way has a field that reaches out of the picture, and no other has.
        rows = [table.box(layer.name, i, 0).unclipped for i in range(layer.output_size[0])]
        columns = [table.box(layer.name, 0, j).unclipped for j in range(layer.output_size[1])]
        down = torch.tensor([box.top >= 0 and box.bottom <= height for box in rows])
        across = torch.tensor([box.left >= 0 and box.right <= width for box in columns])
        return down[:, None] & across


@register_window(LinearAsConv2d)
def _(layer: Any, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return slides(layer.kernel_size, dilation=layer.dilation)


def convolutionize(model: nn.Module, input_size: InputSize | None = None) -> FullyConvolutional:
    """`model` as a net that slides over pictures of any size, from that of a crop on; the weights are shared.

    `model` is a chain of convolutions, poolings, layers that work place by place, and fully connected layers behind
    them, as AlexNet, VGG or any such `nn.Sequential`; torchvision's as well.

    input_size: (C, H, W), (H, W) or a side: the crop it was trained on. When not given, what the model says of itself
    (`input_size`, `input_sizes`), else 224×224.

    At that size it computes what `model` does, which is tried once. An adaptive pooling becomes one with the fixed
    windows that it has at that size, and is dropped where these are single places.

    Over a larger picture, the outputs of a net without padding are those of the crops that `grid` names. With padding
    they are not: see `own_units`. Of `alexnet_2012`, which rounds windows up, a crop of 224 is run as 227 pixels of
    which the last three are zeros; in the dense run they are the picture's. So, its paddings aside, it is the crops of
    227 that it agrees with; give `input_size=227` to say so.

    Raises `DenseError` naming the layer that stands against it.
    """
    size = native_size(model, input_size)
    calls = watch(model, size)
    layers, names = [], []
    extent: tuple[int, int] = size[1:]
    connected = False
    for call in calls:
        if not call.chained:
            raise DenseError(
                f"{call.name}: does not read what the layer before it gave; only a chain of layers can be converted"
            )
        layer = slide(call, extent, connected)
        connected = connected or isinstance(call.layer, nn.Linear)
        if len(call.output_shape) == 3:
            extent = (call.output_shape[1], call.output_shape[2])
        if layer is not None:
            layers.append(layer)
            names.append(call.name)
        if isinstance(layer, LinearAsConv2d):
            extent = (1, 1)
    net = FullyConvolutional(layers, names, size, model.training)
    require_same(model, net)
    return net


def native_size(model: nn.Module, input_size: InputSize | None) -> tuple[int, int, int]:
    """(C, H, W) from what was given, from what the model says of itself, or the default."""
    if input_size is None:
        own = getattr(model, "input_size", None) or next(iter(getattr(model, "input_sizes", ())), None)
        if own is not None:
            return own[0], own[1], own[2]
        input_size = DEFAULT_SIDE
    sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(sides) == 3:
        return sides[0], sides[1], sides[2]
    convolutions = (layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d | SparseConv2d))
    channels = next(convolutions, None)
    if channels is None:
        raise DenseError("the model has no convolution to tell the channels of its input; give (C, H, W)")
    return channels, sides[0], sides[1]


def watch(model: nn.Module, size: tuple[int, int, int]) -> list[LayerCall]:
    """The layers of `model` in their order; raises `DenseError` where a picture of this size does not go through."""
    with linear_sizes_checked(model):
        try:
            return layer_calls(model, size)
        except ReproError:
            raise
        except RuntimeError as e:
            reason = str(e).splitlines()[0]
            raise DenseError(
                f"{type(model).__name__} cannot take a picture of {'×'.join(map(str, size))} ({reason}); give the "
                "input_size that it was trained at"
            ) from e


@contextmanager
def linear_sizes_checked(model: nn.Module) -> Iterator[None]:
    """While it lasts, a fully connected layer names itself when its input has not its size."""

    def checker(name: str) -> Any:
        def check(layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
            if (found := inputs[0].shape[-1]) != layer.in_features:
                raise DenseError(
                    f"{name}: takes {layer.in_features} features, the flattened map has {found}; give the input_size "
                    "that the net was trained at"
                )

        return check

    linears = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(checker(name)) for name, layer in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slide(call: LayerCall, extent: tuple[int, int], connected: bool) -> nn.Module | None:
    """The layer that stands for this one over maps of any size; None for one that is left out.

    `extent` is the size of the last map of the crop, `connected` whether a fully connected layer came since.
    """
    layer = call.layer
    if isinstance(layer, nn.Flatten):
        return None
    if isinstance(layer, nn.Linear):
        if len(call.input_shape) != 1:
            raise DenseError(f"{call.name}: a fully connected layer on an unflattened map of {call.input_shape}")
        return LinearAsConv2d(layer, extent)
    if isinstance(layer, nn.BatchNorm1d) or (connected and len(call.input_shape) != 1):
        raise DenseError(f"{call.name} ({type(layer).__name__}): cannot be converted among fully connected layers")
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return fixed_pool(call, extent)
    if isinstance(layer, (*SLIDING, *POINTWISE)) and not getattr(layer, "return_indices", False):
        return layer
    raise DenseError(
        f"{call.name} ({type(layer).__name__}): its windows are not the same at every place, or it is not known here"
    )


def fixed_pool(call: LayerCall, extent: tuple[int, int]) -> nn.Module | None:
    """An adaptive pooling as one with the windows it has over the crop's map; raises `DenseError` if they differ."""
    _, *after = call.output_shape
    if any(before % n for before, n in zip(extent, after, strict=True)):
        raise DenseError(
            f"{call.name}: pools {extent[0]}×{extent[1]} places to {after[0]}×{after[1]} in windows of different "
            "sizes; give an input_size at which they are equal"
        )
    windows = extent[0] // after[0], extent[1] // after[1]
    if windows == (1, 1):
        return None
    # A single window has no next one: the densest outputs come from stride 1.
    down, across = (1 if n == 1 else window for n, window in zip(after, windows, strict=True))
    average = isinstance(call.layer, nn.AdaptiveAvgPool2d)
    return nn.AvgPool2d(windows, (down, across)) if average else nn.MaxPool2d(windows, (down, across))


@torch.no_grad()
def require_same(model: nn.Module, net: FullyConvolutional) -> None:
    """Raise `DenseError` unless both give the same for a picture of noise at the native size."""
    parameter = next(model.parameters(), torch.empty(0))
    if parameter.is_meta:
        return
    noise = torch.rand(1, *net.native_size, generator=torch.Generator().manual_seed(0)).to(parameter)
    modes = [(module, module.training) for module in (*model.modules(), net)]
    try:
        model.eval()
        net.eval()
        expected, found = model(noise), net(noise)
    finally:
        for module, training in modes:
            module.training = training
    if found.shape[2:] != (1, 1):
        places = "×".join(map(str, found.shape[2:]))
        raise DenseError(f"{net.names[-1]}: gives {places} places for one crop; a fully connected layer has to follow")
    found = found.flatten(1)
    if expected.shape != found.shape or (expected - found).abs().max() > AGREEMENT * expected.abs().max():
        raise DenseError(
            f"{type(model).__name__}: does more than its layers, behind the last of them; only a chain of layers can "
            "be converted"
        )
