"""A training step of AlexNet at CIFAR-10's size, batch 128, with random crops and flips.

Twice: both sides in one process, and each in its own, started as a user starts it. For ours that is the environment of
the `repro` command, which asks for large memory pages before torch is imported.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.harness import OURS, Comparison, Side, alternate, measure_peaks
from benchmarks.training import Rivals
from benchmarks.tutorial import WORKERS

GOAL, GOAL_AS_STARTED = 2.4, 2.7
STEPS = 6  # of one round


def sides_of(rivals: Rivals) -> dict[str, Side]:
    """Each side's round: seconds per step."""
    sides: dict[str, Side] = {OURS: partial(rivals.our_steps, STEPS)}
    return sides | {f"tutorial, {n} workers": partial(rivals.their_steps, STEPS, n) for n in WORKERS}


def compare(rounds: int) -> list[Comparison]:
    """In one process, then each side in its own."""
    rivals = Rivals("alexnet-cifar10", fallback="shapes")
    note = rivals.require_same()
    flop = rivals.training_flop() * rivals.recipe.batch_size
    peaks = measure_peaks(rivals.compute_dtype)
    sides = sides_of(rivals)
    runs = [("AlexNet step", GOAL, alternate("AlexNet step", sides, rounds))]
    with ExitStack() as stack:
        started = {side: stack.enter_context(own_process(side)) for side in sides}
        name = "AlexNet step, as started"
        runs.append((name, GOAL_AS_STARTED, alternate(name, started, rounds)))
    return [
        Comparison(name, rivals.data, seconds, None if rivals.stand_in else goal, flop=flop, peaks=peaks, notes=[note])
        for name, goal, seconds in runs
    ]


@contextmanager
def own_process(side: str) -> Iterator[Side]:
    """A side that lives in a process of its own; it answers each line of input with the seconds of a round."""
    imports = "import repro.cli, benchmarks.alexnet_step" if side == OURS else "import benchmarks.alexnet_step"
    command = [sys.executable, "-c", f"{imports} as b; b.serve({side!r})"]
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask() -> float:
            print(file=stdin, flush=True)
            return float(stdout.readline())

        yield ask
        stdin.close()


def serve(side: str) -> None:
    """The other end of `own_process`."""
    run = sides_of(Rivals("alexnet-cifar10", fallback="shapes"))[side]
    for _ in sys.stdin:
        print(run(), flush=True)
