"""Runs into which a number that is none is planted, and what came of them on each rank."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from engine_programs import register_columns
from helpers import register_tiny, tiny_recipe
from processes import RUN
from torch import Tensor

from repro.errors import NumericsError
from repro.training import train
from repro.training.loop import Trainer
from repro.training.parallel import MODES, Group

STEPS_PER_EPOCH, STEPS = 7, 14  # of the tiny recipe


@dataclass(frozen=True)
class Fault:
    """NaN or infinity at one step of a run, counted from 0, on one rank alone."""

    mode: str
    place: Literal["pictures", "loss", "gradient"]
    value: float
    step: int
    rank: int = 0


class Outcome(NamedTuple):
    """How a rank's run ended: the error's message, whether another rank tells it, and whether weights had changed."""

    message: str
    told: bool
    updated: bool


def plant(trainer: Trainer, fault: Fault) -> None:
    """The next step of this trainer meets the fault; the gradient's while the loss stays finite."""
    if fault.place == "gradient":
        first = next(trainer.model.parameters())
        first.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), fault.value))
    elif fault.place == "loss":
        loss = trainer.loss
        trainer.loss = lambda logits, labels: loss(logits, labels) * fault.value
    else:
        augmented = trainer.train_batches.augmented

        def spoilt(*args: Any) -> tuple[Tensor, Tensor]:
            images, labels = augmented(*args)
            images[0, :, 10:20, 10:20] = fault.value
            return images, labels

        trainer.train_batches.augmented = spoilt  # type: ignore[method-assign]


def plant_at(fault: Fault, rank: int, on_stop: Callable[[bool], None] = lambda _: None) -> Callable[[], None]:
    """Runs in this process, of this rank, meet the fault at its step from now on, until what is returned is called.

    `on_stop` is told whether a step that raised NumericsError had changed a weight.
    """
    step = Trainer.step

    def with_fault(self: Trainer, indices: Tensor) -> None:
        if (self.place.epoch * STEPS_PER_EPOCH + self.place.step, rank) == (fault.step, fault.rank):
            plant(self, fault)
        before = [p.detach().clone() for p in self.model.parameters()]
        try:
            step(self, indices)
        except NumericsError:
            on_stop(not all(map(torch.equal, before, self.model.parameters())))
            raise

    Trainer.step = with_fault  # type: ignore[method-assign]
    return partial(setattr, Trainer, "step", step)


def run(group: Group, folder: Path, mode: str, resume: bool = False) -> None:
    """The tiny recipe to its end, with a checkpoint after each step; of columns where there are several ranks."""
    register_tiny()
    register_columns()
    torch.set_num_threads(1)
    recipe = tiny_recipe(model="tiny" if mode == "none" else "tiny_columns")
    train(recipe, run_dir=folder / "runs" / RUN, parallel=MODES[mode](group), save_every_s=0, resume=resume)


def stopped_and_resumed(group: Group, folder: Path, faults: Sequence[Fault]) -> list[Outcome | None]:
    """For each fault how a run with it ended, or None where it came to its end; then the run goes on without it.

    Each is in a folder of its number, with a copy as it was when it stopped; the first one's mode without any fault is
    in the folder of them all.
    """
    run(group, folder, faults[0].mode)
    found: list[Outcome | None] = []
    for number, fault in enumerate(faults):
        own, updated = folder / str(number), list[bool]()
        take_out = plant_at(fault, group.rank, updated.append)
        try:
            run(group, own, fault.mode)
            found.append(None)
        except NumericsError as e:
            found.append(Outcome(str(e), e.told, updated != [False]))
        finally:
            take_out()
        if group.is_first:
            shutil.copytree(own, folder / f"{number}-stopped")
        run(group, own, fault.mode, resume=True)
    return found
