"""Receptive fields read upwards: which units of each layer a change of some positions reaches, along one axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from repro.receptive_field.windows import Ints, Slide


@dataclass(frozen=True)
class Reach:
    """Of n changes, the units of a map that each reaches, and a piece of the map that holds them: all int64 (n,).

    The pieces have one length, so that they make a batch; none leaves the map.
    """

    first: Ints
    end: Ints
    """The first unit behind; where nothing is reached, `first`."""
    start: Ints
    """Where the piece begins."""
    length: int
    """Of every piece."""

    @classmethod
    def within(cls, first: Ints, end: Ints, extent: int) -> "Reach":
        """Pieces as long as the longest change, in a map of `extent` units."""
        first = first.clip(0, extent)
        end = end.clip(first, extent)
        length = max(1, int((end - first).max()))
        return cls(first, end, np.minimum(first, extent - length), length)

    def through(self, window: Slide, extent: int) -> "Reach":
        """The units of the next layer, a map of `extent`, whose windows meet a change.

        A dilated window is taken for one without gaps: it may skip what it spans, and is then computed for nothing.
        """
        span = window.dilation * (window.kernel_size - 1)
        first = -(-(self.first + window.padding - span) // window.stride)
        end = (self.end - 1 + window.padding) // window.stride + 1
        return Reach.within(first, np.where(self.first < self.end, end, first), extent)

    def moved(self, by: int) -> "Reach":
        """The same units counted from `by` positions further before the map: from the start of its padding."""
        return Reach(self.first + by, self.end + by, self.start + by, self.length)

    def of(self, changes: Ints) -> "Reach":
        """Of some of the changes, by number."""
        return Reach(self.first[changes], self.end[changes], self.start[changes], self.length)


def classes(lengths: Ints, most: int) -> list[Ints]:
    """The numbers of pieces in at most `most` groups, so cut that with each as long as its group's longest, the sum of
    all lengths is least."""
    values, counts = np.unique(lengths, return_counts=True)

    def cost(cuts: Sequence[int]) -> int:
        return sum(int(counts[a:z].sum() * values[z - 1]) for a, z in pairwise([0, *cuts, len(values)]))

    cuts = min(combinations(range(1, len(values)), min(most, len(values)) - 1), key=cost)
    ends = pairwise([0, *cuts, len(values)])
    return [np.flatnonzero((lengths >= values[a]) & (lengths <= values[z - 1])) for a, z in ends]
