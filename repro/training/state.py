"""An optimizer's memory as named tensors, and back: the part of a checkpoint that is not the net's."""

import torch
from torch import Tensor

from repro.errors import CheckpointError

PREFIX = "optimizer/"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, as `optimizer/NUMBER/NAME`; parameters are numbered in order."""
    return {
        f"{PREFIX}{i}/{key}": value
        for i, p in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse; raises CheckpointError for a tensor that fits no parameter.

    Each memory takes the layout of its parameter again (channels-last, say), which a file does not keep: fused
    optimizers walk both in the order of the bytes.
    """
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for name, saved in tensors.items():
        if not name.startswith(PREFIX):
            continue
        number, _, key = name.removeprefix(PREFIX).partition("/")
        if int(number) >= len(parameters):
            raise CheckpointError(f"checkpoint: {name} fits none of the {len(parameters)} parameters of this net")
        parameter = parameters[int(number)]
        if saved.shape == parameter.shape:
            saved = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
        optimizer.state[parameter][key] = saved.to(parameter.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
