"""The colours' principal components against NumPy's covariance and singular values, and the noise against its law."""

import numpy as np
import pytest
import torch
from helpers import drawn_set

from repro.data.augmentation import Augmentation, Batches
from repro.data.color import ColorPCA
from repro.data.images import ImageSet
from repro.errors import DataError


def colourful(n: int = 70, side: int = 5) -> ImageSet:
    """Pictures whose channels go together, as photographs' do; more of them than are added up at once."""
    images = drawn_set(n, side, side, 3)
    common = torch.randint(0, 200, (n, side, side, 1), generator=torch.Generator().manual_seed(1))
    mixed = (images.images * torch.tensor([0.25, 0.1, 0.2]) + common).to(torch.uint8)
    images.images.copy_(mixed)
    return images


def test_components_are_those_of_numpys_covariance() -> None:
    """Catches n − 1 for n, 0…255 for 0…1, a mean left in, the smallest first, and a last chunk that is left out."""
    images = colourful()
    values = images.images.reshape(-1, 3).double().numpy() / 255
    pca = ColorPCA.of(images)
    covariance = np.cov(values.T, bias=True)
    made = pca.vectors @ torch.diag(pca.eigenvalues) @ pca.vectors.T
    np.testing.assert_allclose(made, covariance, atol=1e-12)
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    np.testing.assert_allclose(pca.eigenvalues, singular**2 / len(values), rtol=1e-9)
    assert pca.eigenvalues.tolist() == sorted(pca.eigenvalues, reverse=True)


def test_signs_do_not_depend_on_the_solver() -> None:
    """Catches noise that changes its sign with the LAPACK at hand."""
    pca = ColorPCA.of(colourful())
    for vector in pca.vectors.T:
        assert vector[vector.abs().argmax()] > 0


def test_one_channel_and_one_colour() -> None:
    """Catches a grey set taken for three channels, and the square root of an eigenvalue just below zero."""
    grey = drawn_set(9, 4, 4, 1)
    variance = (grey.images.double() / 255).var(correction=0).item()
    assert ColorPCA.of(grey).eigenvalues.tolist() == pytest.approx([variance])
    flat = drawn_set(1, 4, 4, 3)
    flat.images.fill_(77)
    assert ColorPCA.of(flat).shifts(torch.ones(1, 3), "code").abs().max() < 1e-6
    with pytest.raises(DataError, match="no pictures, so no colours"):
        ColorPCA.of(drawn_set(0, 4, 4, 3))


def test_shifts_by_hand() -> None:
    """Catches rows for columns among the eigenvectors, α on the wrong one, and √λ where λ is printed."""
    vectors = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    pca = ColorPCA(torch.tensor([0.25, 0.04, 0.01], dtype=torch.float64), vectors)
    alphas = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -2.0]])
    printed = [[0.15, 0.2, 0.0], [-0.032, 0.024, 0.0], [0.0, 0.0, -0.02]]
    np.testing.assert_allclose(pca.shifts(alphas), printed, atol=1e-7)
    deviations = [[0.3, 0.4, 0.0], [-0.16, 0.12, 0.0], [0.0, 0.0, -0.2]]
    np.testing.assert_allclose(pca.shifts(alphas, "code"), deviations, atol=1e-7)


def test_noise_has_the_covariance_that_the_formula_says() -> None:
    """Catches one α for all three components, a uniform instead of a normal one, and noise that is not drawn anew."""
    images = colourful()
    pca, n = ColorPCA.of(images), 20_000
    drawn = {}
    for convention, power in (("paper", 2), ("code", 1)):
        noisy = Augmentation(color_noise=0.1, color_noise_convention=convention)  # type: ignore[arg-type]
        batches = Batches(images, (0.5,) * 3, (0.5,) * 3, augmentation=noisy, pca=pca)
        color = batches.draw(torch.arange(n), 4, 0).color
        assert color is not None
        drawn[convention] = color
        along = color.double() @ pca.vectors  # uncorrelated, each with its own variance
        expected = 0.01 * pca.eigenvalues**power
        np.testing.assert_allclose(along.var(0), expected, rtol=5 * np.sqrt(2 / n))
        assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 5 / np.sqrt(n)
        kurtosis = (along**4).mean(0) / along.var(0) ** 2
        np.testing.assert_allclose(kurtosis, 3, atol=5 * np.sqrt(24 / n))
        other = batches.draw(torch.arange(n), 4, 1).color
        assert other is not None
        assert not torch.equal(other, color)
    assert drawn["paper"].std() < drawn["code"].std()


def test_the_unit_decides_how_strong_the_printed_noise_is() -> None:
    """Catches a docstring that says otherwise: in 0…255 the printed αλ is 255 times what it is in 0…1, in levels."""
    pca = ColorPCA.of(colourful())
    levels = ColorPCA(pca.eigenvalues * 255**2, pca.vectors)
    alpha = torch.tensor([[0.1, 0.0, 0.0]])
    ratio = levels.shifts(alpha) / (255 * pca.shifts(alpha))
    np.testing.assert_allclose(ratio, 255, rtol=1e-5)
    np.testing.assert_allclose(levels.shifts(alpha, "code"), 255 * pca.shifts(alpha, "code"), rtol=1e-5)
