"""Running a net again only where a change of the image reaches: the cone of units whose receptive fields meet it.

The net is run once on the clean image and what each layer read is kept. For a window of changed pixels, interval
arithmetic says which units of each layer read any of it: their rows and columns grow by the kernel and shrink by the
stride. Only these are computed, from a piece of the layer's clean input into which the changed units are pasted, with
zeros (for a maximum, −∞) around it only where the map itself ends. Where the cone has grown to the whole map, and from
the first layer on that is not known here, the layers run as they are. Chapter 18.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.describe import POINTWISE
from repro.models.layers import RoundUpConv2d, SparseConv2d, TrainableSubsampling
from repro.models.summary import weights_per_position
from repro.progress import track
from repro.receptive_field import Slide, slides
from repro.receptive_field.reach import Reach, classes
from repro.receptive_field.windows import Ints
from repro.visualization.probe import ProbeError

Axes = tuple[Slide, Slide]
Place = tuple[Reach, Reach]  # down and across
Run = Callable[[Tensor], Tensor]
CLASSES = 3  # of cones along an axis: more would compute less, in smaller batches, each of which reorders the weights
HEAD_SHARE = 4  # of the memory, one part for maps that wait for the fully connected layers


class ConeError(ProbeError):
    """A net that is no chain of layers from the image to its output."""


@dataclass
class Call:
    """One layer of the chain."""

    name: str
    layer: nn.Module
    input_shape: tuple[int, ...]
    """(C, H, W) or (features,): of one image, as `output_shape`."""
    output_shape: tuple[int, ...]
    pointwise: bool
    """Whether each unit reads its own place alone."""
    input: Tensor | None = None
    """What it read of the clean image, unless it is pointwise: (1, C, H, W), with the padding where it slides."""
    windows: Axes | None = None
    run: Run | None = None
    """The layer without padding, where it slides."""


@dataclass
class Cone:
    """A net and a clean image, of which windows can be changed: made by `trace_cone`."""

    calls: list[Call]
    logits: Tensor
    """(1, K)."""
    maps: Tensor
    """(1, C, H, W): of the layer whose map is summed."""
    at: int
    """The number of that layer."""
    head: int
    """The number of the first layer behind the maps."""
    last_maps: Tensor
    """(1, C, H, W): what the head reads."""


def sliding(layer: nn.Module) -> tuple[Axes, Run, float] | None:
    """The windows of a layer, what computes it without padding, and what its padding holds; None if not known here."""
    forward = type(layer).forward
    if isinstance(layer, nn.Conv2d) and forward in (nn.Conv2d.forward, RoundUpConv2d.forward):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        conv = layer

        def convolve(x: Tensor) -> Tensor:
            return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)

        return slides(conv.kernel_size, conv.stride, conv.padding, conv.dilation), convolve, 0.0
    if isinstance(layer, nn.MaxPool2d) and forward is nn.MaxPool2d.forward and not layer.return_indices:
        k, s, p, d = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        return slides(k, s, p, d), lambda x: F.max_pool2d(x, k, s, 0, d), -inf
    if isinstance(layer, nn.AvgPool2d) and forward is nn.AvgPool2d.forward:
        if layer.ceil_mode or (layer.padding and not layer.count_include_pad):
            return None  # the windows at the border have other divisors
        size, step, by = layer.kernel_size, layer.stride, layer.divisor_override
        return slides(size, step, layer.padding), lambda x: F.avg_pool2d(x, size, step, divisor_override=by), 0.0
    if isinstance(layer, SparseConv2d) and forward is SparseConv2d.forward:
        return slides(layer.kernel_size), layer, 0.0
    if isinstance(layer, TrainableSubsampling) and forward is TrainableSubsampling.forward:
        return slides(layer.BLOCK, layer.BLOCK), layer, 0.0
    return None


def trace_cone(model: nn.Module, image: Tensor, layer: str) -> Cone:
    """Run the clean image (1, C, H, W) and keep what the layers read. Call it inside `untouched`.

    Raises `ConeError`, naming the layer, for a net that is no chain.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[Call] = []
    maps: list[tuple[int, Tensor]] = []
    last, version, before = image, image._version, image

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal last, version, before
        x = inputs[0] if len(inputs) == 1 else None
        if x is None or last._version != version or not same_numbers(x, last):
            raise ConeError(f"{names[module]}: does not read what the layer before it gave; only a chain has a cone")
        if names[module] == layer:
            maps.append((len(calls), output))
        calls.append(describe(names[module], module, x, output))
        before = last if last.ndim == 4 else before
        last, version = output, output._version

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch) for module in leaves]
    try:
        logits = model(image)
    finally:
        for handle in handles:
            handle.remove()
    if logits is not last or logits.ndim != 2:
        raise ConeError(f"{type(model).__name__}: does more than its layers, behind the last; only a chain has a cone")
    if not maps or maps[-1][1].ndim != 4:
        raise ConeError(f"layer {layer}: is none of the chain that gives maps")
    head = next(i for i, call in enumerate(calls) if len(call.input_shape) == 1 or len(call.output_shape) == 1)
    at, found = maps[-1]
    return Cone(calls, logits, found, at, head, before)


