"""The arithmetic of response normalisation: dividing each unit by a power of the activity around it.

    y_i = x_i / u_i^β,  u_i = k + α Σ_j x_j²        j: the units in the window of i

Krizhevsky, Sutskever & Hinton, NIPS 2012, section 3.3.  The layers are in `normalization`.  Composed of pooling and a
general power, as in a library, it walks through the memory many times and finds its gradient in as many steps again.
Here both passes run in blocks that stay in a processor's caches, with the gradient written out: for an incoming g,

    ∂L/∂x_j = g_j / u_j^β − 2αβ x_j Σ_i g_i x_i / u_i^(β+1)        i: the units whose window holds j
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Reach = tuple[int, int]
"""How many neighbours a window takes in before and after its own place."""

# Numbers of a block. Around five of them are in use at once and should stay in the caches; smaller ones cost more in
# calls than they save. Measured with two threads, 1 MiB of second-level cache each and 32 MiB of third-level cache.
BLOCK = 2**19


@dataclass(frozen=True)
class Response:
    """The constants of the formula, and where its windows lie.

    One window: across the maps of each of `groups` equal groups, for `(N, C, …)`. Two: down and across within each map
    of `(N, C, H, W)`.
    """

    windows: tuple[Reach, ...]
    alpha: float
    beta: float
    k: float
    groups: int = 1

    def normalize(self, x: Tensor) -> Tensor:
        """The formula for `x`, in its shape, dtype and layout. bfloat16 and float16 are computed in float32."""
        if torch.compiler.is_compiling():
            return self.plain(x)
        if not (x.is_contiguous() or x.movedim(1, -1).is_contiguous()):
            x = x.contiguous()
        result: Tensor = _Blockwise.apply(x, self)
        return result

    def plain(self, x: Tensor) -> Tensor:
        """The formula as it stands, for a compiler that makes one kernel of it and finds the gradient itself."""
        maps = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.groups, -1))  # (N, groups, C', …)
        sums = maps.square()
        for axis, (before, after) in enumerate(self.windows, start=1 + len(self.windows)):
            size, behind = sums.shape[axis], sums.ndim - 1 - axis
            padded = F.pad(sums, (0, 0) * behind + (before, after))
            sums = sum(padded.narrow(axis, i, size) for i in range(before + 1 + after))
        return (maps * (self.k + self.alpha * sums) ** -self.beta).flatten(1, 2).to(x.dtype)

    def rows(self, x: Tensor) -> Tensor:
        """`x`, contiguous or channels-last, as a view (rows, axes of the windows…, inner)."""
        n, c, *space = x.shape
        if len(self.windows) == 2:
            return x.view(n * c, *space, 1) if x.is_contiguous() else x.movedim(1, -1)
        places = math.prod(space)
        if x.is_contiguous():
            return x.view(n * self.groups, c // self.groups, places)
        return x.movedim(1, -1).view(n * places * self.groups, c // self.groups, 1)


class _Blockwise(torch.autograd.Function):
    """Forward and backward, block by block. For the backward pass x and w = u^¼ are kept.

    For bfloat16, w is a float16: as small, and with three bits more, which its powers use up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, response: Response) -> Tensor:
        tensors = [x, torch.empty_like(x)]
        if ctx.needs_input_grad[0]:
            wide = torch.promote_types(x.dtype, torch.float32)
            w = torch.empty_like(x, dtype=torch.float16 if x.dtype == torch.bfloat16 else wide)
            ctx.save_for_backward(x, w)
            ctx.response = response
            tensors.append(w)
        for work, *parts in _blocks(response, tensors):
            work.forward(*parts)
        return tensors[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        x, w = ctx.saved_tensors
        if grad_y.stride() != x.stride():
            grad_y = torch.empty_like(x).copy_(grad_y)
        grad_x = torch.empty_like(x)
        for work, *parts in _blocks(ctx.response, [x, w, grad_y, grad_x]):
            work.backward(*parts)
        return grad_x, None


def _blocks(response: Response, tensors: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
    """The same piece of each tensor, as (rows, axes…, inner), with the `_Block` that computes it; piece after piece.

    A piece is made of whole rows, unless one row is more than a block. All have one shape, so that one memory serves
    them: the last reaches back and computes a little again. On a GPU one piece is all: calls are dear there.
    """
    if tensors[0].numel() == 0:
        return
    views = [response.rows(t) for t in tensors]
    count, *axes, inner = views[0].shape
    size = math.prod(axes) * inner  # of a row
    limit = BLOCK if views[0].device.type == "cpu" else count * size
    height, tops = _cut(count, max(1, round(limit / size)))
    width, lefts = _cut(inner, math.ceil(inner / math.ceil(size / limit)))
    work: _Block | None = None
    for top in tops:
        for left in lefts:
            parts = [v.narrow(0, top, height).narrow(-1, left, width) for v in views]
            work = work or _Block(response, parts[0])
            yield work, *parts


def _cut(length: int, most: int) -> tuple[int, list[int]]:
    """Equal pieces, none longer than `most`, that cover a length and overlap as little as can be: size and starts."""
    pieces = math.ceil(length / most)
    size = math.ceil(length / pieces)
    return size, [min(i * size, length - size) for i in range(pieces)]


class _Block:
    """The formula for blocks of one shape, with the memory that it takes laid out once.

    Powers are taken of w = u^¼, two inverse square roots away from u: a general power takes a CPU several times as
    long, and the third, which β = ¾ asks for, next to nothing. The roots are `pow(·, −½)`, which PyTorch 2.15 computes
    to the same bits as `rsqrt`, in three fifths of the time.
    """

    def __init__(self, response: Response, like: Tensor) -> None:
        self.alpha, self.exponent = response.alpha, 4 * response.beta
        self.factor = -2 * response.alpha * response.beta
        self.shape = like.shape
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.narrow = like.dtype != dtype
        # No window needs to reach further than across its axis.
        sizes = like.shape[1:-1]
        self.windows = [(min(b, n - 1), min(a, n - 1)) for (b, a), n in zip(response.windows, sizes, strict=True)]
        # Every term of a window brings a share of k along, so that adding k takes no pass of its own.
        share = response.k / math.prod(before + 1 + after for before, after in self.windows)
        self.share = torch.tensor(share, dtype=dtype, device=like.device)
        self.pool: list[Tensor] = []

    @cached_property
    def squares(self) -> "_WindowSums":
        """Sums of α x², plus k."""
        return _WindowSums(self.shape, self.windows, self.share, self.pool)

    @cached_property
    def claims(self) -> "_WindowSums":
        """Sums over the windows that hold a unit: those of `squares`, mirrored."""
        mirrored = [(after, before) for before, after in self.windows]
        return _WindowSums(self.shape, mirrored, torch.zeros_like(self.share), self.pool)

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Room for x and for a gradient in the precision of the arithmetic."""
        x, gradient = torch.empty(2, *self.shape, dtype=self.share.dtype, device=self.share.device)
        return x, gradient

    def forward(self, x: Tensor, y: Tensor, w: Tensor | None = None) -> None:
        """Sets `y`, and `w` where it is asked for."""
        squares, (root, power) = self.squares, self.squares.scratch
        if self.narrow:
            x = self.wide[0].copy_(x)
        elif w is not None:
            root = w
        torch.addcmul(self.share, x, x, value=self.alpha, out=squares.source)
        torch.pow(squares.units(squares.add().pow_(-0.5)), -0.5, out=root)
        if self.narrow and w is not None:
            w.copy_(root)
        torch.pow(root, self.exponent, out=power)
        if self.narrow:
            y.copy_(x.div_(power))
        else:
            torch.div(x, power, out=y)

    def backward(self, x: Tensor, w: Tensor, grad_y: Tensor, grad_x: Tensor) -> None:
        """Sets `grad_x`."""
        claims, direct, (first, second) = self.claims, self.wide[1], self.claims.scratch
        if self.narrow:
            x, w, grad_y = self.wide[0].copy_(x), first.copy_(w), second.copy_(grad_y)
        torch.pow(w, self.exponent, out=direct)
        torch.div(grad_y, direct, out=direct)  # g / u^β
        u = torch.pow(w, 2, out=first).pow_(2)
        torch.mul(torch.div(x, u, out=u), direct, out=claims.source)  # g x / u^(β+1)
        total = claims.units(claims.add())
        if self.narrow:
            grad_x.copy_(direct.addcmul_(x, total, value=self.factor))
        else:
            torch.addcmul(direct, x, total, value=self.factor, out=grad_x)


class _Sum(NamedTuple):
    """Sums that have been planned: in which memory they will lie, and how many there are."""

    memory: Tensor
    length: int


class _WindowSums:
    """Sums over every window of what is written to `source`, by adding a block to itself, shifted.

    `source` is (rows, axes…, inner); along each axis the memory around it holds `margin` for ever. So a neighbour is
    at one and the same distance wherever a unit lies, and in any layout one addition is one pass over consecutive
    numbers. Windows of 2, 4, 8 … terms are sums of two of half the size, and a window is the sum of those that its
    size's binary digits name: 5 terms take three additions. `pool` is the memory to add in, and may be shared.
    """

    def __init__(self, shape: Sequence[int], windows: Sequence[Reach], margin: Tensor, pool: list[Tensor]) -> None:
        rows, *axes, inner = shape
        padded = [n + before + after for n, (before, after) in zip(axes, windows, strict=True)]
        around = margin.repeat(rows, *padded, inner)
        self.source = around[:, *[slice(before, before + n) for n, (before, _) in zip(axes, windows, strict=True)]]
        self.layout, self.axes, self.pool = (around.shape, around.stride()), axes, pool
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        found, stride = _Sum(around.view(-1), around.numel()), inner
        for n, (before, after) in zip(reversed(padded), reversed(windows), strict=True):
            found = self._plan(found, before + 1 + after, stride)
            stride *= n
        self.total = found.memory[: found.length]
        # Room for two blocks, the first outside of `total`.
        free = [self._free(found)]
        free.append(self._free(_Sum(free[0], 0)))
        self.scratch = [memory[: self.source.numel()].view(self.source.shape) for memory in free]

    def add(self) -> Tensor:
        """The sums, flat; `units` finds the block's among them."""
        for left, right, out in self.steps:
            torch.add(left, right, out=out)
        return self.total

    def units(self, flat: Tensor) -> Tensor:
        """What belongs to the units of the block in memory laid out as the sums are, in the shape of `source`."""
        return flat.as_strided(*self.layout)[:, *[slice(n) for n in self.axes]]

    def _plan(self, source: _Sum, terms: int, stride: int) -> _Sum:
        """Plan the sum of `terms` numbers, `stride` apart."""
        doubled, size = source, 1
        part: _Sum | None = None
        while terms >= 2 * size:
            if terms & size:
                part = self._shifted(doubled, part, size * stride, self._free(doubled, part)) if part else doubled
            doubled = self._shifted(doubled, doubled, size * stride, self._free(doubled, part))
            size *= 2
        return self._shifted(doubled, part, size * stride, doubled.memory) if part else doubled

    def _shifted(self, left: _Sum, right: _Sum, shift: int, out: Tensor) -> _Sum:
        """Plan left + right, shifted by so much. Only where they are one with the left ones may sums replace others."""
        length = right.length - shift
        self.steps.append((left.memory[:length], right.memory[shift : shift + length], out[:length]))
        return _Sum(out, length)

    def _free(self, *needed: _Sum | None) -> Tensor:
        """Memory of the pool that holds nothing needed."""
        taken = [found.memory for found in needed if found]
        for memory in self.pool:
            if not any(memory is other for other in taken):
                return memory
        self.pool.append(self.source.new_empty(math.prod(self.layout[0])))
        return self.pool[-1]
