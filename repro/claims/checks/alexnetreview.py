"""Formulas of a review of the AlexNet paper, written out and held against the layers of the package and of PyTorch."""

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.models.normalization import Convention, LocalResponseNorm

SEED = 0
SIZE, ALPHA, BETA, K = 5, 1.0, 0.75, 2.0  # of this α every term tells


@check
def lrn_as_printed(convention: Convention) -> bool:
    """Whether a convention of response normalisation computes a_i (k + α Σ_j a_j²)^−β, j from i − n/2 to i + n/2."""
    maps = torch.rand(12, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    printed = []
    for i, activity in enumerate(maps):
        first, last = max(0, i - SIZE // 2), min(len(maps) - 1, i + SIZE // 2)
        squares = sum(float(maps[j]) ** 2 for j in range(first, last + 1))
        printed.append(float(activity) * (K + ALPHA * squares) ** -BETA)
    layer = LocalResponseNorm(SIZE, ALPHA, BETA, K, convention=convention)
    return torch.allclose(layer(maps[None, :, None, None]).flatten(), torch.tensor(printed, dtype=torch.float64))


@check
def relu_is_maximum() -> bool:
    """Whether PyTorch's ReLU is max(0, x)."""
    x = torch.linspace(-3, 3, 101)
    return torch.equal(nn.ReLU()(x), torch.stack([torch.zeros_like(x), x]).amax(0))


@check
def softmax_loss_as_printed() -> bool:
    """Whether −1/N Σ log(exp(f_y) / Σ_j exp(f_j)), written out, is PyTorch's cross-entropy."""
    generator = torch.Generator().manual_seed(SEED)
    scores = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (6,), generator=generator)
    terms = [torch.log(f[y].exp() / f.exp().sum()) for f, y in zip(scores, labels, strict=True)]
    return torch.allclose(F.cross_entropy(scores, labels), -torch.stack(terms).sum() / len(scores))


@check
def pools_overlap(model: str) -> bool:
    """Whether the windows of every max-pooling of a net are larger than their stride."""
    pools: list[Any] = [m for m in unbuilt(model).modules() if isinstance(m, nn.MaxPool2d)]
    return bool(pools) and all(pool.kernel_size > pool.stride for pool in pools)


@check
def pools_behind_norm(model: str) -> list[int]:
    """The pools of a net, counted from 1, whose input comes straight from a response normalisation."""
    layers = [m for m in unbuilt(model).modules() if not any(m.children())]
    before = [b for b, layer in itertools.pairwise(layers) if isinstance(layer, nn.MaxPool2d)]
    return [number for number, layer in enumerate(before, 1) if isinstance(layer, LocalResponseNorm)]
