"""What one output unit of a layer reads of the layer's input, along one axis.

Units and positions are whole numbers and the rules hold for all of them: position −1 lies in the padding, and so may
the unit that reads it, which the layer above sees as padding of its own. Only `real` knows where the map ends.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from repro.receptive_field.arithmetic import effective_kernel_size

Ints = npt.NDArray[np.int64]
Size = tuple[int, int]  # (height, width)
Border = Literal["zeros", "reflect", "replicate", "circular"]
Mode = Literal["nearest", "nearest-exact", "linear"]

NOTHING: int = np.iinfo(np.int64).min  # stands where there is no position


class Window(Hashable, Protocol):
    """The rule of one layer along one axis."""

    @property
    def step(self) -> Fraction:
        """Positions from the window of one unit to that of the next, in the mean."""

    @property
    def kernel_size(self) -> int:
        """Positions that a unit reads, at most."""

    @property
    def dilation(self) -> int:
        """Positions from one that is read to the next."""

    @property
    def placed(self) -> bool:
        """Whether units at different places read different positions."""

    def taps(self, units: Ints) -> Ints:
        """The positions that units `(n,)` read, also in the padding: `(n, k)`, NOTHING in the place of missing ones."""

    def real(self, positions: Ints, extent: int) -> Ints:
        """Positions as those of a map of `extent`, NOTHING where the padding holds no value of the map."""


def inside(positions: Ints, extent: int) -> Ints:
    """Positions of a map of `extent`, NOTHING for all others."""
    return np.where((positions >= 0) & (positions < extent), positions, NOTHING)


class _Placed:
    """What most windows share: no dilation, padding of zeros, and a place of its own for each unit."""

    dilation: int = 1
    placed: bool = True

    def real(self, positions: Ints, extent: int) -> Ints:
        return inside(positions, extent)


@dataclass(frozen=True)
class Slide(_Placed):
    """A window of `kernel_size` positions, `dilation` apart, that moves by `stride`: convolutions, pools, slices, pads.

    Unit i reads from position `i·stride − padding` on; a negative `padding` crops. `border` is what the padding holds:
    zeros, or positions of the map as `torch.nn.functional.pad` repeats them.
    """

    kernel_size: int = 1
    stride: int = 1
    padding: int = 0
    """Before the first position; what is added after the last one only decides how many units there are."""
    dilation: int = 1
    border: Border = "zeros"

    @property
    def step(self) -> Fraction:
        return Fraction(self.stride)

    def taps(self, units: Ints) -> Ints:
        return units[:, None] * self.stride - self.padding + self.dilation * np.arange(self.kernel_size)

    def real(self, positions: Ints, extent: int) -> Ints:
        if self.border == "circular":
            return positions % extent
        if self.border == "replicate":
            return positions.clip(0, extent - 1)
        if self.border == "reflect" and extent > 1:  # the border itself is not repeated: period 2(n − 1)
            return extent - 1 - np.abs(positions % (2 * extent - 2) - (extent - 1))
        return inside(positions, extent)


@dataclass(frozen=True)
class Spread(_Placed):
    """A transposed convolution: position j is spread over the units `j·stride − padding + dilation·t`, 0 ≤ t < k."""

    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def step(self) -> Fraction:
        return Fraction(1, self.stride)

    def taps(self, units: Ints) -> Ints:
        reached = units[:, None] + self.padding - self.dilation * np.arange(self.kernel_size)
        return np.where(reached % self.stride == 0, reached // self.stride, NOTHING)


@dataclass(frozen=True)
class Share(_Placed):
    """Adaptive pooling of `positions` to `units`: unit i reads ⌊i·n/m⌋ … ⌈(i + 1)·n/m⌉ − 1, windows that may differ."""

    positions: int
    units: int

    @property
    def step(self) -> Fraction:
        return Fraction(self.positions, self.units)

    @property
    def kernel_size(self) -> int:
        step = self.step
        return max(ceil((i + 1) * step) - i * step.numerator // step.denominator for i in range(step.denominator))

    def taps(self, units: Ints) -> Ints:
        first = units * self.positions // self.units
        end = -(-(units + 1) * self.positions // self.units)
        taps = first[:, None] + np.arange(self.kernel_size)
        return np.where(taps < end[:, None], taps, NOTHING)


@dataclass(frozen=True)
class Whole:
    """Every unit reads all `positions`: linear layers, normalisation over the map; of one position, broadcasting."""

    positions: int

    step = Fraction(1)
    dilation = 1
    placed = False

    @property
    def kernel_size(self) -> int:
        return self.positions

    def taps(self, units: Ints) -> Ints:
        return np.broadcast_to(np.arange(self.positions), (len(units), self.positions))

    def real(self, positions: Ints, extent: int) -> Ints:
        return inside(positions, extent)


@dataclass(frozen=True)
class Resample(_Placed):
    """Interpolation of `positions` to `units`, whose distance is `step` positions.

    Computed in fractions, where PyTorch rounds: a unit that falls on a position reads that one alone. At the border a
    unit reads what the map has; units beyond the border, which do not exist, go on as inside.
    """

    positions: int
    units: int
    mode: Mode
    step: Fraction
    align_corners: bool = False

    @property
    def kernel_size(self) -> int:
        return 2 if self.mode == "linear" else 1

    def taps(self, units: Ints) -> Ints:
        a, b = self.step.numerator, self.step.denominator
        if self.mode == "linear":
            # The unit's place in the map is place / scale.
            place, scale = (units * a, b) if self.align_corners else ((2 * units + 1) * a - b, 2 * b)
            taps = np.stack([place // scale, -(-place // scale)], axis=1)
        else:
            taps = (units * a // b if self.mode == "nearest" else (2 * units + 1) * a // (2 * b))[:, None]
        exists = (units >= 0) & (units < self.units)
        return np.where(exists[:, None], taps.clip(0, self.positions - 1), taps)


SAME = Slide()  # the unit at the same place
Windows = tuple[Window, Window]  # down and across
BOTH_SAME: Windows = (SAME, SAME)
Rule = Callable[[nn.Module, Size, Size], Windows]  # layer, input and output size -> its windows

_RULES: dict[type[nn.Module], Rule] = {}


def register_window(*layer_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Enter what the units of a kind of layer read: a function of the layer and its input and output `(H, W)`.

    What happens inside such a layer is then not looked at. It holds for subclasses too, as long as they keep `forward`.
    A layer whose output has no places gives `Whole` windows; one whose units read their own place only, `BOTH_SAME`.
    """

    def enter(rule: Rule) -> Rule:
        for layer_type in layer_types:
            _RULES[layer_type] = rule
        return rule

    return enter


