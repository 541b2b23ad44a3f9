"""A run from its first step to its record: what is saved on the way, and how it stops."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from repro.errors import Preempted, ResourceError
from repro.records import Epoch, Record
from repro.refusals import refusal
from repro.training.device import choose_device
from repro.training.keeper import SAVE_EVERY_S, Keeper
from repro.training.loop import Trainer
from repro.training.parallel import OneProcess
from repro.training.parallel.group import loss_of_a_rank_named
from repro.training.recipe import Recipe
from repro.training.signals import StopRequest


def train(
    recipe: Recipe,
    seed: int = 0,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    compiled: bool = False,
    parallel: OneProcess | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> tuple[Record, nn.Module]:
    """Train a recipe with one seed to its end; returns the record and the trained net (in evaluation mode).

    With `run_dir` the run keeps checkpoints and a `record.json` there, can be stopped (Ctrl-C, SIGTERM: Preempted) and
    resumed; without, nothing is written. `parallel` says how several ranks share it; each calls this function, and
    rank 0 writes. Raises NumericsError at the first loss or gradient that is not finite, keeping the last checkpoint,
    ParallelError when another rank is lost, ResourceError when another process trains in `run_dir`, and RecipeError
    when a run is there already and `resume` is not asked for.
    """
    trainer = Trainer(recipe, seed, parallel.group.device if parallel else choose_device(device), compiled, parallel)
    keeper = Keeper(trainer, run_dir, save_every_s)
    group = trainer.parallel.group
    with (
        loss_of_a_rank_named(group),
        contextlib.ExitStack() as held,
        contextlib.closing(trainer.train_batches),
        contextlib.closing(trainer.test_batches),
    ):
        keeper.open(held, resume)
        with StopRequest(active=run_dir is not None) as stop:
            try:
                while not trainer.finished:
                    done = trainer.train_epoch(lambda: keeper.after_step(stop))
                    keeper.save("running")
                    if on_epoch:
                        on_epoch(done)
            except Preempted:
                raise
            except Exception as e:
                with contextlib.suppress(ResourceError, MemoryError):  # the first error is the one to tell
                    keeper.write_record("crashed", f"{type(e).__name__}: {refusal(e) or e}")
                raise
        record = keeper.write_record("complete")
        return record, trainer.whole_net().eval()
