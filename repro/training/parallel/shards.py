"""Which rank holds which rows of a parameter, and how a checkpoint sees the whole of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from repro.training.parallel.group import Group
from repro.training.parallel.split import sizes_of
from repro.training.parallel.wire import Wire

STATE = "state"  # what the wire calls the parts of a checkpoint on their way


@dataclass
class Shards:
    """For each parameter that is split, the number of rows (along its first dimension) on each rank, or the DTensor
    that PyTorch's engine made of it; the others are whole on every rank.
    """

    group: Group
    rows: dict[str, list[int]] = field(default_factory=dict)
    distributed: dict[str, DTensor] = field(default_factory=dict)

    def by_rows(self, name: str, total: int) -> None:
        """Split a parameter of `total` rows as equally as possible."""
        self.rows[name] = sizes_of(total, self.group.world_size)

    def at_first(self, name: str, total: int) -> None:
        """Keep a parameter on rank 0 alone."""
        self.rows[name] = [total] + [0] * (self.group.world_size - 1)

    def as_distributed(self, model: nn.Module) -> None:
        """Take note of the parameters of which an engine has made DTensors."""
        self.distributed = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of the whole tensor."""
        if name in self.distributed and tensor.ndim:
            own = self.distributed[name]
            # All ranks pass the same: nothing has to be sent.
            return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        if name not in self.rows or not tensor.ndim:
            return tensor
        sizes, rank = self.rows[name], self.group.rank
        return tensor.narrow(0, sum(sizes[:rank]), sizes[rank])

    def whole(self, name: str, tensor: Tensor | None, wire: Wire) -> Tensor | None:
        """On rank 0 the whole tensor; the others send their rows, or nothing where they have none, and get None."""
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if name not in self.rows or (tensor is not None and not tensor.ndim):
            return tensor if self.group.is_first else None
        if not self.group.is_first:
            wire.swap({} if tensor is None else {0: tensor.detach().contiguous().flatten()}, {}, STATE, "forward")
            return None
        assert tensor is not None, f"rank 0 has rows of every parameter, and none of {name}"
        sizes = self.rows[name]
        room = torch.empty(sum(sizes), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
        parts = room.split(sizes)
        parts[0].copy_(tensor)
        wire.swap({}, {r: parts[r].flatten() for r in self.group.others}, STATE, "forward")
        return room
