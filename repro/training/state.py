"""What a checkpoint holds beside a net's weights, and whether it belongs to the run that wants to go on from it.

A checkpoint knows one net, whole, whoever holds which part of it: several ranks collect theirs at rank 0 and take them
out again.
"""

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from repro.errors import CheckpointError
from repro.records import Epoch
from repro.training.checkpoint import Checkpoint, Count
from repro.training.parallel import OneProcess

MODEL, PREFIX = "model/", "optimizer/"

BYTES_OF_A_NAME = 160  # of a tensor, beside the name itself, in the header of a file

# What decides the bits of a run: going on under another one would make a run that no record describes.
IDENTITY = ("recipe", "seed", "recipe_digest", "train_digest", "test_digest", "device", "precision", "threads")


class Progress(BaseModel):
    """What a checkpoint says of where its run was: `count` pictures of an epoch are seen, in `step` steps."""

    model_config = ConfigDict(strict=True)

    started: str
    git: dict[str, Any]
    epoch: Count
    step: Count
    count: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    restarts: Count
    history: list[Epoch]
    parallel: dict[str, Any] | None = None
    earlier: list[dict[str, Any]] = []


def check_same_run(found: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise CheckpointError at the first of IDENTITY in which the states of two checkpoints differ.

    A run may go on shared in another way among its ranks. Then its bits are others from there on, and so may be the
    number of threads; the record lists the ways.
    """
    reshared = found.get("parallel") != own["parallel"]
    for key in IDENTITY[:-1] if reshared else IDENTITY:
        if found.get(key) != own[key]:
            raise _differs(found, f"{key} is {found.get(key)}, this run's is {own[key]}")


def progress_of(found: Checkpoint, steps_per_epoch: int, batch_size: int, samples: int) -> Progress:
    """Where the run was; raises CheckpointError at the first field that no run of these sizes writes."""
    try:
        progress = Progress.model_validate(found.state)
    except ValidationError as e:
        first = e.errors()[0]
        raise _differs(found.state, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    expected = {
        "history": list(range(1, progress.epoch + 1)),
        "step": min(progress.step, steps_per_epoch),
        "count": min(progress.step * batch_size, samples),
    }
    for key, value in expected.items():
        there = [e.epoch for e in progress.history] if key == "history" else getattr(progress, key)
        if there != value:
            raise _differs(found.state, f"{key} is {there}, after epoch {progress.epoch} it would be {value}")
    return progress


def _differs(found: dict[str, Any], how: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint of {found.get('recipe')} seed {found.get('seed')}: {how}; resume with what it was started with, "
        "or give the new run another --run-dir"
    )


def _form(tensor: Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(map(str, tensor.shape)) or 'alone'}"


def _kinds(optimizer: torch.optim.Optimizer) -> list[str]:
    """What an optimizer remembers of each parameter, once it has made a step."""
    return ["momentum_buffer"] if any(group["momentum"] for group in optimizer.param_groups) else []


class Parts:
    """The tensors of a whole net, by name, and this rank's parts of them."""

    def __init__(self, whole: nn.Module, parallel: OneProcess) -> None:
        self.names = list(whole.state_dict())
        self.parameters = [name for name, _ in whole.named_parameters()]
        self.parallel = parallel
        self.size = sum(t.nbytes for t in whole.state_dict().values())
        self.size_of_parameters = sum(p.nbytes for p in whole.parameters())

    def most_bytes(self, optimizer: torch.optim.Optimizer) -> int:
        """What the file of a checkpoint's tensors takes at most."""
        header = sum(len(name) + BYTES_OF_A_NAME for name in (*self.names, *self.parameters))
        return self.size + self.size_of_parameters * len(_kinds(optimizer)) + header

    def check(self, found: Checkpoint, own: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        """Raise CheckpointError unless they are of one run and all tensors are there, of the same type and shape.

        `own` is what this run would save before its first step, when its optimizer remembers nothing yet.
        """
        check_same_run(found.state, own.state)
        memory = {f"{PREFIX}{n}/{kind}": own.tensors[MODEL + n] for n in self.parameters for kind in _kinds(optimizer)}
        wanted = {name: t for name, t in own.tensors.items() if not name.startswith(PREFIX)} | memory
        for name in sorted(wanted.keys() | found.tensors.keys()):
            there, expected = _form(found.tensors.get(name)), _form(wanted.get(name))
            if there != expected:
                raise _differs(found.state, f"{name} is {there}, this run's is {expected}")

    def collect(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Weights, and what the optimizer remembers of each, as `model/NAME` and `optimizer/NAME/WHAT`.

        On rank 0 of the whole net; on the others, which have to call it too, of nothing or of their own part.
        """
        own = model.state_dict()
        tensors = {MODEL + name: self.parallel.whole(name, own.get(name)) for name in self.names}
        memory = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
        kinds = sorted(
            {kind for state in memory.values() for kind, value in state.items() if isinstance(value, Tensor)}
        )
        for name in self.parameters:
            for kind in kinds:
                whole = self.parallel.whole(name, memory.get(name, {}).get(kind))
                if whole is None and (weight := tensors[MODEL + name]) is not None and self.parallel.group.is_first:
                    whole = torch.zeros_like(weight)  # no gradient has reached it
                tensors[f"{PREFIX}{name}/{kind}"] = whole
        return {name: t for name, t in tensors.items() if t is not None}

    def put_back(self, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
        """The inverse: this rank takes its part of each of the whole net's tensors."""
        weights = {name: self.parallel.part(name, tensors[MODEL + name]) for name in model.state_dict()}
        model.load_state_dict(weights)
        memory = {name: self.parallel.part(self._of(name), t) for name, t in tensors.items() if name.startswith(PREFIX)}
        restore_optimizer(model, optimizer, {n: t for n, t in memory.items() if t.numel()}, set(self.parameters))

    @staticmethod
    def _of(memory: str) -> str:
        """The parameter that an optimizer's tensor belongs to."""
        return memory.removeprefix(PREFIX).rpartition("/")[0]


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], known: set[str]
) -> None:
    """What the optimizer remembered, from `optimizer/NAME/WHAT`; raises CheckpointError for a NAME that is not `known`.

    Each memory takes the layout of its parameter again (channels-last, say), which a file does not keep: fused
    optimizers walk both in the order of the bytes.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, saved in tensors.items():
        name, _, kind = key.removeprefix(PREFIX).rpartition("/")
        if name not in known:
            raise CheckpointError(f"checkpoint: {key} fits none of the {len(known)} parameters of this net")
        parameter = parameters[name]
        if saved.ndim and saved.shape != parameter.shape:
            own, found = ("×".join(map(str, t.shape)) for t in (parameter, saved))
            raise CheckpointError(f"checkpoint: {key} is {found}, parameter {name} is {own}")
        if saved.ndim:
            saved = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
        optimizer.state[parameter][kind] = saved.to(parameter.device)
