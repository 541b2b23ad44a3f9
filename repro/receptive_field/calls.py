"""One call of a function in a traced net, and the outcomes that the rules of `functions` are put together from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repro.errors import ReproError
from repro.receptive_field.layout import NO_PLACES, Layout, reshaped
from repro.receptive_field.windows import BOTH_SAME, SAME, Size, Whole, Window, Windows


class TraceError(ReproError):
    """A net whose receptive fields cannot be found: it cannot be traced, or does something that has no rule."""

    exit_code = 2


@dataclass(frozen=True)
class Value:
    """What is known of a tensor that depends on the image: the node that gave it, and where its map lies in it."""

    node: int
    layout: Layout
    extent: Size  # of the map, also where it lies in a row


@dataclass(frozen=True)
class Outcome:
    """What a call gives: where the map lies now, its size, and which nodes it reads through which windows."""

    layout: Layout
    extent: Size
    edges: tuple[tuple[int, Windows], ...]
    shown: bool = True  # whether the call is a layer for readers of a table, and not only a change of form


@dataclass(frozen=True)
class Call:
    """A function, what it was given and what it returned; `where` names it in errors."""

    name: str
    where: str
    args: tuple[Any, ...]
    output: Any
    find: Callable[[Any], Value | None]  # None for what does not depend on the image

    @property
    def first_output(self) -> Tensor:
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def the(self, x: Any) -> Value:
        """The value of an argument that has to depend on the image."""
        value = self.find(x)
        if value is None:
            raise self.unknown("its first argument does not depend on the image, another one does")
        return value

    def unknown(self, why: str) -> TraceError:
        return TraceError(
            f"{self.where}: no rule says what {self.name} reads: {why}; put it into a module of its own and give its "
            "rule with repro.receptive_field.register_window"
        )

    def windowed(self, x: Any, windows: Windows) -> Outcome:
        """A map `(N, C, H, W)` read through windows."""
        value = self.the(x)
        if value.layout.axes != (x.ndim - 2, x.ndim - 1):
            raise self.unknown("the rows and columns of the map are not its last two dimensions")
        height, width = self.first_output.shape[-2:]
        return Outcome(value.layout, (height, width), ((value.node, windows),))

    def moved(self, x: Any, layout: Layout | None) -> Outcome:
        """The same numbers in other dimensions; shown only where maps are laid out in a row."""
        value = self.the(x)
        if layout is None:
            raise self.unknown(
                f"it takes {tuple(x.shape)} to {tuple(self.first_output.shape)} and mixes places of the map"
            )
        flattened = value.extent != (1, 1) and layout.is_flat and not value.layout.is_flat
        return Outcome(layout, value.extent, ((value.node, BOTH_SAME),), shown=flattened)

    def reshaped(self, x: Any) -> Outcome:
        value, new = self.the(x), self.first_output.shape
        if (
            value.layout == NO_PLACES and len(new) == 4
        ):  # features that become a map: each place of it reads all there is
            edges = ((value.node, spread((1, 1), (new[2], new[3]))),)
            return Outcome(Layout(2, 3), (new[2], new[3]), edges, shown=False)
        return self.moved(x, reshaped(value.layout, x.shape, new, value.extent))

    def over(self, x: Any, dims: Sequence[int], keeps: bool, keeps_dim: bool = False) -> Outcome:
        """A function that reads whole dimensions; if it `keeps` their size, each unit reads its own place there too.

        Else the dimensions go, or stay with size 1 if it `keeps_dim`.
        """
        value = self.the(x)
        axes = value.layout.axes
        gone = {d % x.ndim for d in dims}
        read = [axis in gone if axis is not None else False for axis in axes]
        all_of_it: list[Window] = [Whole(n) if r else SAME for n, r in zip(value.extent, read, strict=True)]
        windows: Windows = (all_of_it[0], all_of_it[1])
        if keeps:
            edges = ((value.node, BOTH_SAME), (value.node, windows)) if any(read) else ((value.node, BOTH_SAME),)
            return Outcome(value.layout, value.extent, edges)
        height, width = (1 if r else n for n, r in zip(value.extent, read, strict=True))
        left = [d for d in range(x.ndim) if d not in gone]
        places = {d: d for d in range(x.ndim)} if keeps_dim else {d: i for i, d in enumerate(left)}
        return Outcome(value.layout.moved(places), (height, width), ((value.node, windows),))

    def joined(self, tensors: Sequence[Tensor]) -> Outcome:
        """Elementwise, with broadcasting: every place reads itself in all the tensors that depend on the image."""
        values = [self.the(t) for t in tensors]
        extent = max(v.extent[0] for v in values), max(v.extent[1] for v in values)
        ndim = self.first_output.ndim
        layouts = [
            v.layout.moved({d: d + ndim - t.ndim for d in range(t.ndim)}) for v, t in zip(values, tensors, strict=True)
        ]
        layout = max(zip(values, layouts, strict=True), key=lambda pair: (pair[0].extent, pair[1] != NO_PLACES))[1]
        for value, own in zip(values, layouts, strict=True):
            for n, m, d, wanted in zip(value.extent, extent, own.axes, layout.axes, strict=True):
                if n not in (1, m) or (n > 1 and d != wanted):
                    raise self.unknown("it sets different places of two maps side by side")
        return Outcome(layout, extent, tuple((v.node, spread(v.extent, extent)) for v in values))

    def gathered(self, tensors: Sequence[Tensor]) -> Outcome:
        """Rows of features that have no places in common: one place, which reads all that each of them has."""
        values = [self.the(t) for t in tensors]
        edges = tuple((v.node, (Whole(v.extent[0]), Whole(v.extent[1]))) for v in values)
        return Outcome(NO_PLACES, (1, 1), edges)


def spread(extent: Size, wanted: Size) -> Windows:
    """One place that is read everywhere along an axis, where there is only one; else the same place."""
    down, across = (SAME if n == m else Whole(1) for n, m in zip(extent, wanted, strict=True))
    return down, across
