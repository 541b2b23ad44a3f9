"""Colour noise along the principal components of a set's own colours (AlexNet, section 4.1, second form).

The paper adds to every pixel of a picture the same [p₁ p₂ p₃][α₁λ₁, α₂λ₂, α₃λ₃]ᵀ, where pᵢ and λᵢ are eigenvectors and
eigenvalues of the covariance matrix of the training set's RGB values and αᵢ is drawn from N(0, 0.1²) for each use of
the picture. Read to the letter that depends on the unit: λ grows with the square of the scale of the pixels and the
noise should grow with the scale itself. With pixels in 0…255 the first αλ of a set of photographs exceeds 255, which no
picture survives, so the printed formula is taken in units of 0…1. What is probably meant is the standard deviation √λ
along each component, with which the unit does not matter; Krizhevsky's code calls that factor so. Chapter 7 computes
both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repro.data.images import ImageSet
from repro.errors import DataError

Convention = Literal["paper", "code"]
_CHUNK = 64  # pictures turned to float64 at once: 100 MB of them at 256×256


@dataclass(frozen=True)
class ColorPCA:
    """Principal components of the colours of a training set, pixels in units of 0…1.

    `eigenvalues` float64 (C,), the largest first; `vectors` float64 (C, C), one eigenvector in each column, the largest
    of its entries positive.
    """

    eigenvalues: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, images: ImageSet) -> "ColorPCA":
        """From every pixel of a set: pass the training split."""
        pixels = images.images
        if len(pixels) == 0:
            raise DataError(f"{images.name}: no pictures, so no colours; give at least one")
        channels = pixels.shape[3]
        total = torch.zeros(channels, dtype=torch.float64, device=pixels.device)
        products = torch.zeros(channels, channels, dtype=torch.float64, device=pixels.device)
        for chunk in pixels.split(_CHUNK):
            values = chunk.reshape(-1, channels).double()  # whole numbers below 2⁵³ all along: the sums are exact
            total += values.sum(0)
            products += values.T @ values
        return cls.from_sums(total, products, pixels.numel() // channels)

    @classmethod
    def from_sums(cls, total: Tensor, products: Tensor, count: int) -> "ColorPCA":
        """From sums over `count` pixels x in 0…255: Σ x, float64 (C,), and Σ x xᵀ, float64 (C, C)."""
        mean = total / count
        covariance = (products / count - torch.outer(mean, mean)) / 255**2
        eigenvalues, vectors = torch.linalg.eigh(covariance.cpu())
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return cls(eigenvalues.flip(0).clamp_min(0), (vectors * largest.sign()).flip(1))

    def shifts(self, alphas: Tensor, convention: Convention = "paper") -> Tensor:
        """What (B, C) draws α add to the channels of B pictures, in units of 0…1.

        `paper`: Σ pᵢ αᵢ λᵢ as printed. `code`: Σ pᵢ αᵢ √λᵢ; the code then divides the picture by 1.1 (1 plus the
        deviation of α), which `Batches` does.
        """
        scale = self.eigenvalues if convention == "paper" else self.eigenvalues.sqrt()
        directions = (self.vectors * scale).T.to(alphas)  # one in each row
        # Written as a sum, not as a product of matrices, whose last bits may depend on how many pictures there are.
        return torch.stack([a[:, None] * d for a, d in zip(alphas.unbind(1), directions, strict=True)]).sum(0)
