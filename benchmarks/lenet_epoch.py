"""An epoch of the lectures' LeNet over MNIST, batch 128: the training loop of `repro` against the tutorial's."""

from functools import partial

from benchmarks.harness import OURS, Comparison, alternate, measure_peaks
from benchmarks.training import Rivals
from benchmarks.tutorial import WORKERS

GOAL = 3.0


def compare(rounds: int) -> list[Comparison]:
    """Seconds of an epoch; what each side does with a test set is left out."""
    rivals = Rivals("lenet5-modern", fallback="digits")
    note = rivals.require_same()
    sides = {OURS: rivals.our_epoch}
    sides |= {f"tutorial, {n} workers": partial(rivals.their_epoch, n) for n in WORKERS}
    seconds = alternate("LeNet epoch", sides, rounds)
    comparison = Comparison(
        "LeNet epoch",
        rivals.data,
        seconds,
        goal=None if rivals.stand_in else GOAL,
        flop=rivals.training_flop() * len(rivals.train_set),
        peaks=measure_peaks(rivals.compute_dtype),
        notes=[note],
    )
    return [comparison]
