"""What a checkpoint holds beside a net's weights, and whether it belongs to the run that wants to go on from it.

A checkpoint knows one net, whole, whoever holds which part of it: several ranks collect theirs at rank 0 and take them
out again.
"""

import torch
from torch import Tensor, nn

from repro.errors import CheckpointError
from repro.training.checkpoint import Checkpoint
from repro.training.parallel import OneProcess

MODEL, PREFIX = "model/", "optimizer/"

# What decides the bits of a run: going on under another one would make a run that no record describes.
IDENTITY = ("recipe", "seed", "recipe_digest", "train_digest", "test_digest", "device", "precision", "threads")


def check_same_run(found: Checkpoint, own: Checkpoint) -> None:
    """Raise CheckpointError at the first of IDENTITY, or the first of the net's tensors, in which the two differ.

    A run may go on shared in another way among its ranks. Then its bits are others from there on, and so may be the
    number of threads; the record lists the ways.
    """
    reshared = found.state.get("parallel") != own.state["parallel"]
    for key in IDENTITY[:-1] if reshared else IDENTITY:
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


class Parts:
    """The tensors of a whole net, by name, and this rank's parts of them."""

    def __init__(self, whole: nn.Module, parallel: OneProcess) -> None:
        self.names = list(whole.state_dict())
        self.parameters = [name for name, _ in whole.named_parameters()]
        self.parallel = parallel

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
                tensors[f"{PREFIX}{name}/{kind}"] = self.parallel.whole(name, memory.get(name, {}).get(kind))
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
