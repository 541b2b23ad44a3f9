"""The receptive fields of a net as a table: `receptive_field(model)`, one row per layer, and what single units read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from repro.errors import ReproError, UnknownName, nearest
from repro.receptive_field.arithmetic import output_size
from repro.receptive_field.export import FieldTableViews
from repro.receptive_field.fields import AxisField, Path, axis_fields, clipped_fields, masks
from repro.receptive_field.trace import InputTooSmall, Node, TraceError, trace
from repro.receptive_field.windows import Ints, slides

Pair = tuple[int, int]  # height and width, or row and column
Steps = tuple[Fraction, Fraction]
DEFAULT_SIDE = 224  # pixels, where a net does not say what it reads


class UnitError(ReproError, IndexError):
    """A unit that a layer does not have."""

    exit_code = 2


@dataclass(frozen=True)
class FieldRow:
    """One layer; every pair is (height, width), and sizes and paddings are in pixels of the image.

    Unit (i, j) reads `size` pixels from pixel `i·effective_stride − effective_padding` on, down and across, at most and
    in the padding too. Strides are fractions, below 1 where maps grow.
    """

    name: str
    kind: str
    kernel_size: Pair
    stride: Steps
    dilation: Pair
    size: Pair
    effective_stride: Steps
    effective_padding: Pair
    output_size: Pair
    aligned: bool = True  # False where the layer joins paths whose fields are not centred on each other


@dataclass(frozen=True)
class Misalignment:
    """A join whose paths do not lie on each other along an axis: `paths` are (layer it comes from, stride, offset).

    The offset is that of the centres of the path's fields from those of the first path, in pixels, in the mean.
    """

    name: str
    axis: str  # height or width
    paths: tuple[tuple[str, Fraction, float], ...]

    def __str__(self) -> str:
        said = (f"{name or 'input'} (every {stride} px, {offset:+g} px)" for name, stride, offset in self.paths)
        return f"{self.name}, {self.axis}: {' and '.join(said)}"


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels or units; `bottom` and `right` are the first ones outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass(frozen=True)
class UnitBox:
    """What one unit reads: `unclipped` by the arithmetic, padding included, `clipped` around the real pixels alone."""

    unclipped: Box
    clipped: Box


@dataclass(frozen=True)
class FieldTable(FieldTableViews, Sequence[FieldRow]):
    """The layers of a net and their receptive fields; by number, slice or name. Prints, and shows in a notebook."""

    nodes: Sequence[Node] = field(repr=False)
    input_size: tuple[int, int, int]
    shown: tuple[int, ...] = field(repr=False)  # the nodes that have a row

    @cached_property
    def _fields(self) -> tuple[list[AxisField], list[AxisField]]:
        return axis_fields(self.nodes, 0), axis_fields(self.nodes, 1)

    @cached_property
    def _clipped(self) -> tuple[list[tuple[Ints, Ints] | None], list[tuple[Ints, Ints] | None]]:
        return clipped_fields(self.nodes, 0), clipped_fields(self.nodes, 1)

    @cached_property
    def _rows(self) -> dict[str, FieldRow]:
        return {self.nodes[i].name: self._row(i) for i in self.shown}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {self.nodes[i].name: i for i in self.shown}

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[FieldRow]:
        return iter(self._rows.values())

    @overload
    def __getitem__(self, index: int | str) -> FieldRow: ...
    @overload
    def __getitem__(self, index: slice) -> "FieldTable": ...
    def __getitem__(self, index: int | str | slice) -> "FieldRow | FieldTable":
        if isinstance(index, slice):
            return FieldTable(self.nodes, self.input_size, self.shown[index])
        if isinstance(index, str):
            return self._rows[self.nodes[self._node(index)].name]
        return self._rows[self.nodes[self.shown[index]].name]

    def _node(self, layer: str) -> int:
        """The index of a layer's node; raises UnknownName with the nearest names."""
        if layer not in self._index:
            raise UnknownName(f"no layer is called {layer!r}; {nearest(layer, self._index)}")
        return self._index[layer]

    def _row(self, index: int) -> FieldRow:
        node, fields = self.nodes[index], [axis[index] for axis in self._fields]
        sizes, paddings = [], []
        for f, extent in zip(fields, node.extent, strict=True):
            first, last = f.of(extent)
            sizes.append(max(0, int((last - first).max()) + 1))
            there = (first <= last).nonzero()[0]
            paddings.append(-int(first[there[0]]) if there.size else 0)
        down, across = node.windows
        return FieldRow(
            name=node.name,
            kind=node.kind,
            kernel_size=(down.kernel_size, across.kernel_size),
            stride=(down.step, across.step),
            dilation=(down.dilation, across.dilation),
            size=(sizes[0], sizes[1]),
            effective_stride=(fields[0].stride, fields[1].stride),
            effective_padding=(paddings[0], paddings[1]),
            output_size=node.extent,
            aligned=not any(f.paths for f in fields),
        )

    @cached_property
    def misaligned(self) -> tuple[Misalignment, ...]:
        """The joins whose paths are not aligned, and how far they are apart."""
        return tuple(
            Misalignment(self.nodes[i].name, axis, tuple(map(self._path, fields[i].paths)))
            for i in self.shown
            for axis, fields in zip(("height", "width"), self._fields, strict=True)
            if fields[i].paths
        )

    def _path(self, path: Path) -> tuple[str, Fraction, float]:
        return self.nodes[path.source].name, path.stride, path.offset

    def _unit(self, layer: str, row: int, col: int) -> int:
        """The index of the node of a unit; raises UnitError where the layer has no such unit."""
        index = self._node(layer)
        height, width = self.nodes[index].extent
        if not (0 <= row < height and 0 <= col < width):
            raise UnitError(
                f"{layer} has no unit ({row}, {col}): it has {height}×{width}, (0, 0) to ({height - 1}, {width - 1})"
            )
        return index

    def box(self, layer: str, row: int, col: int) -> UnitBox:
        """The rectangle of pixels behind the units at one place of a layer, of all its maps."""
        index = self._unit(layer, row, col)
        sides = []
        for fields, extent, unit in zip(self._fields, self.nodes[index].extent, (row, col), strict=True):
            first, last = fields[index].of(extent)
            sides.append((int(first[unit]), int(last[unit]) + 1) if first[unit] <= last[unit] else (0, 0))
        (top, bottom), (left, right) = sides
        down, across = (axis[index] for axis in self._clipped)
        if down is None or across is None:
            return UnitBox(Box(top, left, bottom, right), _bounds(masks(self.nodes, index, row, col).get(0)))
        rows, columns = ((int(first[i]), int(last[i]) + 1) for (first, last), i in ((down, row), (across, col)))
        return UnitBox(Box(top, left, bottom, right), Box(rows[0], columns[0], rows[1], columns[1]))

    def support(self, layer: str, row: int, col: int) -> Tensor:
        """Exactly the pixels that the units at one place of a layer read: bool `(H, W)`."""
        found = masks(self.nodes, self._unit(layer, row, col), row, col).get(0)
        return torch.zeros(self.input_size[1:], dtype=torch.bool) if found is None else torch.from_numpy(found)

    def boxes(self, layer: str, row: int, col: int) -> dict[str, Box]:
        """What a unit reads in every earlier layer, as a rectangle of that layer's units, and of pixels in `input`."""
        found = masks(self.nodes, self._unit(layer, row, col), row, col)
        names = {i: self.nodes[i].name for i in (0, *self._index.values())}
        return {names[i]: _bounds(found[i]) for i in sorted(found) if i in names and found[i].any()}

    def centers(self, layer: str) -> tuple[Tensor, Tensor]:
        """The centres of the fields of a layer's rows and columns of units, in pixels: two float64 tensors.

        The centre of the first pixel is 0. A unit that reads nothing has none: NaN.
        """
        index = self._node(layer)
        centers = []
        for fields, extent in zip(self._fields, self.nodes[index].extent, strict=True):
            first, last = fields[index].of(extent)
            centers.append(torch.from_numpy(np.where(first <= last, (first + last) / 2, np.nan)))
        return centers[0], centers[1]


