"""What passes between the ranks, and the only door it passes through: each exchange is counted and can be timed.

Each operation is a function of autograd: forward it sends activities, backward the gradients of exactly what it sent go
back the same way. Ranks that compute different things from a gathered tensor each hold a part of its gradient, which is
summed at the owner, in the order of the ranks, so that a run repeats to the bit.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from repro.training.parallel.group import Group

Phase = Literal["forward", "backward", "step"]


@dataclass(frozen=True)
class Event:
    """One exchange as a rank saw it: `start` and `stop` in seconds of the machine's steady clock, `sent` in bytes.

    A step of training is an event too, with nothing sent.
    """

    what: str
    phase: Phase
    start: float
    stop: float
    sent: int


@dataclass
class Wire:
    """The exchanges of one rank. `sent` counts the bytes it sent, by (what, phase)."""

    group: Group
    sent: Counter[tuple[str, Phase]] = field(default_factory=Counter)
    trace: list[Event] | None = None
    """Every exchange, while this is a list."""

    def swap(self, outgoing: dict[int, Tensor], incoming: dict[int, Tensor], what: str, phase: Phase) -> None:
        """Send each rank in `outgoing` its tensor and fill those of `incoming`; tensors without numbers stay home.

        Both ends must mean the same shape, type and layout.
        """
        start = time.perf_counter()
        ops = [dist.P2POp(dist.isend, _bytes(t), rank) for rank, t in outgoing.items() if t.numel()]
        sent = sum(op.tensor.numel() for op in ops)
        ops += [dist.P2POp(dist.irecv, _bytes(t), rank) for rank, t in incoming.items() if t.numel()]
        for work in dist.batch_isend_irecv(ops) if ops else ():
            work.wait()
        self.note(what, phase, start, sent)

    def note(self, what: str, phase: Phase, start: float, sent: int) -> None:
        """Count an exchange that began at `start` and has just ended."""
        if sent:
            self.sent[what, phase] += sent
        if self.trace is not None:
            self.trace.append(Event(what, phase, start, time.perf_counter(), sent))

    def gather(self, own: Tensor, dim: int, sizes: Sequence[int], what: str) -> Tensor:
        """The ranks' tensors side by side along `dim`, of `sizes` there: each rank then computes something of its own.

        Backward, every rank sends each other one the gradient of that one's part.
        """
        gathered: Tensor = _Gather.apply(own, self, dim, list(sizes), what)
        return gathered

    def gather_same(self, own: Tensor, dim: int, sizes: Sequence[int], what: str) -> Tensor:
        """As `gather`, where each rank then computes the same: backward each has its gradient already, none is sent."""
        gathered: Tensor = _GatherSame.apply(own, self, dim, list(sizes), what)
        return gathered

    def to_first(self, own: Tensor, dim: int, sizes: Sequence[int], what: str) -> Tensor:
        """On rank 0 the ranks' tensors side by side along `dim`; on the others an empty tensor.

        The empty one's sum is their loss: its gradient makes them wait for that of what they sent.
        """
        gathered: Tensor = _ToFirst.apply(own, self, dim, list(sizes), what)
        return gathered

    def with_neighbours(self, own: Tensor, width: int, what: str) -> Tensor:
        """(N, C, …) with the last `width` channels of the rank before and the first of the rank after around it."""
        extended: Tensor = _WithNeighbours.apply(own, self, width, what)
        return extended


def write_trace(events: list[Event], path: Path) -> None:
    """What a rank exchanged, one event in each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(event)) + "\n" for event in events))


def read_trace(path: Path) -> list[Event]:
    """The inverse."""
    return [Event(**json.loads(line)) for line in path.read_text().splitlines()]


def channels_of(x: Tensor, start: int, length: int, dim: int) -> Tensor:
    """A part of `x` along `dim`, dense, and channels-last where it is a batch of maps."""
    return dense(x.narrow(dim, start, length))


