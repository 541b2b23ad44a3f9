"""How everything here is timed: the sides take turns in one run, and nothing is compared before it computes the same.

A machine's speed drifts (temperature, other programs), so two timings taken one after the other may differ for reasons
that have nothing to do with the code. Here every round runs each side once. The minimum over the rounds is the figure
least disturbed by others; the median is printed beside it.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 8
OURS = "ours"  # the side every other one is compared with

Side = Callable[[], float]
"""One round of work; returns the seconds of the part that counts, which is not always all of it."""


@dataclass
class Comparison:
    """What one subject measured: the seconds of every round of every side, and what they are held against."""

    subject: str
    data: str
    seconds: dict[str, list[float]]
    goal: float | None = None
    """The ratio to reach; None when the data is a stand-in, for which none was set."""
    limit: float | None = None
    """Seconds that our side may take at most."""
    flop: float | None = None
    """Floating-point operations of what was timed; with them and `peaks`, shares of the peaks can be stated."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Operations per second, from `measure_peaks`."""
    notes: list[str] = field(default_factory=list)
    """How both sides were shown to compute the same."""

    @property
    def baseline(self) -> str:
        """The fastest of the other sides."""
        return min((s for s in self.seconds if s != OURS), key=lambda side: self.minimum(side))

    def minimum(self, side: str) -> float:
        return min(self.seconds[side])

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """How many times as fast ours is, minimum against minimum."""
        return self.minimum(self.baseline) / self.minimum(OURS)

    @property
    def median_ratio(self) -> float:
        return self.median(self.baseline) / self.median(OURS)

    def share(self, peak: str) -> float | None:
        """Part of a peak rate (a key of `peaks`) that our side reaches."""
        return self.flop / self.minimum(OURS) / self.peaks[peak] if self.flop and peak in self.peaks else None

    @property
    def reached(self) -> bool | None:
        """Whether goal and limit are met; None when there is neither."""
        checks = []
        if self.goal is not None:
            checks.append(self.ratio >= self.goal)
        if self.limit is not None:
            checks.append(self.minimum(OURS) <= self.limit)
        return all(checks) if checks else None

    def summary(self) -> dict[str, Any]:
        """Everything above as JSON."""
        derived = {
            "baseline": self.baseline,
            "ratio": self.ratio,
            "median_ratio": self.median_ratio,
            "reached": self.reached,
            "shares": {peak: self.share(peak) for peak in self.peaks},
        }
        return asdict(self) | derived


def alternate(subject: str, sides: Mapping[str, Side], rounds: int = ROUNDS, warmup: int = 1) -> dict[str, list[float]]:
    """Run the sides in turn, `warmup` rounds that are forgotten and `rounds` that are kept: seconds per side."""
    kept: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for round_ in range(-warmup, rounds):
        for side in names:
            what = "warm-up" if round_ < 0 else f"round {round_ + 1}/{rounds}"
            progress(f"{subject}: {what}, {side}")
            seconds = sides[side]()
            if round_ >= 0:
                kept[side].append(seconds)
        names.reverse()  # so that no side always follows the same other one
    progress("")
    return kept


def progress(line: str) -> None:
    """Say what is running: on one line of a terminal, on lines of their own in a log."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> Side:
    """A side that counts all of `work`."""

    def side() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return side


def require_close(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """Raise AssertionError unless both sides computed the same; returns a note of how close they were.

    The difference is relative to the largest magnitude of theirs.
    """
    difference = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    if not difference <= tolerance:
        raise AssertionError(
            f"{what}: the sides differ by {difference:.2e}, allowed {tolerance:.0e}: not the same work"
        )
    return f"{what} differ by at most {difference:.1e}"


def measure_peaks(dtype: torch.dtype, repeats: int = 12) -> dict[str, float]:
    """The best rates this machine reaches in `dtype`, in operations per second: a matrix product and a convolution.

    Both are larger and more regular than anything in the nets: 2048×2048 matrices, and 128 maps of 256 channels, 16×16,
    under 3×3 kernels, channels-last.
    """
    n = 2048
    a, b = torch.randn(2, n, n).to(dtype)
    images = torch.randn(128, 256, 16, 16).to(dtype, memory_format=torch.channels_last)
    kernels = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
    works = {
        "matrix product": (2 * n**3, timed(lambda: a @ b)),
        "convolution": (2 * images.numel() * kernels[0].numel(), timed(lambda: F.conv2d(images, kernels, padding=1))),
    }
    with torch.inference_mode():
        return {name: flop / min(work() for _ in range(repeats)) for name, (flop, work) in works.items()}


def table(comparisons: list[Comparison]) -> Table:
    """The one table: minimum (median) of ours and of the fastest other side, ratios, goal, and shares of the peaks."""
    columns = ("subject", "data", "ours", "baseline", "ratio", "goal", "of matrix peak", "of conv. peak")
    drawn = Table(*columns, box=None, caption="minimum (median); the ratios likewise", caption_justify="left")
    for c in comparisons:
        drawn.add_row(
            c.subject,
            c.data,
            f"{duration(c.minimum(OURS))} ({duration(c.median(OURS))})",
            f"{duration(c.minimum(c.baseline))} ({duration(c.median(c.baseline))}), {c.baseline}",
            f"{c.ratio:.2f} ({c.median_ratio:.2f})",
            goal(c),
            percent(c.share("matrix product")),
            percent(c.share("convolution")),
        )
    return drawn


def duration(seconds: float) -> str:
    """Three digits, in s or ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def goal(c: Comparison) -> str:
    """What was aimed at, and whether it was reached."""
    aims = []
    if c.goal is not None:
        aims.append(f"≥ {c.goal:g}×")
    if c.limit is not None:
        aims.append(f"≤ {duration(c.limit)}")
    if not aims:
        return "–"
    return ", ".join(aims) + (" reached" if c.reached else " MISSED")


def percent(share: float | None) -> str:
    """A share of a peak; a dash where there is none."""
    return "–" if share is None else f"{share:.0%}"
