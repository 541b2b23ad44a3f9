"""How much each pixel of a receptive field counts: the effective receptive field, measured by gradients.

Luo, Li, Urtasun & Zemel, "Understanding the effective receptive field in deep convolutional neural networks", NIPS
2016: the gradient of one unit with respect to the image falls off from the centre of its field like a Gaussian, whose
width grows with the square root of the depth while the field itself grows with the depth; so a unit uses a shrinking
part of what it could see (section 2). Training widens it (section 3.2). Chapter 13 teaches it.

For n layers of kernel k, stride 1 and equal weights the gradient is the n-fold convolution of a box with itself, whose
variance along an axis is n (k² − 1) / 12: 2n/3 for kernels of 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from repro.receptive_field.gradients import layer_output, unit_of
from repro.receptive_field.table import Box, UnitError, full_size, receptive_field

WITHIN_TWO_SIGMA = math.erf(math.sqrt(2.0))  # 95.45 %: what a normal variable does within two standard deviations
SLICE = 8  # images that go through a net at once


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """What one unit's gradient is spread over; positions and lengths in pixels, the centre of pixel 0 at 0.0.

    The Gaussian has the map's own moments, which needs no search and is exact for a stack of equal kernels.
    """

    map: Tensor  # (H, W) float64 on the CPU: each pixel's share of the mean magnitude of the gradient; sums to 1
    box: Box  # the theoretical field, clipped to the image

    @cached_property
    def center(self) -> tuple[float, float]:
        """The map's mean, down and across."""
        down, across = (float(share @ positions) for share, positions in self._axes())
        return down, across

    @cached_property
    def sigma(self) -> tuple[float, float]:
        """The map's standard deviation, down and across."""
        down, across = (
            math.sqrt(share @ (positions - middle) ** 2)
            for (share, positions), middle in zip(self._axes(), self.center, strict=True)
        )
        return down, across

    def _axes(self) -> list[tuple[Tensor, Tensor]]:
        """Down and across: the shares of rows and of columns, and their positions."""
        shares = self.map.sum(1), self.map.sum(0)
        return [(share, torch.arange(len(share), dtype=torch.float64)) for share in shares]

    @property
    def size(self) -> float:
        """The side of the square that has as many pixels as count: those over 4.55 % of the middle of the fit.

        Luo et al. (section 3.1) take two standard deviations to be 1 − 95.45 % of the value at the centre pixel. One
        pixel of a trained net's map may be anything: the mean of the pixels nearest to the centre stands for it.
        """
        rows, cols = ({math.floor(middle), math.ceil(middle)} for middle in self.center)
        peak = self.map[list(rows)][:, list(cols)].mean()
        return math.sqrt(int((self.map > (1 - WITHIN_TWO_SIGMA) * peak).sum()))

    @property
    def ratio(self) -> float:
        """`size` to the side of a square as large as the theoretical field."""
        return self.size / math.sqrt(self.box.height * self.box.width)

    @property
    def radius(self) -> float:
        """How far from `center` the pixels reach that together hold 95.45 % of the gradient."""
        (_, rows), (_, cols) = self._axes()
        offsets = torch.hypot((rows - self.center[0]).view(-1, 1), (cols - self.center[1]).view(1, -1))  # (H, W)
        distances, order = offsets.flatten().sort()
        held = self.map.flatten()[order].cumsum(0)
        return float(distances[torch.searchsorted(held, WITHIN_TWO_SIGMA).clamp(max=len(held) - 1)])

    @property
    def gaussian(self) -> Tensor:
        """The fit at the pixels of `map`, `(H, W)`, scaled to sum to 1 over them."""
        down, across = (
            torch.exp(-0.5 * ((positions - middle) / max(sigma, 1e-9)) ** 2)  # one row or column has no deviation
            for (_, positions), middle, sigma in zip(self._axes(), self.center, self.sigma, strict=True)
        )
        values = torch.outer(down, across)
        return values / values.sum()

    @property
    def overlap(self) -> float:
        """The part of the map's mass that the Gaussian has in the same places: 1 where they are equal."""
        return float(torch.minimum(self.map, self.gaussian).sum())

    def share(self, box: Box) -> float:
        """The part of the gradient that lies in a rectangle of pixels."""
        return float(self.map[max(0, box.top) : max(0, box.bottom), max(0, box.left) : max(0, box.right)].sum())


def effective_receptive_field(
    model: nn.Module,
    layer: str,
    images: Tensor | None = None,
    row: int | None = None,
    col: int | None = None,
    *,
    input_size: int | Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
) -> EffectiveField:
    """The effective field of unit (`row`, `col`) of a module's output, by default the one in the middle.

    The gradient of 1 that Luo et al. put at one unit becomes one of a standard normal number in each of its maps, drawn
    anew for each image; the result is the mean of its magnitude over images and the image's channels. `images` are
    `(N, C, H, W)`, standardised as for the net; without them, `draws` images of standard normal noise (the paper
    averages 20 runs). Real weights, real maxima, evaluation mode; the model is left as it was. `seed` settles all that
    is drawn. Raises `UnknownName` for a layer that is not there, `UnitError` for a unit outside it, or where no
    gradient arrives at any image.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    if images is None:
        images = torch.randn(draws, *full_size(model, input_size), generator=generator)
    table = receptive_field(model, tuple(images.shape[1:]))
    rows, cols = table[layer].output_size
    row, col = rows // 2 if row is None else row, cols // 2 if col is None else col
    box = table.box(layer, row, col).clipped  # raises for a unit outside the layer
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for part in images.split(SLICE):
        image = part.to(like.device, like.dtype).requires_grad_()
        with torch.enable_grad():
            unit = unit_of(layer_output(model, layer, partial(model, image)), layer, row, col)  # (n, channels)
        signal = torch.randn(unit.shape, generator=generator).to(unit)
        (gradient,) = torch.autograd.grad(unit, image, signal)
        total += gradient.abs().sum((0, 1)).double().cpu()
    if not total.sum() > 0:
        raise UnitError(f"no gradient arrives from {layer}: the unit is dead in all of {len(images)} images")
    return EffectiveField(total / total.sum(), box)
