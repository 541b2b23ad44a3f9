"""`repro run --pending`: the runs that measured claims still wait for, the most telling first, within a budget."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from repro import records
from repro.claims.ledger import FromRecord, claims
from repro.errors import DataError, Preempted, RecipeError, ReproError, ResourceError
from repro.training.command import Sharing, train_seeds
from repro.training.recipe import load_recipe

UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Pending:
    """A run that is not recorded: the claims that wait for it, and how long it should take if another seed tells."""

    recipe: str
    seed: int
    claims: tuple[str, ...]
    decides: bool
    """Whether it turns a single run into several, and so "not tested" into a verdict."""
    seconds: float | None

    @property
    def name(self) -> str:
        return records.run_name(self.recipe, self.seed)


def pending(folder: Path | None = None) -> list[Pending]:
    """What the ledger waits for: first what decides a verdict, then by the number of claims, then the shortest.

    Runs at a smaller scale than their source's never decide one. A recipe of which no seed has run counts as longer
    than any other.
    """
    waiting: dict[str, list[str]] = {}
    scales: dict[str, bool] = {}
    for claim in claims():
        if isinstance(claim.check, FromRecord):
            waiting.setdefault(claim.check.record, []).append(claim.id)
            scales[claim.check.record] = scales.get(claim.check.record, False) or claim.check.scale == "same"
    found = []
    for recipe, ids in waiting.items():
        done = {r.seed: r.seconds for r in records.load(recipe, folder)}
        seconds = sum(done.values()) / len(done) if done else None
        decides = scales[recipe] and len(done) == 1
        missing = [seed for seed in load_recipe(recipe).seeds if seed not in done]
        found += [Pending(recipe, seed, tuple(ids), decides, seconds) for seed in missing]
    order = {True: 0, False: 1}
    return sorted(found, key=lambda p: (order[p.decides], -len(p.claims), p.seconds or float("inf"), p.name))


def seconds_of(text: str) -> float:
    """`25m`, `90s` or `2h` in seconds; raises RecipeError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise RecipeError(f"--budget {text}: expected a time, as 25m, 90s or 2h")
    return float(match[1]) * UNITS[match[2]]


def run_pending(train: Callable[[Pending, bool], None], run_dir: Path, records_dir: Path, budget: float | None) -> None:
    """Run what is pending, one after the other, by `train(run, resume)`, until all is done or `budget` seconds passed.

    Then the run under way is saved as on Ctrl-C, and the same call goes on with it another time. A run whose data or
    device is not here is named and left out. Raises `Preempted` when something is left.
    """
    end = None if budget is None else monotonic() + budget
    left_out: list[Pending] = []
    while todo := [p for p in pending(records_dir) if p not in left_out]:
        run = todo[0]
        if end is not None and monotonic() >= end:
            raise Preempted(f"{len(todo)} runs are pending, {run.name} next; the budget is used up")
        try:
            with _stopped_at(end):
                train(run, (run_dir / run.name / "record.json").exists())
        except (DataError, ResourceError) as e:
            print(f"repro: {run.name}: left out: {e}", file=sys.stderr)
            left_out.append(run)
        else:
            if run in pending(records_dir):  # from a changed checkout, say: such a record feeds no table
                raise ReproError(f"{run.name}: is done, but its record does not count; commit what you changed first")


def trainer(
    run_dir: Path, records_dir: Path, device: str | None, threads: int | None, compiled: bool
) -> Callable[[Pending, bool], None]:
    """What trains a run, as `repro train` does with these options."""

    def train(run: Pending, resume: bool) -> None:
        train_seeds(
            run.recipe,
            overrides=[],
            seeds=[run.seed],
            resume=resume,
            run_dir=run_dir,
            records_dir=records_dir,
            device=device,
            threads=threads,
            compiled=compiled,
            save_every_s=60.0,
            sharing=Sharing(),
        )

    return train


@contextmanager
def _stopped_at(end: float | None) -> Iterator[None]:
    """At `end` this process gets the signal that asks a run to save itself and stop."""
    timer = (
        None if end is None else threading.Timer(max(0.0, end - monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    )
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer:
            timer.cancel()
