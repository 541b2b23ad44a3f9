"""`repro bench`: what is counted, what is timed, and that the steps are those of training."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, own_set, register_tiny
from torch import Tensor

from repro.data import load
from repro.data.augmentation import Batches
from repro.data.random import permutation
from repro.errors import RecipeError, UnknownName
from repro.models import get_model
from repro.training import bench
from repro.training.bench import Speed, bench_loader, bench_train, duration, loader_speed, train_speed
from repro.training.loop import Trainer
from repro.training.parallel import Group, OneProcess

ALONE = OneProcess(Group())
BATCH = 20


@pytest.fixture(autouse=True)
def tiny() -> None:
    register_tiny()


@dataclass
class Clock:
    """A clock that moves when it is told to, and the seconds that batches say they waited."""

    now: float = 0.0
    waited: float = 0.0
    asked: list[tuple[int, list[int]]] = field(default_factory=list)  # the epoch of each batch, and what was made of it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Each batch takes two seconds, half a second of which is waiting; each of the first three a hundred more."""
    clock = Clock()
    augmented = Batches.augmented

    def slow(self: Batches, indices: Tensor, seed: int, epoch: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        first = 100.0 * (len(clock.asked) < 3)
        clock.now, clock.waited = clock.now + 2.0 + first, clock.waited + 0.5 + first
        clock.asked.append((epoch, indices[part].tolist()))
        return augmented(self, indices, seed, epoch, part)

    monkeypatch.setattr(Batches, "augmented", slow)
    monkeypatch.setattr(Batches, "waited_s", property(lambda self: clock.waited))
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_the_paper_s_rate_gives_the_paper_s_days() -> None:
    """Catches passes or pictures left out of the projection, and a share of waiting over pictures instead of time."""
    speed = Speed("two GTX 580", images=2270, seconds=10.0, waited_s=2.5)  # 227 images/s: 90 · 1.2 million in 5.5 days
    assert speed.images_per_s == 227
    assert speed.waiting == 0.25
    assert speed.full_run_s == pytest.approx(90 * 1_281_167 / 227)
    assert str(speed).splitlines() == [
        "two GTX 580",
        "  227 images/s (2,270 in 10.0 s), 25.0% of the time waiting for data",
        "  90 epochs of 1,281,167 images: 5.9 days at this rate; in 2012 five to six days on two GTX 580",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1.0 min"), (5400, "1.5 h"), (86_400, "1.0 days"), (1e7, "115.7 days")],
)
def test_durations_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    """Catches a factor of 60 or 24 that is wrong, and a unit too large."""
    assert duration(seconds) == text


def test_training_is_timed_after_the_warm_up(clock: Clock) -> None:
    """Catches a warm-up that is timed or counted, a clock that stops too early, and waiting from before the start."""
    speed = train_speed("tiny", ALONE, batch_size=BATCH, seconds=7.0)
    assert (speed.images, speed.seconds, speed.waited_s) == (4 * BATCH, 8.0, 2.0)
    assert len(clock.asked) == bench.WARM_UP + 4


def test_a_loader_is_timed_the_same_way(clock: Clock) -> None:
    """Catches a loader whose waiting is not asked for, and a run that ends before the seconds are over."""
    speed = loader_speed("digits", Group(), batch_size=BATCH, seconds=1.0)
    assert (speed.images, speed.seconds, speed.waited_s) == (BATCH, 2.0, 0.5)


def test_each_epoch_reads_each_picture_once_in_another_order(clock: Clock) -> None:
    """Catches the same batch over and over, which a cache would serve, an epoch that never ends, and a ragged batch."""
    train_speed("tiny", ALONE, batch_size=BATCH, seconds=2.0 * 5)
    epochs: dict[int, list[int]] = {}
    for epoch, indices in clock.asked:
        assert len(indices) == BATCH
        epochs.setdefault(epoch, []).extend(indices)
    everything = list(range(bench.DRAWN_BATCHES * BATCH))
    assert [sorted(order) for order in epochs.values()] == [everything] * 4
    assert len({tuple(order) for order in epochs.values()}) == 4


def test_the_steps_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a step that leaves out the update or the backward pass, and dropout or norms in evaluation mode."""
    seen: list[Trainer] = []
    steps: list[tuple[bool, int, int]] = []
    step = Trainer.step

    def watched(self: Trainer, indices: Tensor) -> None:
        seen.append(self)
        steps.append((self.forward.training and self.model.training, self.place.epoch, self.place.step))
        before = [p.detach().clone() for p in self.model.parameters()]
        step(self, indices)
        assert all(not torch.equal(p, q) for p, q in zip(self.model.parameters(), before, strict=True))

    monkeypatch.setattr(bench, "RATE", 0.1)  # so small a rate as the real one need not move a weight of float32
    monkeypatch.setattr(Trainer, "step", watched)
    train_speed("tiny:dropout=0.25", ALONE, batch_size=BATCH, seconds=0.0)
    assert steps == [(True, 0, 0), (True, 0, 1), (True, 1, 0), (True, 1, 1)]
    assert seen[-1].recipe.model_options == {"dropout": 0.25}
    assert seen[-1].sums.count == 4 * BATCH


@pytest.mark.parametrize(
    ("net", "pictures", "cut"),
    [("alexnet:num_classes=3", (40, 256, 256, 3), 224), ("lenet5", (40, 32, 32, 1), 32), ("tiny", (40, 28, 28, 1), 28)],
)
def test_drawn_pictures_are_what_the_net_takes(net: str, pictures: tuple[int, ...], cut: int) -> None:
    """Catches a net for ImageNet fed without a crop, grey pictures for a net of colours, and classes it has not."""
    size = pictures[1] if pictures[1] != cut else None
    recipe = bench._recipe(net, BATCH, "auto", name="drawn", size=size)
    drawn = bench.drawn_pictures(recipe, torch.device("cpu"))
    assert drawn.train_set.images.shape == pictures
    assert (drawn.train_batches.height, drawn.train_batches.width) == (cut, cut)
    classes = 3 if net.startswith("alexnet") else 10
    assert drawn.train_set.labels.unique().tolist() == list(range(classes))
    images, _ = drawn.train_batches.augmented(torch.arange(4), 0, 0)
    assert get_model(recipe.model, **recipe.model_options)(images).shape == (4, classes)
    assert images.mean().abs() < 0.05  # standardised: (x − 0.5) / 0.25
    assert images.std().item() == pytest.approx(4 / 12**0.5, rel=0.02)


def test_a_real_set_decides_the_number_of_outputs(data: Path, cache: Path) -> None:
    """Catches a net of ten outputs on a set of three classes, and an option given by hand that is overruled."""
    own_set(data, n=6, side=32)
    speed = train_speed("alexnet_cifar10", ALONE, batch_size=3, seconds=0.0, data="pets")
    assert speed.images == 3
    assert speed.what.startswith(f"alexnet_cifar10, {23_238_474 - 7 * 1025:,} parameters")
    with pytest.raises(RecipeError, match="alexnet_cifar10 has 7 outputs, but pets has 3 classes"):
        train_speed("alexnet_cifar10:num_classes=7", ALONE, batch_size=3, seconds=0.0, data="pets")


def test_a_batch_larger_than_the_set_is_the_set(clock: Clock) -> None:
    """Catches an epoch without a single full batch, which would go on for ever."""
    speed = loader_speed("digits", Group(), split="test", batch_size=10**6, seconds=0.0)
    assert speed.images == len(clock.asked[-1][1]) == len(set(clock.asked[-1][1])) < 1797


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bench_train("lenet_5"), "no model is called 'lenet_5'; did you mean lenet5"),
        (lambda: bench_train("tiny", data="digit", seconds=0.0), "data set 'digit': did you mean digits"),
        (lambda: bench_loader("digit"), "data set 'digit': did you mean digits"),
        (lambda: bench_train("tiny", parallel="dta"), "--parallel dta: did you mean data"),
    ],
)
def test_unknown_names_get_the_nearest(call: object, message: str) -> None:
    """Catches a slip that surfaces as a missing file or a KeyError."""
    with pytest.raises(UnknownName, match=message):
        call()  # type: ignore[operator]


class SecondOfTwo(Group):
    """Rank 1 of two, whose other rank always agrees."""

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        return wishes

    def total(self, values: Tensor) -> Tensor:
        return 2 * values


def test_each_rank_of_a_loader_reads_its_share(clock: Clock) -> None:
    """Catches ranks that all read the whole batch, a share that is counted for the whole, and waiting added up."""
    speed = loader_speed("digits", SecondOfTwo(rank=1, world_size=2), batch_size=BATCH, seconds=0.0)
    order = permutation(len(load("digits")), bench.SEED, 0).tolist()
    shares = [order[i + BATCH // 2 : i + BATCH] for i in range(0, 4 * BATCH, BATCH)]
    assert [own for _, own in clock.asked] == shares
    assert (speed.images, speed.waited_s) == (BATCH, 0.5)


def test_two_processes_share_a_batch_and_one_prints() -> None:
    """Catches ranks that stop each at its own time and leave the other waiting, and a step counted or printed twice."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = [
        "-m",
        "repro",
        "bench",
        "train",
        "lenet5_modern",
        "--batch-size",
        "64",
        "--seconds",
        "0",
        "--device",
        "cpu",
    ]
    done = subprocess.run([*torchrun, *train], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s") == 1
    assert "2 ranks (data)" in done.stdout
    assert "(64 in " in done.stdout