def _bounds(mask: Any) -> Box:
    """The smallest rectangle about what is True; an empty one at (0, 0) where nothing is."""
    if mask is None or not mask.any():
        return Box(0, 0, 0, 0)
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def receptive_field(model: nn.Module, input_size: int | Sequence[int] | None = None) -> FieldTable:
    """The receptive field of every layer of a model: a row for each module without children, and each function between.

    `input_size` is that of one image, (C, H, W), (H, W) or the side of a square; without it what the model says as
    `input_size` or `input_sizes[0]`, else 224×224. The model is traced without numbers and left as it was. Raises
    `TraceError` for a model that cannot be traced, a layer or function without a rule (`register_window` gives it one),
    and an input that is too small.
    """
    size = full_size(model, input_size)
    try:
        return _table(trace(model, size), size)
    except InputTooSmall as e:
        smallest = _smallest(model, size)
        advice = f"the smallest square that passes is {smallest}×{smallest}" if smallest else "give a larger input_size"
        raise InputTooSmall(f"{e}; {advice}") from e.__cause__


def _table(nodes: Sequence[Node], size: tuple[int, int, int]) -> FieldTable:
    return FieldTable(nodes, size, tuple(i for i, node in enumerate(nodes) if node.shown and i))


def full_size(model: nn.Module, input_size: int | Sequence[int] | None = None) -> tuple[int, int, int]:
    """(C, H, W) of an image for a model; raises TraceError where that is not what `input_size` is."""
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), 3)
    said: Any = input_size
    if said is None:
        said = getattr(model, "input_size", None) or getattr(model, "input_sizes", (DEFAULT_SIDE,))[0]
    sides = (said, said) if isinstance(said, int) else tuple(said)
    size = (channels, *sides) if len(sides) == 2 else sides
    if len(size) != 3 or any(type(n) is not int or n < 1 for n in size):
        raise TraceError(f"input_size is that of one image, (C, H, W), (H, W) or one side, in pixels; found {said!r}")
    return size[0], size[1], size[2]


