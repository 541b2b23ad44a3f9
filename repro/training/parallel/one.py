"""How the ranks share a step. This is the simplest way, one process that does all, and the pattern for the others.

A mode decides four things: which part of the net a rank keeps (`split`), which pictures of a batch it reads (`pieces`),
how it gets gradients that are those of the mean loss over the whole batch (`work`), and which samples it answers for
when errors are counted, so that each is counted once. What is split stands in `shards`, through which a checkpoint sees
the whole net: one written in one mode goes on in another.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from repro.training.parallel.group import Group, ParallelError
from repro.training.parallel.shards import Shards
from repro.training.parallel.split import Draw, share_dropout, slice_of
from repro.training.parallel.wire import Wire

Loss = Callable[[Tensor, Tensor], Tensor]
Context = Callable[[], AbstractContextManager[Any]]


class Piece(NamedTuple):
    """One forward and backward pass of a rank: the pictures `rows` of the global batch, of which `pass_rows` are in it.

    With accumulation the global batch goes through in several passes, each in turn shared among the ranks.
    """

    rows: slice
    pass_rows: slice
    last: bool = True


class Answer(NamedTuple):
    """What a rank measured in training: mean loss, logits and labels of what it answers for; there may be none."""

    loss: Tensor
    logits: Tensor
    labels: Tensor


class OneProcess:
    """Every picture and the whole net in one process."""

    mode = "none"

    def __init__(self, group: Group, accumulate: int = 1) -> None:
        self.group, self.accumulate, self.wire, self.draw = group, accumulate, Wire(group), Draw()
        self.shards = Shards(group)
        self.called: nn.Module = nn.Identity()

    # What a rank keeps.

    def split(self, model: nn.Module) -> nn.Module:
        """The part of the net this rank trains, with the names of the whole net's layers."""
        return model

    def prepare(self, called: nn.Module) -> nn.Module:
        """Get ready to train and measure by calling `called`, which is that part in the form that suits the device."""
        if self.accumulate > 1:
            called = share_dropout(called, self.draw, lambda width: slice(0, width))
        self.called = called
        return called

    def compile(self) -> None:
        """Compile what was prepared; raises ParallelError where the exchanges are inside it."""
        if self.mode not in ("none", "data"):
            raise ParallelError(f"--compile goes with one process or --parallel data, not with {self.mode}")
        self.called.compile()

    def whole(self, name: str, tensor: Tensor | None) -> Tensor | None:
        """On rank 0 the whole net's tensor `name`; the others, which send their part of it, may get None.

        `tensor` is this rank's part of it, or of what the optimizer remembers of it, or None where it has none.
        """
        return self.shards.whole(name, tensor, self.wire)

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of the whole net's tensor `name`."""
        return self.shards.part(name, tensor)

    @property
    def is_split(self) -> bool:
        """Whether no rank has the whole net."""
        return bool(self.shards.rows or self.shards.distributed)

    # What a rank does in a step.

    def pieces(self, total: int) -> list[Piece]:
        """The passes of this rank over a batch of `total` pictures: fewer where that is too small for all of them."""
        count = min(self.accumulate, total)
        passes = [slice_of(total, count, i) for i in range(count)]
        return [Piece(self.own_rows(p), p, p is passes[-1]) for p in passes]

    def own_rows(self, rows: slice) -> slice:
        """This rank's share of some rows of a batch."""
        return rows

    def work(self, images: Tensor, labels: Tensor, piece: Piece, loss: Loss, context: Context) -> Answer:
        """Forward and backward over one piece, adding to the gradients; `labels` are the whole batch's.

        `context` is the precision of the forward pass.
        """
        self.draw.total, self.draw.rows = len(labels), piece.rows
        with context():
            logits = self.called(images)
            mean = loss(logits, labels[piece.rows])
        (mean * (len(logits) / len(labels))).backward()
        return Answer(mean.detach(), logits.detach(), labels[piece.rows])

    def answer(self, images: Tensor, labels: Tensor, piece: Piece, views: int = 1) -> tuple[Tensor, Tensor]:
        """In evaluation: logits, of all `views` of each picture in a row, and labels of what this rank answers for."""
        return self.called(images), labels[piece.rows]

    def describe(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"mode": self.mode, "world_size": self.group.world_size, "accumulate": self.accumulate}
