"""What natural images have in common, as a number to measure and as a prior that holds other images near them.

Neighbouring pixels are alike, and amplitudes fall with frequency as 1/f. Chapter 19 dreams with and without.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.visualization.probe import ProbeError

SMOOTH = 1e-3  # keeps the gradient of the total variation finite where neighbours are equal
TINY = 1e-20  # in place of a zero that would be divided by


@dataclass(frozen=True)
class Prior:
    """What holds an image near natural ones, while its score pulls at each pixel with a root mean square of 1.

    `l2` times the pixel pulls it towards the mean (Simonyan et al. 2014); `variation` times the gradient of the total
    variation pulls it towards its neighbours (Mahendran and Vedaldi 2015); with `falloff` p the pull's frequency f is
    weakened by 1/fᵖ, which for p = 1 is how the amplitudes of natural images fall (Field 1987).
    """

    l2: float = 0.0
    variation: float = 0.0
    falloff: float = 0.0

    def direction(self, images: Tensor, pull: Tensor) -> Tensor:
        """Where images (N, C, H, W) go: a score's gradient at a root mean square of 1, and what the prior adds."""
        if self.falloff:
            height, width = pull.shape[2:]
            f = _frequency(height, width).clamp_min(1 / max(height, width)).to(pull)
            pull = torch.fft.irfft2(torch.fft.rfft2(pull) / f**self.falloff, s=(height, width))
        pull = pull / pull.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(TINY)
        if self.l2:
            pull = pull - self.l2 * images
        if self.variation:
            asked = images.detach().requires_grad_()
            pull = pull - self.variation * torch.autograd.grad(total_variation(asked).sum(), asked)[0]
        return pull


PRIORS = {
    "none": Prior(),
    "l2": Prior(l2=0.5),
    "variation": Prior(variation=0.5),
    "spectrum": Prior(falloff=1.0),
}


def total_variation(images: Tensor, beta: float = 1.0) -> Tensor:
    """The sum over pixels of (Δ↓² + Δ→²)^(β/2) of each image: (N, C, H, W) to (N,). The last row and column have no Δ.

    Mahendran and Vedaldi (2015), equation 3; β = 1 is the usual total variation, β = 2 spreads edges out.
    """
    down = images[:, :, 1:, :-1] - images[:, :, :-1, :-1]
    right = images[:, :, :-1, 1:] - images[:, :, :-1, :-1]
    return (down.square() + right.square() + SMOOTH**2).pow(beta / 2).flatten(1).sum(1)


def spectral_slope(images: Tensor) -> Tensor:
    """How fast the amplitudes of each image fall with frequency: (N, C, H, W) to (N,).

    The slope of log amplitude over log frequency, fitted to the means over rings of whole cycles per image from 1 to
    the highest that all directions have. White noise has 0, natural images about −1 (Field 1987). A Hann window takes
    away the step from one edge to the other. Raises `ProbeError` for images that are not square or below 8 pixels.
    """
    side = images.shape[-1]
    if images.ndim != 4 or images.shape[2] != side or side < 8:
        raise ProbeError(f"image: (N, C, H, W) of 8 pixels or more and square is needed, found {tuple(images.shape)}")
    window = torch.hann_window(side, periodic=False, dtype=images.dtype, device=images.device)
    centred = (images - images.mean((2, 3), keepdim=True)) * window[:, None] * window
    amplitude = torch.fft.rfft2(centred).abs().mean(1).flatten(1)
    ring = _frequency(side, side).mul(side).round().long().flatten().to(images.device)
    rings = torch.arange(1, side // 2 + 1, device=images.device)
    means = torch.stack([amplitude[:, ring == r].mean(1) for r in rings.tolist()], 1)
    x, y = rings.to(images.dtype).log(), means.clamp_min(TINY).log()
    x = x - x.mean()
    return (y @ x) / (x @ x)


def _frequency(height: int, width: int) -> Tensor:
    """Cycles per pixel of each coefficient of `rfft2`: (H, W // 2 + 1)."""
    return (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