def _smallest(model: nn.Module, size: tuple[int, int, int]) -> int | None:
    """The side of the smallest square that no window of the net is too large for, up to 1024 pixels."""

    def passes(side: int) -> bool:
        try:
            trace(model, (size[0], side, side))
        except InputTooSmall:
            return False
        except ReproError:  # it fails for another reason: windows fit
            return True
        return True

    low, high = min(size[1:]), 1024
    if not passes(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


Setting = Sequence[Any]  # ([name,] kernel size, stride, padding[, dilation]); numbers, or (height, width)


def stack(specs: Sequence[Setting], input_size: int | Pair = DEFAULT_SIDE) -> FieldTable:
    """The table of layers on top of each other, without a model: `stack([(11, 4, 2), (3, 2, 0)])`.

    Each layer is (kernel size, stride, padding) or (kernel size, stride, padding, dilation), with a name before it if
    wanted; each number may be a pair, (height, width). Without a name it is called by its number, from 1 on.
    """
    sides = (input_size, input_size) if isinstance(input_size, int) else input_size
    nodes = [Node("input", "input", (sides[0], sides[1]), ())]
    for number, spec in enumerate(specs, 1):
        name, settings = (spec[0], spec[1:]) if isinstance(spec[0], str) else (str(number), spec)
        nodes.append(_layer(name, nodes[-1], len(nodes) - 1, settings))
    return _table(nodes, (1, sides[0], sides[1]))


def _layer(name: str, below: Node, index: int, settings: Setting) -> Node:
    if not 3 <= len(settings) <= 4:
        raise TraceError(f"{name}: a layer is (kernel size, stride, padding[, dilation]), found {tuple(settings)}")
    windows = slides(*settings)
    try:
        height, width = (
            output_size(n, w.kernel_size, w.stride, w.padding, w.dilation)
            for n, w in zip(below.extent, windows, strict=True)
        )
    except ValueError as e:
        raise TraceError(f"{name}: {e}") from e
    return Node(name, "window", (height, width), ((index, windows),), windows=windows)
