"""Photographs that every machine has, for checks that need some: squares out of the two that scikit-learn brings."""

from functools import cache

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F


@cache
def photographs() -> Tensor:
    """A temple and a flower: uint8 (2, 427, 640, 3)."""
    return torch.stack([torch.tensor(image) for image in load_sample_images().images])


@cache
def squares(side: int, size: int) -> Tensor:
    """Squares of `side` pixels out of both, side by side, brought to `size` pixels: uint8 (N, size, size, 3)."""
    cut = photographs().unfold(1, side, side).unfold(2, side, side).flatten(0, 2)  # (N, 3, side, side)
    small = F.interpolate(cut.float(), size=(size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
