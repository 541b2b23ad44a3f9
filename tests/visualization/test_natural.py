"""The statistics of natural images, each against a loop written out, and the priors made of them."""

import math

import numpy as np
import pytest
import torch

from repro.visualization.natural import PRIORS, SMOOTH, Prior, spectral_slope, total_variation
from repro.visualization.probe import ProbeError


def falling(exponent: float, side: int, count: int) -> torch.Tensor:
    """Images (N, 1, side, side) of random phases whose amplitudes fall as 1/f to a power."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.fft2(torch.randn(count, 1, side, side, generator=generator))
    f = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.fftfreq(side) ** 2).sqrt().clamp_min(1 / side)
    return torch.fft.ifft2(spectrum / f**exponent).real


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_total_variation_is_the_sum_written_out(beta: float) -> None:
    """Catches differences to the wrong neighbour, borders that wrap around, and an exponent that is not halved."""
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for image, found in zip(images, total_variation(images, beta), strict=True):
        expected = 0.0
        for channel in image:
            for i in range(3):
                for j in range(4):
                    down, right = channel[i + 1, j] - channel[i, j], channel[i, j + 1] - channel[i, j]
                    expected += (down**2 + right**2 + SMOOTH**2).item() ** (beta / 2)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_flat_image_has_a_finite_gradient() -> None:
    """Catches the root of zero, whose derivative is infinite: a dream from a grey image would be NaN."""
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    total_variation(flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_slope_of_images_made_to_have_it(exponent: float) -> None:
    """Catches a slope of power for one of amplitude (twice as steep), and the leak of an edge in place of the window.

    Without the window the steepest images, whose opposite edges differ most, come out at −1.6 or flatter.
    """
    found = spectral_slope(falling(exponent, 64, 40))[:].mean().item()
    assert found == pytest.approx(-exponent, abs=0.2)


def test_slope_written_out() -> None:
    """Catches rings by another rule than the nearest whole frequency, and a fit through the origin."""
    image = torch.rand(1, 2, 9, 9, dtype=torch.float64)
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 8) for i in range(9)])
    sums: dict[int, list[float]] = {}
    planes = [np.fft.fft2((c - c.mean()) * np.outer(hann, hann)) for c in image[0].numpy()]
    for u in range(9):
        for v in range(5):  # the half of the plane that a real image needs
            radius = round(math.hypot(u if u < 5 else u - 9, v))
            sums.setdefault(radius, []).append(float(np.mean([abs(p[u, v]) for p in planes])))
    rings = range(1, 5)
    expected = np.polyfit(np.log(list(rings)), np.log([np.mean(sums[r]) for r in rings]), 1)[0]
    assert spectral_slope(image).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 7, 7), (1, 3, 8, 9), (3, 8, 8)])
def test_slope_refuses(shape: tuple[int, ...]) -> None:
    """Catches rings of a picture that is not square, whose frequencies mean different things on its two axes."""
    with pytest.raises(ProbeError, match="square is needed"):
        spectral_slope(torch.zeros(shape))


def test_without_a_prior_only_the_length_changes() -> None:
    """Catches one root mean square for a whole batch: an image's step would depend on its neighbours."""
    pull = torch.randn(3, 2, 4, 4) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    found = PRIORS["none"].direction(torch.zeros_like(pull), pull)
    for one, given in zip(found, pull, strict=True):
        assert torch.allclose(one, given / (given**2).mean().sqrt(), atol=1e-6)


def test_priors_pull_as_their_formula_says() -> None:
    """Catches a prior with the wrong sign, weighed before the gradient is normalised, or that forgets its weight."""
    images, pull = torch.randn(1, 1, 5, 5, dtype=torch.float64), torch.randn(1, 1, 5, 5, dtype=torch.float64)
    plain = Prior().direction(images, pull)
    assert torch.allclose(Prior(l2=0.3).direction(images, pull), plain - 0.3 * images)
    change = Prior(variation=0.3).direction(images, pull) - plain
    for i, j in ((0, 0), (2, 3), (4, 4)):
        ends = []
        for sign in (1, -1):
            moved = images.clone()
            moved[0, 0, i, j] += sign * 1e-6
            ends.append(total_variation(moved).item())
        assert change[0, 0, i, j].item() == pytest.approx(-0.3 * (ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_falloff_weakens_each_frequency() -> None:
    """Catches a falloff of power for one of amplitude, and a constant part that is divided by zero or dropped."""
    x = torch.arange(16.0)
    for cycles in (1, 2, 5):
        wave = torch.cos(2 * math.pi * cycles * x / 16).expand(16, 16)[None, None]
        both = 1 + wave  # the constant counts as one cycle per image
        found = Prior(falloff=1.0).direction(torch.zeros_like(both), both)[0, 0]
        ratio = (found.max() - found.min()) / 2 / found.mean()
        assert ratio.item() == pytest.approx(1 / cycles, rel=0.02)