def dense(x: Tensor) -> Tensor:
    """`x` as it goes over the wire: both ends know the layout from the number of dimensions."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _room(like: Tensor, dim: int, size: int) -> Tensor:
    shape = [size if i == dim else n for i, n in enumerate(like.shape)]
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _bytes(x: Tensor) -> Tensor:
    """The bytes of a dense tensor in the order they lie in, without a copy."""
    flat = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    return flat.reshape(-1).view(torch.uint8)


def _gathered(own: Tensor, wire: Wire, dim: int, sizes: Sequence[int], what: str) -> Tensor:
    own, group = dense(own), wire.group
    parts = [own if r == group.rank else _room(own, dim, n) for r, n in enumerate(sizes)]
    wire.swap(dict.fromkeys(group.others, own), {r: parts[r] for r in group.others}, what, "forward")
    return torch.cat(parts, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, wire: Wire, dim: int, sizes: list[int], what: str) -> Tensor:
        ctx.wire, ctx.dim, ctx.sizes, ctx.what = wire, dim, sizes, what
        return _gathered(own, wire, dim, sizes, what)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        group: Group = ctx.wire.group
        parts = [dense(p) for p in gradient.split(ctx.sizes, ctx.dim)]
        own = parts[group.rank]
        shares = [own if r == group.rank else torch.empty_like(own) for r in range(group.world_size)]
        outgoing, incoming = ({r: t[r] for r in group.others} for t in (parts, shares))
        ctx.wire.swap(outgoing, incoming, ctx.what, "backward")
        total = shares[0].clone()
        for share in shares[1:]:
            total += share
        return total, None, None, None, None


class _GatherSame(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, wire: Wire, dim: int, sizes: list[int], what: str) -> Tensor:
        ctx.dim, ctx.start, ctx.length = dim, sum(sizes[: wire.group.rank]), sizes[wire.group.rank]
        return _gathered(own, wire, dim, sizes, what)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.narrow(ctx.dim, ctx.start, ctx.length), None, None, None, None


class _ToFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, wire: Wire, dim: int, sizes: list[int], what: str) -> Tensor:
        ctx.wire, ctx.dim, ctx.sizes, ctx.what = wire, dim, sizes, what
        own = dense(own)
        if not wire.group.is_first:
            wire.swap({0: own}, {}, what, "forward")
            ctx.gradient = torch.empty_like(own)
            return own.new_empty(0)
        parts = [own, *(_room(own, dim, n) for n in sizes[1:])]
        wire.swap({}, {r: parts[r] for r in wire.group.others}, what, "forward")
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not ctx.wire.group.is_first:
            ctx.wire.swap({}, {0: ctx.gradient}, ctx.what, "backward")
            return ctx.gradient, None, None, None, None
        parts = [dense(p) for p in gradient.split(ctx.sizes, ctx.dim)]
        ctx.wire.swap({r: parts[r] for r in ctx.wire.group.others}, {}, ctx.what, "backward")
        return parts[0], None, None, None, None


class _WithNeighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, wire: Wire, width: int, what: str) -> Tensor:
        ctx.wire, ctx.width, ctx.what, ctx.channels = wire, width, what, own.shape[1]
        before, after = _neighbours(wire.group)
        outgoing = {r: channels_of(own, 0, width, 1) for r in before}
        outgoing |= {r: channels_of(own, own.shape[1] - width, width, 1) for r in after}
        incoming = {r: torch.empty_like(t) for r, t in outgoing.items()}
        wire.swap(outgoing, incoming, what, "forward")
        return torch.cat([*(incoming[r] for r in before), own, *(incoming[r] for r in after)], 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        before, after = _neighbours(ctx.wire.group)
        width, first = ctx.width, ctx.width * len(before)
        outgoing = {r: channels_of(gradient, 0, width, 1) for r in before}
        outgoing |= {r: channels_of(gradient, first + ctx.channels, width, 1) for r in after}
        incoming = {r: torch.empty_like(t) for r, t in outgoing.items()}
        ctx.wire.swap(outgoing, incoming, ctx.what, "backward")
        own = gradient.narrow(1, first, ctx.channels).clone()
        for r in before:
            own[:, :width] += incoming[r]
        for r in after:
            own[:, -width:] += incoming[r]
        return own, None, None, None


def _neighbours(group: Group) -> tuple[list[int], list[int]]:
    """The rank before this one and the one after it, each in a list that is empty at the end."""
    return [r for r in (group.rank - 1,) if r >= 0], [r for r in (group.rank + 1,) if r < group.world_size]
