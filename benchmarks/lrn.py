"""Local response normalisation, forward and backward, on the maps of AlexNet's first layer for a batch of 128.

Against `torch.nn.functional.local_response_norm` with the paper's constants, both with freed memory kept. PyTorch has
no kernel for bfloat16 on a CPU: there ours is held against the library in float32 in the same layout, and the casts
that a net would need around it are not counted.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import OURS, Comparison, Side, alternate, require_close, timed
from repro.models.normalization import LocalResponseNorm
from repro.training.device import keep_freed_memory

SHAPE = (128, 96, 55, 55)
GOAL_FLOAT32, GOAL_BF16 = 6.0, 12.0
LOUD = 60.0  # the deviation of activities at which the paper's constants take the loudest down by a half
CHECKED = 4  # pictures that are held against each other


def compare(rounds: int) -> list[Comparison]:
    """Seconds of a forward and a backward pass."""
    keep_freed_memory()
    return [
        row("LRN of conv 1, float32", torch.float32, torch.contiguous_format, GOAL_FLOAT32, rounds),
        row("LRN of conv 1, bf16 channels-last", torch.bfloat16, torch.channels_last, GOAL_BF16, rounds),
    ]


def row(subject: str, dtype: torch.dtype, layout: torch.memory_format, goal: float, rounds: int) -> Comparison:
    """Ours in this precision and layout, the library in float32 and this layout."""
    generator = torch.Generator().manual_seed(0)
    maps, grad = (torch.randn(SHAPE, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    maps.mul_(LOUD).relu_()
    norm, library = layers()
    note = require_same(norm, library, maps[:CHECKED], grad[:CHECKED])
    sides = {OURS: passes(norm, maps, grad), "PyTorch's, float32": passes(library, maps.float(), grad.float())}
    return Comparison(subject, "×".join(map(str, SHAPE)), alternate(subject, sides, rounds), goal, notes=[note])


def layers() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Our layer and the library's function, with the paper's constants; the library divides α by the window's size."""
    ours = LocalResponseNorm()
    alpha = ours.alpha * ours.size
    return ours, partial(F.local_response_norm, size=ours.size, alpha=alpha, beta=ours.beta, k=ours.k)


def passes(work: Callable[[Tensor], Tensor], maps: Tensor, grad: Tensor) -> Side:
    """A side that goes forward and backward."""
    x = maps.detach().requires_grad_()
    return timed(lambda: torch.autograd.grad(work(x), x, grad))


def require_same(
    ours: Callable[[Tensor], Tensor], library: Callable[[Tensor], Tensor], maps: Tensor, grad: Tensor
) -> str:
    """Raise AssertionError unless outputs and gradients agree; bfloat16 keeps 8 bits, so 2^−8 is half a unit of its."""
    low, high = maps.detach().requires_grad_(), maps.detach().float().requires_grad_()
    found, expected = ours(low), library(high)
    tolerance = 2**-8 if maps.dtype == torch.bfloat16 else 1e-6
    outputs = require_close("outputs", found, expected, tolerance)
    gradients = (
        torch.autograd.grad(found, low, grad)[0],
        torch.autograd.grad(expected, high, grad.float())[0],
    )
    return f"{outputs}; {require_close('gradients', *gradients, 2 * tolerance)}"