def rule_of(layer: nn.Module) -> Rule | None:
    """The registered rule of a layer; None where there is none, or a subclass computes something of its own."""
    known = next((kind for kind in type(layer).__mro__ if kind in _RULES), None)
    return _RULES[known] if known and type(layer).forward is known.forward else None


@lru_cache(maxsize=4096)
def connections(window: Window, units: int, positions: int) -> npt.NDArray[np.float32]:
    """1 where a unit reads a position of the map, else 0: `(units, positions)`."""
    taps = window.taps(np.arange(units))
    real = np.where(taps == NOTHING, NOTHING, window.real(taps, positions))
    matrix = np.zeros((units, positions), np.float32)
    unit, tap = np.nonzero(real != NOTHING)
    matrix[unit, real[unit, tap]] = 1
    return matrix


def pair(value: Any) -> Size:
    """A setting down and across: 3, (3,) and (3, 3) are the same."""
    return (int(value[0]), int(value[-1])) if isinstance(value, tuple | list) else (int(value), int(value))


def slides(kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> tuple[Slide, Slide]:
    """The windows of a convolution or pool by PyTorch's settings: numbers, pairs, or for `padding` "same" or "valid".

    Where "same" needs an odd number of zeros, PyTorch puts the odd one after the map.
    """
    kernels, dilations = pair(kernel_size), pair(dilation)
    if isinstance(padding, str):
        spans = (effective_kernel_size(k, d) for k, d in zip(kernels, dilations, strict=True))
        padding = tuple((span - 1) // 2 if padding == "same" else 0 for span in spans)
    down, across = (Slide(*axis) for axis in zip(kernels, pair(stride), pair(padding), dilations, strict=True))
    return down, across
