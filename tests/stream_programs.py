"""What the ranks of the tests of streams do: train a net that keeps every picture that reaches it."""

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repro.data import stream
from repro.errors import Preempted
from repro.models import registry
from repro.training import loop, train
from repro.training.parallel import MODES, Group
from repro.training.recipe import Recipe

CROP, CLASSES = 24, 3


class Seen(NamedTuple):
    """One picture as it reached the net: a digest of its values, their range in units of 0…255, and its label."""

    digest: str
    range: float
    label: int


class Ledger:
    """What reached the net of this process, pass by pass, and the threads that decoded for it."""

    def __init__(self) -> None:
        self.pictures: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.threads: set[str] = set()
        self.stop_after = 0
        """So many passes until this process gets a SIGTERM; 0: none."""

    def passes(self, std: float) -> list[list[Seen]]:
        """The pictures of each pass in their order; `std` is what they were divided by."""
        labels = iter(self.labels)
        return [self._pass(x, next(labels) if len(x) else torch.empty(0), std) for x in self.pictures]

    def _pass(self, pictures: Tensor, labels: Tensor, std: float) -> list[Seen]:
        assert len(pictures) == len(labels)
        digests = [hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for x in pictures]
        ranges = [255 * std * float(x[0].max() - x[0].min()) for x in pictures]
        return [Seen(*one) for one in zip(digests, ranges, labels.tolist(), strict=True)]


LEDGER = Ledger()


class Witness(nn.Module):
    """One linear layer, from (N, 3, CROP, CROP) to logits, that keeps what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * CROP * CROP, CLASSES))

    def forward(self, x: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            LEDGER.pictures.append(x.detach().clone())
            if len(LEDGER.pictures) == LEDGER.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.layers(x)


def watch(workers: int) -> None:
    """Register the net, see the labels that the loss gets and the threads that decode, of which there are `workers`."""
    registry.register("witness", input_size=(3, CROP, CROP), source="tests")(Witness)
    loss_function, decode_rows = loop.loss_function, stream.decode_rows

    def watched_loss(*named: Any) -> Any:
        loss = loss_function(*named)

        def call(logits: Tensor, labels: Tensor) -> Tensor:
            if logits.requires_grad:
                LEDGER.labels.append(labels.clone())
            return loss(logits, labels)

        return call

    def watched_rows(*arguments: Any) -> None:
        LEDGER.threads.add(threading.current_thread().name)
        decode_rows(*arguments)

    loop.loss_function, stream.decode_rows = watched_loss, watched_rows  # type: ignore[assignment]
    stream.usable_cores = lambda: workers


def streams(
    group: Group, recipes: dict[str, Recipe], mode: str, folder: Path, points: list[int], workers: int
) -> dict[str, tuple[list[list[list[Seen]]], int]]:
    """What reached this rank's net in an undisturbed run of each recipe, and in one stopped and resumed for each point.

    Points are in steps. Beside the runs stands the number of threads that decoded.
    """
    watch(workers)
    found = {}
    for name, recipe in recipes.items():
        LEDGER.threads.clear()
        runs = [_run(group, recipe, mode, None)]
        for point in points:
            run_dir = folder / f"{name}, {mode}, {point}"
            first = _run(group, recipe, mode, run_dir, stop_after=point if group.is_first else 0, preempted=True)
            assert len(first) == point
            runs.append(first + _run(group, recipe, mode, run_dir, resume=True))
        found[name] = runs, len(LEDGER.threads)
    return found


def _run(
    group: Group,
    recipe: Recipe,
    mode: str,
    run_dir: Path | None,
    stop_after: int = 0,
    preempted: bool = False,
    resume: bool = False,
) -> list[list[Seen]]:
    """The passes of one process; `preempted` says whether some rank is to be stopped."""
    LEDGER.pictures, LEDGER.labels, LEDGER.stop_after = [], [], stop_after
    try:
        train(recipe, run_dir=run_dir, resume=resume, parallel=MODES[mode](group), save_every_s=1e9)
    except Preempted:
        assert preempted
    else:
        assert not preempted
    assert recipe.data.std is not None
    return LEDGER.passes(recipe.data.std[0])