def same_numbers(x: Tensor, last: Tensor) -> bool:
    """Whether a layer reads the output before it: itself, or laid out in a row."""
    return x is last or (x.ndim == 2 and last.ndim == 4 and torch.equal(x, last.flatten(1)))


def describe(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> Call:
    """A layer of the chain, with the padding around its clean input where it slides."""
    pointwise = any(type(layer).forward is kind.forward for kind in POINTWISE)
    call = Call(name, layer, tuple(x.shape[1:]), tuple(output.shape[1:]), pointwise)
    if pointwise or x.ndim != 4:
        return call
    known = sliding(layer) if output.ndim == 4 else None
    if known:
        call.windows, call.run, border = known
        around: list[int] = []
        for window, n, units in zip(call.windows, x.shape[2:], output.shape[2:], strict=True):
            end = (units - 1) * window.stride + window.dilation * (window.kernel_size - 1) + 1
            around = [window.padding, max(0, end - window.padding - n), *around]
        x = F.pad(x, around, value=border) if any(around) else x
    call.input = x.contiguous(memory_format=torch.channels_last)
    return call


def insert(into: Tensor, corner: Sequence[Ints], pieces: Tensor, place: Sequence[Reach]) -> None:
    """Write the changed units of pieces (n, C, h, w) into maps (n, C, H, W) that begin at `corner`."""
    slices = []
    for begin, reach, size in zip(corner, place, into.shape[2:], strict=True):
        low, high = np.maximum(reach.first, begin), np.minimum(reach.end, begin + size)
        slices.append(np.stack([low - begin, high - begin, low - reach.start, high - reach.start], 1).tolist())
    for target, piece, (a, z, b, y), (c, x, d, w) in zip(into, pieces, *slices, strict=True):
        if a < z and c < x:
            target[:, a:z, c:x] = piece[:, b:y, d:w]


def cut(clean: Tensor, corner: Sequence[Ints], size: tuple[int, int]) -> Tensor:
    """Pieces (n, C, h, w), channels-last, of a clean map (1, C, H, W)."""
    shape = len(corner[0]), clean.shape[1], *size
    pieces = torch.empty(shape, dtype=clean.dtype, device=clean.device, memory_format=torch.channels_last)
    for piece, top, left in zip(pieces, corner[0].tolist(), corner[1].tolist(), strict=True):
        piece.copy_(clean[0, :, top : top + size[0], left : left + size[1]])
    return pieces


def step(call: Call, x: Tensor, before: Place, after: Place) -> Tensor:
    """A sliding layer for the changed units alone: pieces (n, C, h, w) of its input to pieces of its output."""
    assert call.windows
    assert call.run
    assert call.input is not None
    corner = [reach.start * window.stride for reach, window in zip(after, call.windows, strict=True)]
    pieces = cut(call.input, corner, read_size(call.windows, after))
    shifted = [reach.moved(window.padding) for reach, window in zip(before, call.windows, strict=True)]
    insert(pieces, corner, x, shifted)
    return call.run(pieces)


def read_size(windows: Axes, place: Place) -> tuple[int, int]:
    """What the pieces of a layer's output read of its input, down and across."""
    sizes = [
        (reach.length - 1) * window.stride + window.dilation * (window.kernel_size - 1) + 1
        for reach, window in zip(place, windows, strict=True)
    ]
    return sizes[0], sizes[1]


def whole(clean: Tensor, x: Tensor, place: Place) -> Tensor:
    """Full maps (n, C, H, W): those of the clean image (1, C, H, W), changed where the pieces say so."""
    shape = len(x), *clean.shape[1:]
    maps = torch.empty(shape, dtype=clean.dtype, device=clean.device, memory_format=torch.channels_last).copy_(clean)
    insert(maps, [np.zeros_like(reach.start) for reach in place], x, place)
    return maps


def walk(cone: Cone, place: Place) -> Iterator[tuple[Call, Place | None, Place | None]]:
    """The layers before the head, and the pieces that each reads and gives; None where these are whole maps."""
    now: Place | None = place
    for call in cone.calls[: cone.head]:
        before = now
        if now and call.windows:
            axes = zip(now, call.windows, call.output_shape[1:], strict=True)
            down, across = (reach.through(window, units) for reach, window, units in axes)
            now = down, across
        elif not call.pointwise:
            now = None
        yield call, before, now
        if now and (now[0].length, now[1].length) == call.output_shape[1:]:
            now = None


def run(cone: Cone, x: Tensor, place: Place, unit: int) -> tuple[Tensor, Tensor]:
    """Pieces (n, C, h, w) of the image to the maps that the head reads, (n, C, H, W), and the sums over a map (n,)."""
    sums, clean, after = x, cone.maps[:, unit, None], None
    for number, (call, before, after) in enumerate(walk(cone, place)):
        if before and after and call.windows:
            x = step(call, x, before, after)
        elif before and not call.pointwise:
            assert call.input is not None
            x = call.layer(whole(call.input, x, before))
        else:
            x = call.layer(x)
        if number == cone.at:
            maps = x[:, unit, None]
            sums = total(whole(clean, maps, after) if after else maps)
    return whole(cone.last_maps, x, after) if after else x, sums


def total(maps: Tensor) -> Tensor:
    """The sum over each map (n, 1, H, W), float32 (n,), always in the same order."""
    return maps.float().contiguous().flatten(1).sum(1)


def occlude(cone: Cone, windows: Place, fill: Tensor, unit: int, memory: int) -> tuple[Tensor, Tensor]:
    """The net for every window of rows × columns, filled with (C, 1, 1): logits (n, K), sums over map `unit` (n,).

    A batch has as many windows as `memory` allows, in bytes, beside what the clean run keeps; at least one. The head
    runs when the maps that wait for it take their share.
    """
    columns = len(windows[1].first)
    rest = max(0, memory - kept_bytes(cone))
    most = rest // HEAD_SHARE // head_bytes(cone)
    waiting: list[Tensor] = []
    done: list[Tensor] = []
    sums, order = [], []
    batches = list(plan(cone, windows, rest - rest // HEAD_SHARE))
    for numbers in track(batches, len(batches), "occlusion, batches"):
        place = windows[0].of(numbers // columns), windows[1].of(numbers % columns)
        x = fill.expand(len(numbers), -1, place[0].length, place[1].length)
        maps, found = run(cone, x, place, unit)
        waiting.append(maps)
        sums.append(found)
        order.append(torch.from_numpy(numbers))
        if sum(map(len, waiting)) > most:
            done.append(head(cone, waiting))
    if waiting:
        done.append(head(cone, waiting))
    back = torch.cat(order).argsort().to(fill.device)
    return torch.cat(done)[back], torch.cat(sums)[back]


def head(cone: Cone, waiting: list[Tensor]) -> Tensor:
    """Logits (n, K) in float32 of maps (n, C, H, W), which are taken from the list."""
    x = torch.cat(waiting)
    waiting.clear()
    for call in cone.calls[cone.head :]:
        x = call.layer(x.flatten(1) if len(call.input_shape) == 1 and x.ndim == 4 else x)
    return x.float()


def head_bytes(cone: Cone) -> int:
    """What the head holds of one window: its maps as they wait, put together and in a row, and two layers' features."""
    features = max(prod(call.output_shape) for call in cone.calls[cone.head :])
    return (3 * cone.last_maps.numel() + 2 * features) * cone.last_maps.element_size()


def plan(cone: Cone, windows: Place, memory: int) -> Iterator[Ints]:
    """The numbers of the windows, row by row, in batches whose cones are about as large."""
    deepest = [after for _, _, after in walk(cone, windows) if after][-1]
    rows, columns = (classes(reach.end - reach.first, CLASSES) for reach in deepest)
    for some in rows:
        for others in columns:
            numbers = (some[:, None] * len(windows[1].first) + others).ravel()
            place = windows[0].of(some), windows[1].of(others)
            most = max(1, memory // max(piece_bytes(cone, place), head_bytes(cone)))
            yield from np.split(numbers, range(most, len(numbers), most))


def piece_bytes(cone: Cone, place: Place) -> int:
    """The most that the layers of one window hold at once: what a layer is given, what it reads, and what it gives."""
    most = 0
    for call, before, after in walk(cone, place):
        given = area(call.input_shape, before)
        read = 0
        if call.windows and before and after:
            read = call.input_shape[0] * prod(read_size(call.windows, after))
        elif before and not call.pointwise:
            read = prod(call.input_shape)
        most = max(most, given + read + area(call.output_shape, after))
    return most * cone.maps.element_size()


def area(shape: tuple[int, ...], place: Place | None) -> int:
    """Units of a piece of maps (C, H, W), or of the maps."""
    return shape[0] * place[0].length * place[1].length if place else prod(shape)


def share(cone: Cone, windows: Place) -> float:
    """The multiply-adds of the largest cone, as a part of those of the whole net up to its head."""
    computed = all_of_them = 0
    for call, _, after in walk(cone, windows):
        weights = weights_per_position(call.layer)
        all_of_them += weights * prod(call.output_shape[1:])
        computed += weights * (after[0].length * after[1].length if after else prod(call.output_shape[1:]))
    return computed / max(1, all_of_them)


def kept_bytes(cone: Cone) -> int:
    """What the clean run keeps."""
    return sum(call.input.numel() * call.input.element_size() for call in cone.calls if call.input is not None)
