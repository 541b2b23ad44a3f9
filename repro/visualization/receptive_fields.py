"""The receptive-field explorer: what a unit of a net reads, of the image and of every layer between.

The page gets the net's graph and, for each edge and axis, which units of the lower layer a unit reads: as four
numbers where those are the windows of a convolution or pooling, and position by position where they are not. The
rest is worked out in the browser (`receptive_field_arithmetic.js`). Chapter 13.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from repro.errors import DataError
from repro.receptive_field import FieldRow, FieldTable, Slide, Whole, Window, receptive_field
from repro.receptive_field.fields import AxisField, axis_fields
from repro.receptive_field.windows import connections
from repro.visualization.explorer import Explorer

MODULES = (
    "elements",
    "convolution_arithmetic",
    "receptive_field_arithmetic",
    "receptive_field_grids",
    "receptive_field_builder",
)

# control -> (smallest, largest). Whatever is set, the first layer fits: there is always something to show.
BUILDER_LIMITS: Mapping[str, tuple[int, int]] = {
    "image": (8, 48),
    "layers": (1, 4),
    "kernel": (1, 7),
    "stride": (1, 4),
    "padding": (0, 3),
}
_START = ((3, 1, 1), (2, 2, 0), (3, 1, 1), (2, 2, 0))


def receptive_field_explorer(model: nn.Module, input_size: int | Sequence[int] | None = None) -> Explorer:
    """The layers of a model as grids: a unit is chosen with mouse, finger or keys, and all that it reads is lit.

    Layers whose units read their own place alone (activations, normalisation, dropout) have no grid of their own;
    convolutions, linear layers and joins do. `input_size` and what is raised are those of
    `repro.receptive_field.receptive_field`; a model without any layer to draw is a DataError.
    """
    return Explorer("receptive_field_explorer", {"net": net_of(receptive_field(model, input_size))}, imports=MODULES)


def net_of(table: FieldTable) -> dict[str, Any]:
    """A table's graph as `receptive_field_arithmetic.js` describes it: the image is 0, layers count from 1."""
    fields = axis_fields(table.nodes, 0), axis_fields(table.nodes, 1)
    rows = dict(zip(table.shown, table, strict=True))
    place = {0: 0}  # node of the table -> node of the page
    layers: list[dict[str, Any]] = []
    for index, node in enumerate(table.nodes[1:], 1):
        edges: list[list[Any]] = []
        for source, windows in node.edges:
            sizes = zip(windows, node.extent, table.nodes[source].extent, strict=True)
            edge = [place[source], *(_reads(*axis) for axis in sizes)]
            if edge not in edges:  # two paths that differ in activations alone
                edges.append(edge)
        row = rows.get(index)
        if len(edges) == 1 and edges[0][1:] == [None, None] and not (row and _mixes_channels(row)):
            place[index] = edges[0][0]
            continue
        layer: dict[str, Any] = {"units": list(node.extent), "from": edges}
        if row:
            reach = [_reach(axis[index], n) for axis, n in zip(fields, node.extent, strict=True)]
            layer |= _facts(row) | {"field": reach}
        layers.append(layer)
        place[index] = len(layers)
    if not any("name" in layer for layer in layers):
        raise DataError("receptive-field explorer: the model has no layer that reads more than its own place")
    return {"input": list(table.input_size[1:]), "layers": layers}


def _mixes_channels(row: FieldRow) -> bool:
    """A 1×1 convolution or a linear layer on a single place reads no other places, and is a layer all the same."""
    return any(word in row.kind.lower() for word in ("conv", "linear"))


def _facts(row: FieldRow) -> dict[str, Any]:
    def numbers(pair: Sequence[int | Fraction]) -> list[int | str]:
        return [int(n) if n == int(n) else str(n) for n in pair]

    return {
        "name": row.name,
        "kind": row.kind,
        "kernel": numbers(row.kernel_size),
        "stride": numbers(row.stride),
        "dilation": numbers(row.dilation),
        "size": numbers(row.size),
        "step": numbers(row.effective_stride),
        "padding": numbers(row.effective_padding),
        "aligned": row.aligned,
    }


def _reads(window: Window, units: int, positions: int) -> list[Any] | None:
    """What `units` read of `positions` along one axis: None, four numbers, or runs (first and last) for each unit."""
    if units == positions and (window == Slide() or (units == 1 and isinstance(window, Whole))):
        return None
    if isinstance(window, Slide) and window.border == "zeros":
        return [window.stride, -window.padding, window.kernel_size, window.dilation]
    if isinstance(window, Whole):
        return [0, 0, window.positions, 1]
    runs = [_runs(np.flatnonzero(line)) for line in connections(window, units, positions)]
    return None if units == positions and runs == [[i, i] for i in range(units)] else runs


def _runs(positions: Any) -> list[int]:
    """Ascending positions as [first, last, first, last, …] of the runs without a gap."""
    if not len(positions):
        return []
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return [int(end) for run in runs for end in (run[0], run[-1])]


def _reach(field: AxisField, units: int) -> list[Any]:
    """First and last pixel of every unit, padding included: [a, b, c] for a·i + b to a·i + c, else a pair per unit."""
    first, last = field.of(units)
    step = int(first[1] - first[0]) if units > 1 else 0
    steps = step * np.arange(units)
    if first[0] <= last[0] and (first == first[0] + steps).all() and (last == last[0] + steps).all():
        return [step, int(first[0]), int(last[0])]
    # A unit that reads nothing: an empty rectangle, as FieldTable.box has it.
    return [[int(f), int(z)] if f <= z else [0, -1] for f, z in zip(first, last, strict=True)]


def receptive_field_builder(layers: Sequence[tuple[int, int, int]] = _START[:3], image: int = 24) -> Explorer:
    """A small net whose layers are set by hand, with the recurrence of the receptive field written out.

    `layers` are where the sliders start, (kernel size, stride, padding) in pixels of one axis, from the image up;
    `image` is the side of the image. Raises ValueError for a start outside the slider's range (`BUILDER_LIMITS`). A
    layer that does not fit is allowed: the picture says so.
    """
    starts = [("image", image), ("layers", len(layers))]
    starts += [pair for layer in layers for pair in zip(("kernel", "stride", "padding"), layer, strict=True)]
    for name, value in starts:
        smallest, largest = BUILDER_LIMITS[name]
        if value not in range(smallest, largest + 1):
            raise ValueError(f"{name} starts at {value!r}: a whole number from {smallest} to {largest} is needed")
    values = {
        "image": image,
        "count": len(layers),
        "settings": [*map(list, layers), *map(list, _START[len(layers) :])],
        "limits": {name: list(limits) for name, limits in BUILDER_LIMITS.items()},
    }
    return Explorer("receptive_field_explorer", values, imports=MODULES)
