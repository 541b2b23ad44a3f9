"""What the ranks of the engines' tests do, and a net small enough to be trained to the end in seconds."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rank_programs
import torch
from helpers import tiny_recipe
from rank_programs import SGD, batch, small_alexnet, train_small
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from repro.models import registry
from repro.training import command, state, train
from repro.training.optim import make_optimizer, set_rate
from repro.training.parallel import MODES, Group, ParallelError

MANY = 48  # units of a hidden layer, for two ranks and for three


class TinyColumns(nn.Module):
    """Two columns, dropout and three fully connected layers in 3,000 parameters: 28×28 grey to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=5, stride=3),  # (N, 4, 8, 8)
            nn.ReLU(),
            nn.Conv2d(4, 4, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64, 24), nn.ReLU(inplace=True), nn.Dropout(0.25), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
        )
        for weight in (p for p in self.parameters() if p.ndim > 1):
            nn.init.kaiming_normal_(weight)  # so that it learns within an epoch

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).flatten(1))


def register_columns() -> None:
    """Enter TinyColumns into the registry as `tiny_columns`, once."""
    if "tiny_columns" not in registry.list_models():
        registry.register("tiny_columns", input_size=(1, 28, 28), source="tests")(TinyColumns)


def several(group: Group, runs: Sequence[dict[str, Any]], hidden: int) -> list[dict[str, Any]]:
    """`train_small` with each of some options in turn, with `hidden` units in both hidden layers."""
    rank_programs.HIDDEN = hidden
    return [train_small(group, **run) for run in runs]


class Small:
    """The small net of `rank_programs` in one of the modes, from starting weights or from a checkpoint's tensors."""

    def __init__(self, group: Group, mode: str, tensors: dict[str, Tensor] | None = None) -> None:
        net = small_alexnet(torch.float64)
        self.group, self.parallel = group, MODES[mode](group)
        self.parts = state.Parts(net, self.parallel)
        self.model = self.parallel.split(net)
        self.forward = self.parallel.prepare(self.model)
        self.optimizer = make_optimizer(self.model, SGD)
        if tensors:
            self.parts.put_back(self.model, self.optimizer, tensors)

    def step(self, number: int) -> None:
        images, labels = batch(5, torch.float64, number)
        self.forward.train()
        self.optimizer.zero_grad(set_to_none=True)
        (piece,) = self.parallel.pieces(len(labels))
        torch.manual_seed(number)
        loss = nn.functional.cross_entropy
        self.parallel.work(images[piece.rows], labels, piece, loss, contextlib.nullcontext)
        set_rate(self.optimizer, SGD.learning_rate)
        self.optimizer.step()

    def answer(self) -> Tensor:
        """The logits of what this rank answers for, of pictures of which no step has seen one."""
        images, labels = batch(5, torch.float64, 99)
        self.forward.eval()
        (piece,) = self.parallel.pieces(len(labels))
        with torch.inference_mode():
            logits, _ = self.parallel.answer(images[piece.rows], labels, piece)
        return logits

    def tensors(self) -> dict[str, Tensor]:
        """Those of the whole net, on every rank."""
        found: dict[str, Tensor] = self.group.from_first(self.parts.collect(self.model, self.optimizer))
        return found


def handed_on(group: Group, modes: Sequence[str]) -> dict[str, Tensor]:
    """One step in each of the modes, each going on from the checkpoint of the one before."""
    rank_programs.HIDDEN = MANY
    tensors = None
    for number, mode in enumerate(modes):
        small = Small(group, mode, tensors)
        small.step(number)
        tensors = small.tensors()
    assert tensors is not None
    return tensors


class Share(NamedTuple):
    """What a rank has of a parameter: so many numbers of so many, and their bytes."""

    own: int
    all: int
    content: bytes


def shares(group: Group, modes: Sequence[str]) -> list[dict[str, Share]]:
    """For each mode, what this rank has of each parameter after a step; fails unless its momentum is of that size."""
    rank_programs.HIDDEN = MANY
    found = []
    for mode in modes:
        small = Small(group, mode)
        small.answer()  # before the first step: what it gathers must not hinder training
        small.step(0)
        parameters = dict(small.model.named_parameters())
        memory = [small.optimizer.state[p]["momentum_buffer"] for p in parameters.values()]
        own = [p.to_local() if isinstance(p, DTensor) else p for p in parameters.values()]
        assert [p.shape for p in own] == [(m.to_local() if isinstance(m, DTensor) else m).shape for m in memory]
        contents = [p.detach().contiguous().numpy().tobytes() for p in own]
        sizes = [(p.numel(), whole.numel()) for p, whole in zip(own, parameters.values(), strict=True)]
        found.append({name: Share(*size, c) for name, size, c in zip(parameters, sizes, contents, strict=True)})
    return found


class Stop(Exception):
    """Ends a run after an epoch, with its checkpoint written."""


def _stop(_: Any) -> None:
    raise Stop


def trained(
    group: Group, pairs: Sequence[tuple[str, str]], folder: Path
) -> list[tuple[list[float], dict[str, Tensor]]]:
    """Two epochs of TinyColumns, the second in another mode, for each pair: losses and errors, the weights on rank 0.

    The same mode twice is one run that nothing interrupts.
    """
    register_columns()
    recipe = tiny_recipe(model="tiny_columns")
    found = []
    for first, then in pairs:
        folder = folder / first
        if first != then:
            with contextlib.suppress(Stop):
                train(recipe, run_dir=folder, parallel=MODES[first](group), on_epoch=_stop)
            group.from_first(None)  # until the file is written
        record, model = train(recipe, run_dir=folder, resume=first != then, parallel=MODES[then](group))
        measured = [m for e in record.epochs for m in (e.train_loss, e.train_error, e.test_loss, e.test_error)]
        found.append((measured, dict(model.state_dict()) if group.is_first else {}))
    return found


def failure_of(group: Group, function: str, *args: Any) -> str:
    """The message of the ParallelError that a function of this module raises."""
    try:
        globals()[function](group, *args)
    except ParallelError as e:
        return str(e)
    return ""


def agreeing(group: Group, facts: Sequence[dict[str, Any]]) -> None:
    """The ranks compare what each of them has."""
    group.agree(facts[group.rank])


def commanded(group: Group, folder: Path, overrides: Sequence[list[str]]) -> None:
    """`repro train` of the recipe in a folder, with other changes on each rank."""
    register_columns()
    command.joined = lambda *_: contextlib.nullcontext(group)  # type: ignore[assignment]
    command.train_seeds(
        str(folder / "tiny.toml"),
        overrides=overrides[group.rank],
        seeds=[0],
        resume=False,
        run_dir=folder / "runs",
        records_dir=folder / "records",
        device="cpu",
        threads=1,
        compiled=False,
        save_every_s=0,
        sharing=command.Sharing("data"),
    )
