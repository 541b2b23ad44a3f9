"""Data parallelism: every rank has the whole net and reads its share of each batch; gradients are averaged.

PyTorch's DistributedDataParallel does it, overlapping the exchange with the backward pass. What is left to get right is
the batch that does not divide: a rank's mean loss is weighted by its share, not by one over the number of ranks.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from repro.training.parallel.group import ParallelError
from repro.training.parallel.one import Answer, Context, Loss, OneProcess, Piece
from repro.training.parallel.split import share_dropout, share_of
from repro.training.parallel.wire import Wire


class DataParallel(OneProcess):
    """The whole net on every rank, a share of the pictures each."""

    mode = "data"

    def prepare(self, called: nn.Module) -> nn.Module:
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in called.modules()):
            if self.group.device.type != "cuda":
                raise ParallelError(
                    "batch normalisation over all ranks needs GPUs: on CPUs each rank would normalise by its own share "
                    "of the batch, which is another net; train in one process"
                )
            called = nn.SyncBatchNorm.convert_sync_batchnorm(called)
        called = share_dropout(called, self.draw, lambda width: slice(0, width))
        self.called = self.averaged(called)
        return self.called

    def averaged(self, called: nn.Module) -> nn.Module:
        """`called` with the gradients of its parameters averaged over the ranks."""
        return averaged_over_ranks(called, self.wire)

    def exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Around a pass: whether gradients are exchanged after it, or only added up."""
        assert isinstance(self.called, DistributedDataParallel)
        return nullcontext() if last else self.called.no_sync()

    def net(self, images: Tensor) -> Tensor:
        """The logits in evaluation."""
        assert isinstance(self.called, DistributedDataParallel)
        logits: Tensor = self.called.module(images)
        return logits

    def own_rows(self, rows: slice) -> slice:
        return share_of(rows, self.group.world_size, self.group.rank)

    def work(self, images: Tensor, labels: Tensor, piece: Piece, loss: Loss, context: Context) -> Answer:
        self.draw.total, self.draw.rows = len(labels), piece.rows
        own = labels[piece.rows]
        with self.exchange(piece.last):
            with context():
                logits = self.called(images)
                mean = loss(logits, own) if len(own) else logits.sum()
            # The ranks' gradients are averaged, so each is multiplied by their number first.
            (mean * (self.group.world_size * len(own) / len(labels))).backward()
        return Answer(mean.detach(), logits.detach(), own)

    def answer(self, images: Tensor, labels: Tensor, piece: Piece, views: int = 1) -> tuple[Tensor, Tensor]:
        return self.net(images), labels[piece.rows]


def averaged_over_ranks(called: nn.Module, wire: Wire) -> DistributedDataParallel:
    """`called` with the gradients of its parameters averaged over all ranks while they are computed, and counted.

    A bucket of b bytes is all-reduced: around a ring of W ranks each of them sends 2(W − 1)/W · b.
    """
    device = wire.group.device
    parallel = DistributedDataParallel(called, device_ids=[device.index] if device.type == "cuda" else None)

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        start, size = time.perf_counter(), ring_bytes(bucket.buffer().nbytes, wire.group.world_size)
        done = allreduce_hook(state, bucket)

        def note(future: torch.futures.Future[Tensor]) -> Tensor:
            wire.note("gradients", "backward", start, size)
            return future.value()

        return done.then(note)

    parallel.register_comm_hook(None, hook)
    return parallel


def ring_bytes(size: int, world_size: int) -> int:
    """What each rank sends to all-reduce `size` bytes around a ring of ranks: all but one share, twice."""
    return round(2 * (world_size - 1) * size / world_size)
