"""Local response normalisation: as the AlexNet paper prints it, as its code computes it, and as libraries count it.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section
3.3, and the source of its net #145 (Computer History Museum, 2025).  Chapter 5 teaches it.

    b_i = a_i / (k + α Σ_j a_j²)^β        j: the maps around map i, at the same place

The paper's n counts a window of n // 2 maps on either side, so that an even n adds n + 1 squares; the code and PyTorch
add n, and divide α by n; TensorFlow counts maps on one side. `LRNConstants` turns one into another. Gradients are
written out: with u_i = k + α Σ_j a_j² and incoming g_i,

    ∂L/∂a_j = g_j u_j^−β − 2αβ a_j Σ_i g_i a_i u_i^(−β−1)        i: the maps whose window holds j
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repro.errors import ReproError, nearest

Convention = Literal["paper", "code"]
Reach = tuple[int, int]
"""How many neighbours a window takes in before and after its own place."""

# Floats that one round of a CPU's work covers. A step of the arithmetic reads two such blocks and writes one, and all
# that a round needs should stay in the processor's caches; much smaller ones cost more in calls than they save.
BLOCK = 2**17


class NormalizationError(ReproError, ValueError):
    """Constants of a normalisation that make no sense, or that a convention cannot express."""

    exit_code = 2


@dataclass(frozen=True)
class LRNConstants:
    """One normalisation, whatever convention its constants came in: `from_…` reads one, `as_…` writes one.

    `before` and `after` count the maps of the window beside its own, `alpha` multiplies the plain sum of squares.
    The `as_…` methods raise `NormalizationError` where a convention has no such window.
    """

    before: int
    after: int
    k: float
    alpha: float
    beta: float

    @classmethod
    def from_paper(cls, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> "LRNConstants":
        """The paper's letters: α on the plain sum, n // 2 maps on either side."""
        return cls(*reach(n, "paper"), k, alpha, beta)

    @classmethod
    def from_code(cls, size: int = 5, scale: float = 1e-4, pow: float = 0.75, min_div: float = 2.0) -> "LRNConstants":
        """The names of 2012's layer files: `scale` is divided by `size`, and `size` maps are added."""
        return cls(*reach(size, "code"), min_div, scale / size, pow)

    @classmethod
    def from_pytorch(cls, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> "LRNConstants":
        """`torch.nn.LocalResponseNorm`, with its defaults: the code's convention under other names."""
        return cls.from_code(size, alpha, beta, k)

    @classmethod
    def from_tensorflow(
        cls, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5
    ) -> "LRNConstants":
        """`tf.nn.local_response_normalization`, with its defaults: n = 2 · depth_radius + 1, α on the plain sum."""
        return cls(depth_radius, depth_radius, bias, alpha, beta)

    def as_paper(self) -> dict[str, float]:
        return {"n": 2 * self._radius() + 1, "k": self.k, "alpha": self.alpha, "beta": self.beta}

    def as_code(self) -> dict[str, float]:
        size = self.before + self.after + 1
        if reach(size, "code") != (self.before, self.after):
            raise NormalizationError(f"the code's windows have no {self.before} maps before and {self.after} after")
        return {"size": size, "scale": self.alpha * size, "pow": self.beta, "min_div": self.k}

    def as_pytorch(self) -> dict[str, float]:
        names = {"size": "size", "scale": "alpha", "pow": "beta", "min_div": "k"}
        return {names[name]: value for name, value in self.as_code().items()}

    def as_tensorflow(self) -> dict[str, float]:
        return {"depth_radius": self._radius(), "bias": self.k, "alpha": self.alpha, "beta": self.beta}

    def _radius(self) -> int:
        if self.before != self.after:
            raise NormalizationError(
                f"a window of {self.before} maps before and {self.after} after has no radius; "
                "only the code's convention and PyTorch's have even sizes"
            )
        return self.before


def reach(size: int, convention: Convention) -> Reach:
    """The window of a `size` in a convention; raises NormalizationError where there is no such thing."""
    if convention not in get_args(Convention):
        raise NormalizationError(f"no convention '{convention}'; {nearest(convention, get_args(Convention))}")
    if size < 1:
        raise NormalizationError(f"a window has at least one map, found size {size}")
    return size // 2, size // 2 if convention == "paper" else size - 1 - size // 2


class LocalResponseNorm(nn.Module):
    """Divides each unit by a power of the activity in the maps around it: `(N, C, …)` to the same shape.

    `convention` is how `size` and `alpha` are meant: `paper` as printed, `code` as 2012's code and
    `torch.nn.LocalResponseNorm` have it (α / size, and `size` maps even if that is even). `groups` splits the maps
    into as many equal parts whose border no window crosses; the code of 2012 has two, one on each GPU. In bfloat16 the
    arithmetic is done in float32 and only the result is rounded. For the backward pass nothing but the input is kept.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        *,
        convention: Convention = "paper",
        groups: int = 1,
    ) -> None:
        super().__init__()
        reach(size, convention)  # its checks
        if groups < 1:
            raise NormalizationError(f"the maps form at least one group, found {groups}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.convention, self.groups = convention, groups

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.convention, self.groups)

    def extra_repr(self) -> str:
        constants = f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
        return f"{constants}, convention={self.convention}, groups={self.groups}"


class ResponseNormWithinMap(nn.Module):
    """The same over a `size`×`size` window of the unit's own map, with α / size²: `(N, C, H, W)` to the same shape.

    2012's net has one after its second normalisation (size 5, α 1e-3), the nets for CIFAR-10 before it have it alone.
    """

    def __init__(self, size: int, alpha: float, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        reach(size, "code")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        window = reach(self.size, "code")
        return _normalize(x, _maps, (window, window), self.alpha / self.size**2, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"


def local_response_norm(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    convention: Convention = "paper",
    groups: int = 1,
) -> Tensor:
    """`LocalResponseNorm` as a function; raises NormalizationError unless C is a multiple of `groups`."""
    window = reach(size, convention)
    if x.ndim < 2 or x.shape[1] % groups:
        raise NormalizationError(f"{groups} groups need a batch (N, C, …) with C a multiple; found {tuple(x.shape)}")
    scale = alpha if convention == "paper" else alpha / size
    return _normalize(x, lambda t: _channels(t, groups), (window,), scale, beta, k)


def _channels(x: Tensor, groups: int) -> Tensor:
    """`(N, C, …)`, contiguous or channels-last, as a view (rows, C / groups, inner): windows lie along axis 1."""
    n, c, *space = x.shape
    places = math.prod(space)
    if x.is_contiguous():
        return x.view(n * groups, c // groups, places)
    return x.movedim(1, -1).view(n * places * groups, c // groups, 1)


def _maps(x: Tensor) -> Tensor:
    """`(N, C, H, W)`, contiguous or channels-last, as a view (rows, H, W, inner): windows lie along axes 1 and 2."""
    n, c, h, w = x.shape
    return x.view(n * c, h, w, 1) if x.is_contiguous() else x.movedim(1, -1)


def _normalize(
    x: Tensor, view: Callable[[Tensor], Tensor], windows: tuple[Reach, ...], alpha: float, beta: float, k: float
) -> Tensor:
    """x · u^−β with u = k + α Σ x², over windows along the middle axes of `view(x)`."""
    if not (x.is_contiguous() or x.movedim(1, -1).is_contiguous()):
        x = x.contiguous()
    result: Tensor = _ResponseNorm.apply(x, view, windows, alpha, beta, k)
    return result


class _ResponseNorm(torch.autograd.Function):
    """Forward and backward, block by block; nothing but the input is kept in between."""

    @staticmethod
    def forward(x: Tensor, view: Callable[[Tensor], Tensor], *constants: Any) -> Tensor:
        y = torch.empty_like(x)
        for work, of_x, of_y in _blocks(constants, view(x), view(y)):
            work.forward(of_x, of_y)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.view, *ctx.constants = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if grad_y.stride() != x.stride():
            grad_y = torch.empty_like(x).copy_(grad_y)
        grad_x = torch.empty_like(x)
        for work, *parts in _blocks(ctx.constants, ctx.view(x), ctx.view(grad_y), ctx.view(grad_x)):
            work.backward(*parts)
        return grad_x, *[None] * (1 + len(ctx.constants))


def _blocks(constants: Sequence[Any], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Pieces of all tensors (rows, axes…, inner), cut across rows and inner, each with the `_Block` that computes it.

    `BLOCK` numbers each on a CPU; on other devices one piece is all, for there every call has its price.
    """
    count, *axes, inner = tensors[0].shape
    area = max(1, math.prod(axes))
    limit = BLOCK if tensors[0].device.type == "cpu" else tensors[0].numel()
    width = max(1, min(inner, limit // area))
    height = max(1, limit // (area * width))
    works: dict[torch.Size, _Block] = {}
    for row in range(0, count, height):
        for place in range(0, inner, width):
            parts = [t[row : row + height, ..., place : place + width] for t in tensors]
            shape = parts[0].shape
            if shape not in works:
                works[shape] = _Block(parts[0], *constants)
            yield works[shape], *parts


class _Block:
    """The formula for blocks of one shape, with all the memory that it takes laid out once."""

    def __init__(self, like: Tensor, windows: Sequence[Reach], alpha: float, beta: float, k: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.narrow = like.dtype != self.dtype
        self.empty = partial(torch.empty, like.shape, dtype=self.dtype, device=like.device)
        # No window needs to reach further than across an axis.
        axes = like.shape[1:-1]
        self.windows = [(min(b, n - 1), min(a, n - 1)) for (b, a), n in zip(windows, axes, strict=True)]
        # Every term of a window brings a share of k along, so that adding k takes no pass of its own.
        share = k / math.prod(before + 1 + after for before, after in self.windows)
        self.share = torch.tensor(share, dtype=self.dtype, device=like.device)
        self.pool: list[Tensor] = []
        self.squares = _WindowSums(like.shape, self.windows, self.share, self.pool)
        self.power = self.empty()

    @cached_property
    def shares(self) -> "_WindowSums":
        """Sums over the windows that hold a unit: those of the forward pass, mirrored."""
        mirrored = [(after, before) for before, after in self.windows]
        return _WindowSums(self.power.shape, mirrored, torch.zeros_like(self.share), self.pool)

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        return self.empty(), self.empty()

    def forward(self, x: Tensor, y: Tensor) -> None:
        if self.narrow:
            x = self.wide[0].copy_(x)
        u = self.sum_of_squares(x)
        power = self.to_power(u, spare=u)
        if self.narrow:
            y.copy_(power.mul_(x))
        else:
            torch.mul(x, power, out=y)

    def backward(self, x: Tensor, grad_y: Tensor, grad_x: Tensor) -> None:
        if self.narrow:
            x, grad_y = self.wide[0].copy_(x), self.wide[1].copy_(grad_y)
        u, shares = self.sum_of_squares(x), self.shares.source
        direct = self.to_power(u, spare=shares).mul_(grad_y)  # g u^−β
        torch.mul(direct, x, out=shares).div_(u)  # g a u^(−β−1)
        total = self.shares.sum()  # may overwrite u
        factor = -2 * self.alpha * self.beta
        if self.narrow:
            grad_x.copy_(direct.addcmul_(x, total, value=factor))
        else:
            torch.addcmul(direct, x, total, value=factor, out=grad_x)

    def sum_of_squares(self, x: Tensor) -> Tensor:
        """u = k + α Σ x²."""
        torch.addcmul(self.share, x, x, value=self.alpha, out=self.squares.source)
        return self.squares.sum()

    def to_power(self, u: Tensor, spare: Tensor) -> Tensor:
        """u^−β; for β = 3/4 by two roots, which take a CPU a fraction of the time of a general power."""
        if self.beta != 0.75:
            return torch.pow(u, -self.beta, out=self.power)
        torch.rsqrt(u, out=self.power)
        return self.power.mul_(torch.sqrt(self.power, out=spare))


class _WindowSums:
    """Sums of the terms in `source` over every window, by adding shifted copies of a block to each other.

    `source` is (rows, axes…, inner); along each axis the memory around it holds `margin` for ever. There a neighbour is
    at one and the same distance wherever a unit lies, so each addition is one pass over consecutive numbers in any
    layout. Windows of 2, 4, 8 … terms are sums of two of half the size, and a window is the sum of those that its
    size's binary digits name: 5 terms take three additions. `pool` is scratch memory, shared by sums of one shape.
    """

    def __init__(self, shape: Sequence[int], windows: Sequence[Reach], margin: Tensor, pool: list[Tensor]) -> None:
        rows, *axes, inner = shape
        padded = [n + before + after for n, (before, after) in zip(axes, windows, strict=True)]
        around = margin.repeat(rows, *padded, inner)
        self.source = around[:, *[slice(b, b + n) for n, (b, _) in zip(axes, windows, strict=True)]]
        self.pool, self.memory = pool, around.view(-1)
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        summed, stride = self.memory, inner
        for size, (before, after) in zip(reversed(padded), reversed(windows), strict=True):
            summed = self._plan(summed, before + 1 + after, stride)
            stride *= size
        self.total = summed.as_strided(around.shape, around.stride())[:, *[slice(n) for n in axes]]

    def sum(self) -> Tensor:
        """`total`, in the shape of `source`, whose units are to be set anew before each call."""
        for left, right, out in self.steps:
            torch.add(left, right, out=out)
        return self.total

    def _plan(self, source: Tensor, terms: int, stride: int) -> Tensor:
        """Enter the additions that sum `terms` numbers, `stride` apart; returns where the sums will be."""
        doubled, part, size = source, source[:0], 1
        while True:
            if terms & size:
                part = self._add(doubled, part, size * stride, (doubled, part)) if len(part) else doubled
            if terms < 2 * size:
                return part
            doubled = self._add(doubled, doubled, size * stride, (doubled, part))
            size *= 2

    def _add(self, left: Tensor, right: Tensor, shift: int, live: tuple[Tensor, Tensor]) -> Tensor:
        taken = {t.data_ptr() for t in live}
        free = next((memory for memory in self.pool if memory.data_ptr() not in taken), None)
        if free is None:
            free = torch.empty_like(self.memory)
            self.pool.append(free)
        count = len(right) - shift
        self.steps.append((left[:count], right[shift:], free[:count]))
        return free[:count]
