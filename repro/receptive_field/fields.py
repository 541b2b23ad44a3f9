"""From what each layer reads of the one before it to what each unit reads of the image.

Upwards, along one axis: the first and the last pixel of every unit, units of the padding included, which gives sizes,
strides and centres. Downwards, on maps: exactly those units of every layer that one unit depends on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.receptive_field.trace import Node
from repro.receptive_field.windows import NOTHING, SAME, Ints, Window, connections

FAR = np.iinfo(np.int64).max // 4  # farther than any pixel: where the fields begin of units that read nothing


@dataclass(frozen=True)
class Path:
    """One way into a join: the node it comes from, pixels between fields, and how far their centres are displaced."""

    source: int
    stride: Fraction
    offset: float  # in pixels from the centres of the first way, in the mean over the units


@dataclass
class AxisField:
    """First and last pixels of the units of a node along one axis; unit i is at index `i − start`."""

    start: int
    first: Ints
    last: Ints
    stride: Fraction
    period: int  # after so many units the windows repeat
    placed: bool  # False where every unit reads the same
    paths: tuple[Path, ...] = ()  # those that do not agree, where the paths of a join do not

    def of(self, extent: int) -> tuple[Ints, Ints]:
        """First and last pixels of the units that there are."""
        return self.first[-self.start :][:extent], self.last[-self.start :][:extent]


def axis_fields(nodes: Sequence[Node], axis: int) -> list[AxisField]:
    """The fields of all nodes along an axis, 0 for height and 1 for width; the first node is the image."""
    ranges = _ranges(nodes, axis)
    fields = [AxisField(ranges[0][0], np.arange(*ranges[0]), np.arange(*ranges[0]), Fraction(1), 1, True)]
    for node, (start, end) in zip(nodes[1:], ranges[1:], strict=True):
        edges = [(source, windows[axis]) for source, windows in node.edges]
        fields.append(_joined([_through(fields[s], w, start, end) for s, w in edges], edges, node.extent[axis]))
    return fields


def _ranges(nodes: Sequence[Node], axis: int) -> list[tuple[int, int]]:
    """For each node the units `start … end − 1` that it has, and those around them that any later unit reads."""
    starts = [0] * len(nodes)
    ends = [node.extent[axis] for node in nodes]
    for i in range(len(nodes) - 1, 0, -1):
        for source, windows in nodes[i].edges:
            low, high = starts[i], ends[i] - 1
            if windows[axis] is not SAME:
                taps = windows[axis].taps(np.arange(low, high + 1))
                there = taps[taps != NOTHING]
                low, high = (int(there.min()), int(there.max())) if there.size else (0, 0)
            starts[source], ends[source] = min(starts[source], low), max(ends[source], high + 1)
    return list(zip(starts, ends, strict=True))


def _through(field: AxisField, window: Window, start: int, end: int) -> AxisField:
    """The fields of units `start … end − 1` that read units of `field` through a window."""
    if window is SAME:
        part = slice(start - field.start, end - field.start)
        return AxisField(start, field.first[part], field.last[part], field.stride, field.period, field.placed)
    taps = window.taps(np.arange(start, end))
    there = taps != NOTHING
    index = np.where(there, taps - field.start, 0)
    first = np.where(there, field.first[index], FAR).min(axis=1)
    last = np.where(there, field.last[index], -FAR).max(axis=1)
    step = window.step
    period = step.denominator * (field.period // np.gcd(step.numerator, field.period))
    return AxisField(start, first, last, field.stride * step, int(period), field.placed and window.placed)


def _joined(ways: list[AxisField], edges: Sequence[tuple[int, Window]], extent: int) -> AxisField:
    """The union of the ways into a node. Ways whose units all read the same have no place and agree with any other."""
    if len(ways) == 1:
        return ways[0]
    placed = [(way, source) for way, (source, _) in zip(ways, edges, strict=True) if way.placed]
    main = placed[0][0] if placed else ways[0]
    field = AxisField(
        main.start,
        np.minimum.reduce([way.first for way in ways]),
        np.maximum.reduce([way.last for way in ways]),
        main.stride,
        lcm(*(way.period for way in ways)),
        bool(placed),
    )
    count = min(extent, field.period)
    paths = tuple(Path(source, way.stride, _offset(way, main, count)) for way, source in placed)
    if any((path.stride, path.offset) != (main.stride, 0) for path in paths):
        field.paths = paths
    return field


def _offset(way: AxisField, main: AxisField, count: int) -> float:
    """Pixels from the centres of one way to those of another, in the mean over one period of units that read any."""
    (first, last), (main_first, main_last) = way.of(count), main.of(count)
    there = (first <= last) & (main_first <= main_last)
    return float((first + last - main_first - main_last)[there].mean() / 2) if there.any() else 0.0


def clipped_fields(nodes: Sequence[Node], axis: int) -> list[tuple[Ints, Ints] | None]:
    """For every node the first and the last real pixel of each of its units along an axis.

    None where one axis does not tell: a unit on the way reads nothing along it, and so nothing along the other either.
    """
    image = np.arange(nodes[0].extent[axis])
    fields: list[tuple[Ints, Ints] | None] = [(image, image)]
    for node in nodes[1:]:
        ways = [_clipped(fields[s], w[axis], node.extent[axis], nodes[s].extent[axis]) for s, w in node.edges]
        there = [way for way in ways if way]
        firsts, lasts = ([way[end] for way in there] for end in (0, 1))
        whole = len(there) == len(ways)
        fields.append((np.minimum.reduce(firsts), np.maximum.reduce(lasts)) if whole else None)
    return fields


def _clipped(below: tuple[Ints, Ints] | None, window: Window, units: int, extent: int) -> tuple[Ints, Ints] | None:
    """The same of units that read a map through a window, from the fields of the map."""
    if below is None or (window == SAME and units == extent):
        return below
    taps = window.taps(np.arange(units))
    read = np.where(taps == NOTHING, NOTHING, window.real(taps, extent))
    there = read != NOTHING
    if not there.any(axis=1).all():
        return None
    read = np.where(there, read, 0)
    return np.where(there, below[0][read], FAR).min(axis=1), np.where(there, below[1][read], -1).max(axis=1)


def masks(nodes: Sequence[Node], index: int, row: int, column: int) -> dict[int, npt.NDArray[Any]]:
    """The units of every earlier node, and the pixels, that a unit depends on: bool maps by the index of the node.

    Exact: padding is nothing, and what a dilated kernel or a large stride leaves out is left out.
    """
    found = {index: np.zeros(nodes[index].extent, np.float32)}
    found[index][row, column] = 1
    for i in range(index, 0, -1):
        mask = found.get(i)
        if mask is None:
            continue
        for source, windows in nodes[i].edges:
            read = _read(mask, windows, nodes[source].extent)
            found[source] = np.maximum(found[source], read) if source in found else read
    return {i: mask > 0 for i, mask in found.items()}


def _read(mask: npt.NDArray[Any], windows: tuple[Window, Window], extent: tuple[int, int]) -> Any:
    if windows == (SAME, SAME) and mask.shape == extent:
        return mask
    for axis, window in enumerate(windows):
        if window != SAME or mask.shape[axis] != extent[axis]:  # a slice from the first position on reads like SAME
            lines = np.flatnonzero(mask.any(axis=1 - axis))
            if not lines.size:
                return np.zeros(extent, np.float32)
            part = slice(int(lines[0]), int(lines[-1]) + 1)  # most of a map is dark: only what is lit is multiplied
            reads = connections(window, mask.shape[axis], extent[axis])[part]
            mask = reads.T @ mask[part] if axis == 0 else mask[:, part] @ reads
    return np.minimum(mask, 1)
