"""What a checkpoint holds beside a net's weights, and whether it belongs to the run that wants to go on from it."""

import torch
from torch import Tensor

from repro.errors import CheckpointError
from repro.training.checkpoint import Checkpoint

MODEL, PREFIX = "model/", "optimizer/"

# What decides the bits of a run: going on under another one would make a run that no record describes.
IDENTITY = ("recipe", "seed", "recipe_digest", "train_digest", "test_digest", "device", "precision", "threads")


def check_same_run(found: Checkpoint, own: Checkpoint) -> None:
    """Raise CheckpointError at the first of IDENTITY, or the first of the net's tensors, in which the two differ."""
    for key in IDENTITY:
        if found.state.get(key) != own.state[key]:
            raise CheckpointError(
                f"checkpoint of {found.state.get('recipe')} seed {found.state.get('seed')}: {key} is "
                f"{found.state.get(key)}, this run's is {own.state[key]}; resume with what it was started with, or "
                "give the new run another --run-dir"
            )
    for name in sorted(_net(found) ^ _net(own)):
        raise CheckpointError(f"checkpoint of {own.state['recipe']}: {name} does not fit this version of the net")


def _net(checkpoint: Checkpoint) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(t.shape)) for name, t in checkpoint.tensors.items() if not name.startswith(PREFIX)}


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
        if saved.ndim and saved.shape != parameter.shape:
            own, found = ("×".join(map(str, t.shape)) for t in (parameter, saved))
            raise CheckpointError(f"checkpoint: {name} is {found}, parameter {number} is {own}")
        if saved.ndim:
            saved = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
        optimizer.state[parameter][key] = saved.to(parameter.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
