"""In which dimensions of a tensor the rows and columns of a map lie, and where reshaping takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Shape = Sequence[int]


@dataclass(frozen=True)
class Layout:
    """The dimensions of rows and columns: None where a tensor has none, the same one for both where they lie in a row.

    `in_order`: such a row holds nothing but the map's positions, line by line, so that it can be cut into lines again.
    """

    row: int | None
    column: int | None
    in_order: bool = False

    @property
    def axes(self) -> tuple[int | None, int | None]:
        return self.row, self.column

    @property
    def is_flat(self) -> bool:
        return self.row is not None and self.row == self.column

    def moved(self, places: dict[int, int]) -> "Layout":
        """The layout after dimensions have moved: old place -> new place; one that is not in `places` has gone."""
        row, column = (None if axis is None else places.get(axis) for axis in self.axes)
        return Layout(row, column, self.in_order)


MAP = Layout(2, 3)  # (N, C, H, W)
NO_PLACES = Layout(None, None)  # (N, features)


def groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The dimensions larger than 1 of two shapes in the shortest runs that hold equally many numbers, in order."""
    before, after = ([d for d, n in enumerate(shape) if n != 1] for shape in (old, new))
    found = []
    while before or after:
        a, b = [before.pop(0)], [after.pop(0)]
        while prod(old[d] for d in a) != prod(new[d] for d in b):
            if prod(old[d] for d in a) < prod(new[d] for d in b):
                a.append(before.pop(0))
            else:
                b.append(after.pop(0))
        found.append((a, b))
    return found


def reshaped(layout: Layout, old: Shape, new: Shape, extent: tuple[int, int]) -> Layout | None:
    """The layout of a map of `extent` in a tensor that is reshaped from `old` to `new`; None where places get mixed."""
    if layout == NO_PLACES:
        return layout
    new_place: dict[int, list[int]] = {}
    alone: set[int] = set()
    together: dict[int, list[int]] = {}
    for a, b in groups(old, new):
        for d in a:
            new_place[d], together[d] = b, a
            if len(a) == 1:
                alone.add(d)
    if layout.is_flat:
        return _from_row(layout, old, new, extent, new_place, alone)
    axes = [d for d in layout.axes if d is not None and old[d] > 1]
    merged = [d for d in axes if d not in alone]
    if any(len(new_place[d]) != 1 for d in axes) or (merged and merged != axes):
        return None
    if merged:
        places = {new_place[d][0] for d in merged}
        place = places.pop()
        in_order = all(together[d] == axes == sorted(axes) for d in axes)
        return None if places else Layout(place, place, in_order)
    row, column = (_moved(d, old, new, new_place) for d in layout.axes)
    return Layout(row, column)


def _moved(d: int | None, old: Shape, new: Shape, new_place: dict[int, list[int]]) -> int | None:
    """Where a dimension is now; one of size 1 stays in its place if that is still there, else it has gone."""
    if d is None:
        return None
    if old[d] > 1:
        return new_place[d][0]
    return d if d < len(new) and new[d] == 1 else None


def _from_row(
    layout: Layout,
    old: Shape,
    new: Shape,
    extent: tuple[int, int],
    new_place: dict[int, list[int]],
    alone: set[int],
) -> Layout | None:
    """What becomes of positions in a row: still a row, or lines again where nothing else lies among them."""
    d = layout.row
    assert d is not None
    if old[d] == 1:
        return Layout(d, d, layout.in_order) if d < len(new) and new[d] == 1 else NO_PLACES
    places = new_place[d]
    if len(places) == 1:
        return Layout(places[0], places[0], layout.in_order and d in alone)
    if layout.in_order and d in alone and tuple(new[p] for p in places) == extent:
        return Layout(places[0], places[1])
    return None
