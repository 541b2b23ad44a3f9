"""Krizhevsky's one weird trick: data parallel convolutions, model parallel fully connected layers.

A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997 (2014), section 4.
Convolutions have most of the arithmetic and few weights, so each rank takes its share of the pictures through all of
them and their gradients are averaged. Fully connected layers have most of the weights and little arithmetic, so each
rank keeps some of their units, and all pictures come by, in one of three ways:

- `a`: each rank sends its features to all others, and one pass takes the whole batch;
- `b`: the ranks take turns: one sends its features to all others, and a pass takes them while the next could send;
- `c`: as many passes, but in each every rank sends an equal share of its features.

The weights change once a step, so all three compute what one process would. Chapter 10 compares them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repro.errors import nearest
from repro.training.parallel.data import averaged_over_ranks
from repro.training.parallel.group import Group, ParallelError
from repro.training.parallel.one import Answer, Context, Loss, OneProcess, Piece
from repro.training.parallel.split import replaced, share_dropout, share_of, sizes_of, slice_of, with_outputs

Scheme = Literal["a", "b", "c"]
HEAD = "classifier"  # what the nets of this package call their fully connected layers


class Hybrid(OneProcess):
    """A share of the pictures in the convolutions, a share of the units in the fully connected layers."""

    mode = "hybrid"

    def __init__(self, group: Group, accumulate: int = 1, scheme: str = "a") -> None:
        super().__init__(group, accumulate)
        if scheme not in get_args(Scheme):
            raise ParallelError(f"--scheme {scheme}: {nearest(scheme, get_args(Scheme))}")
        self.scheme = scheme
        self.head: nn.Module = nn.Identity()

    def split(self, model: nn.Module) -> nn.Module:
        linear = [name for name, _ in self.head_layers(model)]

        def own_units(name: str, layer: nn.Module) -> nn.Module | None:
            inside = name.removeprefix(f"{HEAD}.")
            if not name.startswith(f"{HEAD}.") or not isinstance(layer, nn.Linear):
                return None
            if layer.out_features < self.group.world_size:
                raise ParallelError(f"{name} has {layer.out_features} units, too few for {self.group.world_size} ranks")
            return self._own_units(name, layer, first=inside == linear[0], last=inside == linear[-1])

        return replaced(model, own_units)

    def head_layers(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        """The fully connected layers with their names in the head; raises ParallelError where there are none."""
        head = getattr(model, HEAD, None)
        linear = [(name, m) for name, m in head.named_modules() if isinstance(m, nn.Linear)] if head else []
        if not linear:
            raise ParallelError(
                f"--parallel {self.mode}: {type(model).__name__} has no '{HEAD}' of fully connected layers; "
                "train it with --parallel data"
            )
        return linear

    def _own_units(self, name: str, layer: nn.Linear, first: bool, last: bool) -> nn.Module:
        group, wire = self.group, self.wire
        own = with_outputs(layer, slice_of(layer.out_features, group.world_size, group.rank))
        for parameter, _ in layer.named_parameters():
            self.shards.by_rows(f"{name}.{parameter}", layer.out_features)
        if not first:
            inputs = sizes_of(layer.in_features, group.world_size)
            own.register_forward_pre_hook(lambda _, args: (wire.gather(args[0], 1, inputs, name),))
        if last:  # every rank computes the loss of all logits
            outputs = sizes_of(layer.out_features, group.world_size)
            own.register_forward_hook(lambda _, args, out: wire.gather_same(out, 1, outputs, f"{name} logits"))
        return own

    def prepare(self, called: nn.Module) -> nn.Module:
        group = self.group
        self.head = share_dropout(
            called.get_submodule(HEAD), self.draw, lambda width: slice_of(width, group.world_size, group.rank)
        )
        trunk = replaced(called, lambda name, layer: nn.Identity() if name == HEAD else None)
        self.called = averaged_over_ranks(trunk, self.wire)
        return nn.ModuleList([self.called, self.head])

    def own_rows(self, rows: slice) -> slice:
        return share_of(rows, self.group.world_size, self.group.rank)

    def rounds(self, counts: list[int]) -> list[list[slice]]:
        """For each pass through the fully connected layers, and each rank, which of its pictures go through."""
        turns = range(self.group.world_size)
        if self.scheme == "a":
            return [[slice(0, n) for n in counts]]
        if self.scheme == "b":
            return [[slice(0, n if r == turn else 0) for r, n in enumerate(counts)] for turn in turns]
        return [[slice_of(n, len(turns), turn) for n in counts] for turn in turns]

    def _pass(self, features: Tensor, sent: list[slice]) -> Tensor:
        """The logits of what the ranks send, in the order of the ranks: the same on all of them."""
        sizes = [s.stop - s.start for s in sent]
        logits: Tensor = self.head(self.gathered(features[sent[self.group.rank]], sizes))
        return logits

    def gathered(self, features: Tensor, sizes: list[int]) -> Tensor:
        """The features of all ranks, for layers that each compute a part of the rest."""
        return self.wire.gather(features, 0, sizes, "features")

    def work(self, images: Tensor, labels: Tensor, piece: Piece, loss: Loss, context: Context) -> Answer:
        assert isinstance(self.called, DistributedDataParallel)
        counts = sizes_of(piece.pass_rows.stop - piece.pass_rows.start, self.group.world_size)
        starts = [piece.pass_rows.start + sum(counts[:r]) for r in range(len(counts))]
        self.draw.total, answers = len(labels), []
        with nullcontext() if piece.last else self.called.no_sync():
            with context():
                features = self.called(images)  # (own pictures, F)
            kept = features.detach().requires_grad_()
            go_back = _to_where_it_is(labels.device)
            for sent in self.rounds(counts):
                go_back()  # in each round dropout draws anew what it draws for the whole batch
                places = [torch.arange(i + s.start, i + s.stop) for i, s in zip(starts, sent, strict=True)]
                self.draw.rows = rows = torch.cat(places).to(labels.device)
                with context():
                    logits = self._pass(kept, sent)
                    mean = loss(logits, labels[rows]) if len(rows) else logits.sum()
                (mean * (len(rows) / len(labels))).backward()
                answers.append((mean.detach() * len(rows), logits.detach(), labels[rows]))
            # Every rank has the gradient of the whole loss. What follows is averaged over the ranks, so it is
            # multiplied by their number first.
            features.backward(kept.grad * self.group.world_size)
        losses, logits_, labels_ = zip(*answers, strict=True)
        # All ranks have the same answers; the first one gives them.
        given = slice(None) if self.group.is_first else slice(0, 0)
        return Answer(torch.stack(losses).sum() / sum(counts), torch.cat(logits_)[given], torch.cat(labels_)[given])

    def answer(self, images: Tensor, labels: Tensor, piece: Piece, views: int = 1) -> tuple[Tensor, Tensor]:
        assert isinstance(self.called, DistributedDataParallel)
        counts = sizes_of(piece.pass_rows.stop - piece.pass_rows.start, self.group.world_size)
        logits = self._pass(self.called.module(images), [slice(0, n * views) for n in counts])
        given = slice(None) if self.group.is_first else slice(0, 0)
        return logits[given], labels[piece.pass_rows][given]

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"scheme": self.scheme}


def _to_where_it_is(device: torch.device) -> Callable[[], None]:
    """What brings torch's generator on a device back to where it is now."""
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        return lambda: torch.cuda.set_rng_state(state, device)
    state = torch.get_rng_state()
    return lambda: torch.set_rng_state(state)
