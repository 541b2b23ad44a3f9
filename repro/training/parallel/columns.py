"""The two columns of 2012: each rank holds half of every layer, and few layers read what the other one computed.

Krizhevsky, Sutskever & Hinton 2012, section 3.2, and the layer files of their code: convolutions 2, 4 and 5 read the
maps of their own GPU; convolution 3 and the hidden fully connected layers read those of both; the softmax layer sits on
the first GPU and reads both halves of layer 7. Chapter 10 teaches it.
"""

import copy

from torch import Tensor, nn

from repro.models.alexnet import COLUMNS
from repro.models.normalization import LocalResponseNorm, reach
from repro.training.parallel.group import Group, ParallelError
from repro.training.parallel.one import Answer, Context, Loss, OneProcess, Piece
from repro.training.parallel.split import replaced, share_dropout, slice_of, with_outputs
from repro.training.parallel.wire import Wire


class Columns(OneProcess):
    """Half of every layer on each of two ranks; both see every picture, and rank 0 the logits."""

    mode = "columns"

    def __init__(self, group: Group, accumulate: int = 1) -> None:
        super().__init__(group, accumulate)
        if group.world_size != COLUMNS:
            raise ParallelError(
                f"--parallel columns needs {COLUMNS} processes, one for each column, and found {group.world_size}: "
                f"torchrun --standalone --nproc-per-node {COLUMNS} -m repro train …"
            )

    def split(self, model: nn.Module) -> nn.Module:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        if not any(isinstance(m, nn.Conv2d) and m.groups == COLUMNS for m in layers.values()):
            raise ParallelError(
                f"--parallel columns: {type(model).__name__} has no layer that keeps to its column; "
                "nets with columns are alexnet_2012 and alexnet_2012_code"
            )
        first, *_, last = layers

        def column(name: str, layer: nn.Module) -> nn.Module | None:
            if isinstance(layer, nn.LocalResponseNorm):
                raise ParallelError(f"--parallel columns: {name} of PyTorch sums over both columns; take another lrn")
            if isinstance(layer, LocalResponseNorm):
                return self._norm(name, layer)
            if name == last and isinstance(layer, nn.Linear):
                return self._logits(name, layer)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                return self._half(name, layer, reads_both=name != first)
            return None

        return replaced(model, column)

    def _half(self, name: str, layer: nn.Conv2d | nn.Linear, reads_both: bool) -> nn.Module:
        own = with_outputs(layer, slice_of(len(layer.weight), COLUMNS, self.group.rank))
        for parameter, _ in layer.named_parameters():
            self.shards.by_rows(f"{name}.{parameter}", len(layer.weight))
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        if reads_both and not (isinstance(layer, nn.Conv2d) and layer.groups == COLUMNS):
            halves = [inputs // COLUMNS] * COLUMNS
            own.register_forward_pre_hook(lambda _, args: (self.wire.gather(args[0], 1, halves, name),))
        return own

    def _logits(self, name: str, layer: nn.Linear) -> nn.Module:
        halves = [layer.in_features // COLUMNS] * COLUMNS
        for parameter, _ in layer.named_parameters():
            self.shards.at_first(f"{name}.{parameter}", len(layer.weight))
        own = copy.deepcopy(layer) if self.group.is_first else nn.Identity()
        own.register_forward_pre_hook(lambda _, args: (self.wire.to_first(args[0], 1, halves, name),))
        return own

    def _norm(self, name: str, layer: LocalResponseNorm) -> nn.Module:
        own = copy.copy(layer)
        own.groups = 1
        return own if layer.groups == COLUMNS else NormAcrossColumns(own, self.wire, name)

    def prepare(self, called: nn.Module) -> nn.Module:
        self.called = share_dropout(called, self.draw, lambda width: slice_of(width, COLUMNS, self.group.rank))
        return self.called

    def work(self, images: Tensor, labels: Tensor, piece: Piece, loss: Loss, context: Context) -> Answer:
        if self.group.is_first:
            return super().work(images, labels, piece, loss, context)
        self.draw.total, self.draw.rows = len(labels), piece.rows
        with context():
            nothing = self.called(images).sum()
        nothing.backward()
        return Answer(nothing.detach(), nothing.new_empty(0, 1), labels[:0])

    def answer(self, images: Tensor, labels: Tensor, piece: Piece, views: int = 1) -> tuple[Tensor, Tensor]:
        logits = self.called(images)
        return logits, labels[piece.rows] if self.group.is_first else labels[:0]


class NormAcrossColumns(nn.Module):
    """Response normalisation whose windows cross the border of the columns, as section 3.3 prints it.

    The 2012 code keeps them inside a column (`lrn_in_columns`). Here each rank borrows the maps within reach from the
    other: `(N, C/2, …)` to the same.
    """

    def __init__(self, norm: LocalResponseNorm, wire: Wire, what: str) -> None:
        super().__init__()
        self.norm, self.wire, self.what = norm, wire, what

    def forward(self, x: Tensor) -> Tensor:
        width = max(reach(self.norm.size, self.norm.convention))
        normalized: Tensor = self.norm(self.wire.with_neighbours(x, width, self.what))
        return normalized.narrow(1, 0 if self.wire.group.is_first else width, x.shape[1])
