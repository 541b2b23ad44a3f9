"""What runs measured: one JSON file per recipe and seed, and what follows from several of them.

A record is written by a run and by nothing else. It holds what is needed to judge the number and to make it again:
recipe and digest, seed, data digest, versions, device, commit, every epoch. Chapters read records; the rule for a
verdict is `judge`.
"""

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from repro.errors import CheckpointError, DataError
from repro.files import read_model, write_model

LONGEST_NAME = 180  # bytes: most systems allow 255, of which seed, ending and the name of a half-written file take some

Status = Literal["complete", "crashed", "preempted", "running"]


class Epoch(BaseModel):
    """One pass: rates and means over every sample exactly once; errors are fractions, seconds are wall time."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    seconds: float
    learning_rate: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    test_top5_error: float | None = None
    """The share whose class is not among the five most likely; None with five classes or fewer."""


class Record(BaseModel):
    """A run: what it was, where and on what it ran, and what it measured."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    seed: int
    status: Status
    recipe_digest: str
    recipe_content: dict[str, Any]
    command: str
    started: str
    git: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]
    data: dict[str, Any]
    parameters: int
    selection: str
    epochs: list[Epoch]
    restarts: int = 0
    message: str = ""

    @property
    def last(self) -> Epoch:
        """The result: the last epoch."""
        if not self.epochs:
            raise DataError(f"{self.recipe} seed {self.seed}: no epoch was finished (status {self.status})")
        return self.epochs[-1]

    @property
    def best_peeked(self) -> Epoch:
        """The epoch with the smallest test error, chosen by looking at the test set: never the result."""
        return min(self.epochs or [self.last], key=lambda e: e.test_error)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs together."""
        return sum(e.seconds for e in self.epochs)

    @property
    def counts(self) -> bool:
        """Whether it may feed a table: complete, and from a commit with nothing changed."""
        return self.status == "complete" and self.git.get("dirty") is False


def records_dir() -> Path:
    """`$REPRO_RECORDS`, or `records/` of the checkout the package runs from, or the copy in an installed package."""
    if chosen := os.environ.get("REPRO_RECORDS"):
        return Path(chosen)
    package = Path(__file__).resolve().parent
    installed = package / "_records"
    return installed if installed.is_dir() else package.parent / "records"


def run_name(recipe: str, seed: int) -> str:
    """What a run's folder and its record are called: recipe and seed, without what a file name cannot hold."""
    safe = re.sub(r"[^\w.,=+-]", "_", recipe)
    if len(safe.encode()) > LONGEST_NAME:
        safe = (
            f"{safe.encode()[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(safe.encode()).hexdigest()[:12]}"
        )
    return f"{safe}-{seed}"


def file_of(recipe: str, seed: int) -> str:
    """The name of a record's file."""
    return f"{run_name(recipe, seed)}.json"


def read(path: Path) -> Record:
    """One record; raises CheckpointError naming the file when it is damaged. Nothing in it is run."""
    return read_model(Record, path, "record")


def write(record: Record, path: Path) -> None:
    """Write a record, whole or not at all; raises ResourceError when the disk refuses."""
    write_model(record, path, "record", "free space and resume")


def load(recipe: str, folder: Path | None = None) -> list[Record]:
    """The records of a recipe that count (complete, from a clean commit), by seed.

    Raises CheckpointError when they are not of one and the same recipe: it was changed between two seeds.
    """
    found = [r for r in load_all(folder) if r.recipe == recipe and r.counts]
    if len({r.recipe_digest for r in found}) > 1:
        digests = ", ".join(f"seed {r.seed} {r.recipe_digest[:8]}" for r in found)
        raise CheckpointError(f"{recipe}: its records are of different recipes ({digests}); run the older seeds again")
    return found


def load_all(folder: Path | None = None) -> list[Record]:
    """Every record in a folder, by recipe and seed; raises CheckpointError for one under another one's name."""
    found = []
    for path in (folder or records_dir()).glob("*.json"):
        record = read(path)
        if path.name != file_of(record.recipe, record.seed):  # a copy would count as one more run
            raise CheckpointError(f"{path}: is the record of {record.recipe} seed {record.seed}; rename or remove it")
        found.append(record)
    return sorted(found, key=lambda r: (r.recipe, r.seed))


@dataclass(frozen=True)
class Spread:
    """Several runs of one thing: mean, standard deviation (n − 1), count, smallest and largest."""

    mean: float
    std: float
    n: int
    min: float
    max: float

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.2%} (one run)"
        return f"{self.mean:.2%} ± {self.std:.2%} (n = {self.n}, {self.min:.2%} to {self.max:.2%})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value; the deviation of a single run is 0 and says nothing."""
    if not values:
        raise DataError("spread: no values; run the recipe first (`repro train`)")
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), std, len(values), min(values), max(values))


POINT = 0.01  # of an error rate
MARGIN = POINT / 2
IMAGENET_MARGIN = POINT  # of top-1, where the resizing of the pictures is a choice too


def judge(ours: Spread, published: float, rounding: float, samples: int | None, margin: float = MARGIN) -> str:
    """The verdict on a published error rate, given ours over several seeds; with `samples` None, on another quantity.

    `reproduced`: it lies in our 95 % t-interval widened by the binomial error of a test set of `samples` and by half
    a unit of the source's last digit. `close`: within the larger of three standard deviations and `margin`. Beating
    it by more than three standard deviations is said too. A single run is never more than `single run`.
    """
    if ours.n < 2:
        return "single run"
    from scipy.stats import t

    interval = t.ppf(0.975, ours.n - 1) * ours.std / math.sqrt(ours.n)
    binomial = 1.96 * math.sqrt(published * (1 - published) / samples) if samples else 0.0
    margin = margin if samples else 0.0
    distance = abs(ours.mean - published)
    if distance <= math.hypot(interval, binomial) + rounding:
        verdict = "reproduced"
    elif distance <= max(3 * ours.std, margin):
        verdict = "close"
    else:
        verdict = "not reproduced"
    better = samples is not None and published - ours.mean > 3 * ours.std
    return f"{verdict}, better than published" if better else verdict


def environment() -> dict[str, str]:
    """Versions of what a number depends on."""
    packages = ("torch", "torchvision", "numpy", "pillow", "pyarrow", "safetensors")
    versions = {p: importlib.metadata.version(p) for p in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """The commit of the checkout the package runs from, and whether anything in it was changed since.

    Outside a checkout (an installed package) the commit is None and `dirty` None: such a record feeds no table.
    """
    folder = folder or Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not (folder / "pyproject.toml").exists():
            return {"commit": None, "dirty": None}
        # A record that another run has just finished is no change of the code.
        changes = git("status", "--porcelain", "--", ".", ":!records")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
