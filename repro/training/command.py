"""What `repro train` does around the loop: seeds in turn, a folder for each, progress, the record in its place."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from repro.errors import CheckpointError, RecipeError, UnknownName, nearest
from repro.files import check_writable
from repro.models.registry import model_info
from repro.records import Epoch, Record, file_of, read, run_name, write
from repro.training.checkpoint import TEXT
from repro.training.lock import check_free
from repro.training.parallel import MODES, Group, Hybrid, OneProcess, joined
from repro.training.parallel.group import TIMEOUT_S, code_digest, restarted
from repro.training.parallel.wire import write_trace
from repro.training.recipe import Recipe, load_recipe
from repro.training.run import train


@dataclass(frozen=True)
class Sharing:
    """How the processes that torchrun started share the work: the options of that name of `repro train`."""

    mode: str = OneProcess.mode
    accumulate: int = 1
    scheme: str = "a"
    timeout_s: float = TIMEOUT_S
    trace_dir: Path | None = None
    """Where each rank writes what it exchanged and when, as `rank-0.json`."""

    def among(self, group: Group) -> OneProcess:
        """The mode for this rank; raises RecipeError where several processes would do the same work."""
        if self.mode not in MODES:
            raise UnknownName(f"--parallel {self.mode}: {nearest(self.mode, MODES)}")
        if self.mode == OneProcess.mode and group.world_size > 1:
            others = ", ".join(sorted(MODES.keys() - {OneProcess.mode}))
            raise RecipeError(
                f"{group.world_size} processes would each train the same net alone; say with --parallel how they "
                f"share it: {others}"
            )
        kind = MODES[self.mode]
        more = (self.scheme,) if issubclass(kind, Hybrid) else ()
        parallel = kind(group, self.accumulate, *more)
        if self.trace_dir:
            check_writable(self.trace_dir, TEXT, "name another folder by --trace")
            parallel.wire.trace = []
        return parallel

    def write_trace(self, parallel: OneProcess) -> None:
        """Write what this rank exchanged, if that was asked for."""
        if self.trace_dir and parallel.wire.trace is not None:
            write_trace(parallel.wire.trace, self.trace_dir / f"rank-{parallel.group.rank}.json")


def train_seeds(
    name: str,
    *,
    overrides: Sequence[str],
    seeds: Sequence[int],
    resume: bool,
    run_dir: Path,
    records_dir: Path,
    device: str | None,
    threads: int | None,
    compiled: bool,
    save_every_s: float,
    sharing: Sharing,
) -> None:
    """Train a recipe with each seed in turn; prints a line per epoch to stderr and each record's path to stdout.

    Under torchrun every rank calls it; the first one reads and writes the files. A process that torchrun starts again
    after a loss goes on from the last checkpoint by itself.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with joined(device, sharing.timeout_s) as group:
        recipe = load_recipe(name, overrides)
        model_info(recipe.model)
        group.agree(
            {
                "recipe": recipe.digest(),
                "seeds": list(seeds or recipe.seeds),
                "--parallel": [sharing.mode, sharing.accumulate, sharing.scheme],
                "code": code_digest(),
                "torch": torch.__version__,
            }
        )
        group.first_decides(lambda: check_writable(records_dir, TEXT, "name another folder by --records-dir"))
        for seed in seeds or recipe.seeds:
            folder = run_dir / run_name(recipe.name, seed)
            record = group.first_decides(partial(_finished, folder, recipe))
            if record is None:
                parallel = sharing.among(group)
                _say(group, f"{recipe.name} seed {seed}: {recipe.title}")
                record, _ = train(
                    recipe,
                    seed,
                    run_dir=folder,
                    resume=resume or restarted(),
                    compiled=compiled,
                    parallel=parallel,
                    on_epoch=lambda e: _say(group, epoch_line(e, recipe)),
                    save_every_s=save_every_s,
                )
                sharing.write_trace(parallel)
            if group.is_first:
                path = records_dir / file_of(recipe.name, seed)
                write(record, path)
                print(f"{path}: test error {record.last.test_error:.2%} after {len(record.epochs)} epochs")


def _say(group: Group, line: str) -> None:
    if group.is_first:
        print(line, file=sys.stderr)


def epoch_line(e: Epoch, recipe: Recipe) -> str:
    """One epoch as a line of a log."""
    top5 = "" if e.test_top5_error is None else f" top-5 {e.test_top5_error:.2%}"
    return (
        f"epoch {e.epoch:3d}/{recipe.epochs}  {e.seconds:6.1f} s  rate {e.learning_rate:.2e}  "
        f"train loss {e.train_loss:.4f} error {e.train_error:.2%}  "
        f"test loss {e.test_loss:.4f} error {e.test_error:.2%}{top5}"
    )


def _finished(folder: Path, recipe: Recipe) -> Record | None:
    """The record of a run that is complete already; None when there is something to do in its folder.

    Raises RecipeError rather than take a run of another recipe for this one's, and ResourceError where another process
    is at it.
    """
    check_free(folder)
    try:
        found = read(folder / "record.json") if (folder / "record.json").exists() else None
    except CheckpointError as e:  # the checkpoints hold all that was in it
        print(f"repro: {e}; it is written anew", file=sys.stderr)
        found = None
    if found and found.status == "complete":
        if found.recipe_digest != recipe.digest():
            raise RecipeError(f"{folder}: holds a run of {recipe.name} as it was before; remove it to run anew")
        print(f"{folder}: already complete; remove the folder to run it again", file=sys.stderr)
        return found
    return None
