"""Twelve ways in which a reproduction goes wrong without a word and still gives a plausible number; a test for each.

Every oracle is written out here: plain arithmetic that uses nothing of the package but what it judges.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import encode, register_tiny, tiny_recipe
from PIL import Image
from ranks import in_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from repro.data import ImageSet, load
from repro.data.augmentation import Augmentation, Batches
from repro.models import get_model
from repro.models.layers import Dropout2012
from repro.training import train
from repro.training.fusion import fuse
from repro.training.loop import Trainer
from repro.training.measure import Measured, Sums
from repro.training.optim import learning_rate, make_optimizer, set_rate
from repro.training.parallel import DataParallel, Group
from repro.training.recipe import Optimizer, Schedule
from repro.training.setup import Pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> None:
    register_tiny()
    torch.set_num_threads(1)


def trainer(pictures: Pictures | None = None, **changes: Any) -> Trainer:
    return Trainer(tiny_recipe(**changes), 0, CPU, pictures=pictures)


def on_meta(name: str, **options: Any) -> nn.Module:
    """A net without memory for its weights."""
    with torch.device("meta"):
        return get_model(name, **options)


def test_01_mean_and_deviation_are_those_of_the_training_pictures() -> None:
    """Catches mean, deviation and mean image of the test set, of both splits together, or of training pictures beyond
    those that are trained on.
    """
    seen = load("digits").images[:200].double() / 255
    test = load("digits", "test").images[:8].double() / 255
    mean = seen.mean()
    expected = {
        "of its own": ({}, (test - mean) / (seen - mean).square().mean().sqrt()),
        "given": ({"mean": [0.25], "std": [0.5]}, (test - 0.25) / 0.5),
        "an image": ({"mean_image": "centre", "std": [0.5]}, (test - seen.mean(0)) / 0.5),
    }
    for what, (changes, standardised) in expected.items():
        t = trainer(data={"name": "digits", "limit": 200} | changes)
        shown = t.test_batches.plain(0, 8)[0].permute(0, 2, 3, 1).double()
        torch.testing.assert_close(shown, standardised, rtol=1e-5, atol=1e-5, msg=what)


def test_02_the_result_is_the_last_epoch_whatever_the_test_set_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the best epoch on the test set given out as the result, its weights kept, or a run that ends there."""
    untouched = train(tiny_recipe(epochs=3))[1]
    errors = [0.9, 0.1, 0.5]
    measured = iter(errors)
    monkeypatch.setattr(Trainer, "evaluate", lambda self, batches: Measured(1.0, next(measured)))
    record, model = train(tiny_recipe(epochs=3))
    assert [e.test_error for e in record.epochs] == errors
    assert record.last.test_error == 0.5
    assert record.best_peeked.test_error == 0.1  # and it is called so
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "scale", "width"),
    [
        ("alexnet_2012", {}, 1e-4, 256),
        ("alexnet_2012", {"lrn": "library"}, 1e-4, 256),
        ("alexnet_2012_code", {}, 1e-4 / 5, 128),
    ],
)
def test_03_alpha_counts_as_in_the_source_and_the_sum_stays_in_its_column(
    name: str, options: dict[str, Any], scale: float, width: int
) -> None:
    """Catches α with n where the source has it without, or the other way round, and a sum across the columns' border
    in the net of the code, or one that stops there in the net of the paper.
    """
    activity = 50 * torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = activity.tolist()
    expected = []
    for i in range(256):
        column = i // width
        window = [j for j in range(i - 2, i + 3) if 0 <= j < 256 and j // width == column]
        expected.append(a[i] / (2 + scale * sum(a[j] ** 2 for j in window)) ** 0.75)
    found = on_meta(name, **options).get_submodule("features.norm2")(activity.view(1, 256, 1, 1))
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_04_dropout_is_scaled_once_and_never_active_in_evaluation(p: float) -> None:
    """Catches units scaled twice, not at all or on the wrong side, p taken for the share that is kept, and dropout in
    evaluation: in each kind of layer, and in what training calls in its place.
    """
    x = torch.full((1000, 1000), 3.0)
    kinds = [(Dropout2012(p), 3.0, 3 * (1 - p)), (nn.Dropout(p), 3 / (1 - p), 3.0)]
    for layer, when_kept, evaluated in kinds:
        for called in (layer, fuse(nn.Sequential(layer))):
            torch.manual_seed(0)
            y = called.train()(x)
            assert y.unique().tolist() == pytest.approx([0, when_kept])
            assert (y == 0).double().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / x.numel()))
            assert called.eval()(x).unique().tolist() == pytest.approx([evaluated])


def test_05_decay_momentum_and_weight_decay_are_those_of_their_source() -> None:
    """Catches Keras' `decay` taken for weight decay or counted in epochs, a weight decay that is not part of the
    gradient (AdamW's), and the momentum of 2012 taken for PyTorch's: they part when the rate changes.
    """
    schedule = Schedule(name="steps", at=[2], decay_per_step=0.5)
    rates = [learning_rate(schedule, 0.8, step / 2, 4, steps_done=step) for step in range(6)]
    assert rates == pytest.approx([0.8, 0.8 / 1.5, 0.4, 0.8 / 2.5, 0.08 / 3, 0.08 / 3.5])
    for name in ("sgd", "sgd2012"):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        spec = Optimizer(name=name, learning_rate=0.8, momentum=0.9, weight_decay=0.1)
        optimizer = make_optimizer(nn.ParameterList([weight]), spec)
        w, v = 1.0, 0.0
        for step, rate in enumerate(rates):
            gradient = 0.5 - step
            weight.grad = torch.full_like(weight, gradient)
            set_rate(optimizer, rate)
            optimizer.step()
            if name == "sgd":
                v = 0.9 * v + gradient + 0.1 * w
                w -= rate * v
            else:
                v = 0.9 * v - rate * (gradient + 0.1 * w)
                w += v
            assert weight.item() == pytest.approx(w, rel=1e-9), (name, step)


def test_06_the_first_convolution_has_55_places_on_each_side() -> None:
    """Catches 224 pixels without padding, which give 54; the flower report's code does so, and its net here as well."""
    by_hand = {
        "padded by 2": len(range(-2, 224 + 2 - 10, 4)),
        "227 pixels": len(range(0, 227 - 10, 4)),
        "the last window hangs over": len(range(0, 224 - 10 + 3, 4)),
        "not padded": len(range(0, 224 - 10, 4)),
    }
    assert list(by_hand.values()) == [55, 55, 55, 54]
    nets = [("alexnet_2012", 224, 55), ("alexnet_2012", 227, 55), ("alexnet_2012_code", 224, 55),
            ("alexnet_one_column", 224, 55), ("alexnet", 224, 55), ("alexnet_flowers", 224, 54)]  # fmt: skip
    for name, side, places in nets:
        convolution = next(m for m in on_meta(name).modules() if isinstance(m, nn.Conv2d))
        maps = convolution(torch.empty(1, 3, side, side, device="meta"))
        assert maps.shape[2:] == (places, places), name


def test_07_batch_normalisation_keeps_its_momentum_its_epsilon_and_its_mode() -> None:
    """Catches a momentum or an ε of Keras (0.99 for 0.01, 1e-3 for 1e-5), and evaluation in training mode: answers
    that depend on the rest of the batch, statistics of the test set, and a net that stays in the wrong mode.
    """
    norm = next(m for m in on_meta("vgg11_bn").modules() if isinstance(m, nn.BatchNorm2d)).to_empty(device="cpu")
    norm.reset_parameters()
    x = 3 + 0.01 * torch.randn(8, norm.num_features, 2, 2, generator=torch.Generator().manual_seed(0))
    mean, squares = x.mean((0, 2, 3)), (x - x.mean((0, 2, 3), keepdim=True)).square()
    expected = (x - mean[:, None, None]) / (squares.mean((0, 2, 3)) + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * squares.sum((0, 2, 3)) / 31)

    t, modes = trainer(), []
    t.model.register_forward_hook(lambda model, *_: modes.append(model.training))
    for _ in range(2):
        t.train_epoch(lambda: None)
    assert modes == ([True] * 7 + [False]) * 2
    before = {name: value.clone() for name, value in t.model.state_dict().items()}
    together = t.evaluate(t.test_batches)
    t.eval_batch = 10
    apart = t.evaluate(t.test_batches)
    assert apart.error == together.error
    assert apart.loss == pytest.approx(together.loss, rel=1e-6)
    assert all(torch.equal(before[name], value) for name, value in t.model.state_dict().items())


def test_08_each_epoch_has_its_own_order_and_each_picture_its_own_draws() -> None:
    """Catches a generator kept in the data set, which makes the same draws in every worker and epoch, and a forgotten
    `set_epoch`, which makes the same order. All pictures are one lit pixel, so its place tells what was drawn.
    """
    pixels = torch.zeros(64, 28, 28, 1, dtype=torch.uint8)
    pixels[:, 14, 10] = 255
    lit = ImageSet("lit", "train", pixels, torch.arange(64) % 10, tuple("0123456789"), "", "", (0.0,), (1.0,))
    batches = Batches(lit, (0.0,), (1.0,), augmentation=Augmentation(crop_padding=4, flip=True))
    seen: list[tuple[Tensor, Tensor]] = []
    drawn = batches.augmented

    def watched(indices: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        images, labels = drawn(indices, *how)
        seen.append((indices, images.flatten(1).argmax(1)))
        return images, labels

    batches.augmented = watched  # type: ignore[method-assign]
    plain = Batches(lit, (0.0,), (1.0,))
    t = trainer(Pictures(lit, lit, batches, plain, (0.0,), (1.0,)), epochs=3, batch_size=16)
    for _ in range(3):
        t.train_epoch(lambda: None)
    orders, places = (torch.cat(x).view(3, 64) for x in zip(*seen, strict=True))
    of_picture = torch.stack([p[order.argsort()] for order, p in zip(orders, places, strict=True)])
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert sorted(orders[one].tolist()) == list(range(64))
        assert (orders[one] == orders[other]).float().mean() < 0.2  # one in 64 by chance
        assert (of_picture[one] == of_picture[other]).float().mean() < 0.2  # one in 162 by chance
    of_worker = places.view(3, 4, 16)
    assert (of_worker[:, 0] == of_worker[:, 1]).float().mean() < 0.2
    assert all(len(p.unique()) > 32 for p in places)


def one_step_of_five(group: Group) -> tuple[float, float]:
    """Gradient and mean loss of a net w · x at w = 1, its loss the mean of its outputs; rank 0 has three of them."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    parallel = DataParallel(group)
    parallel.prepare(net)
    numbers = torch.tensor([[1.0], [2.0], [3.0], [14.0], [16.0]])
    (piece,) = parallel.pieces(5)
    answer = parallel.work(
        numbers[piece.rows], torch.zeros(5), piece, lambda logits, _: logits.mean(), contextlib.nullcontext
    )
    assert net.weight.grad is not None
    sums = Sums.zero(CPU)
    sums.add(*answer)
    return net.weight.grad.item(), sums.over(group).means()[0]


def test_09_a_mean_over_ranks_is_one_over_samples() -> None:
    """Catches the mean of the ranks' means where a batch does not divide: (2 + 15) / 2 = 8.5 for 36 / 5 = 7.2."""
    for gradient, loss in in_ranks(2, one_step_of_five):
        assert (gradient, loss) == pytest.approx((7.2, 7.2), rel=1e-6)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 50])
def test_10_evaluation_counts_every_sample_once(count: int) -> None:
    """Catches a last batch of 16 that is dropped or padded, and the mean of the batches' accuracies."""
    t = trainer()
    t.eval_batch = 16
    rng = np.random.default_rng(count)
    images = torch.from_numpy(rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, count))
    drawn = ImageSet("drawn", "test", images, labels, t.train_set.classes, "", "", (0.1,), (0.3,))
    loss, error, top5 = t.evaluate(Batches(drawn, (0.2,), (0.3,)))
    with torch.inference_mode():
        logits = torch.cat([t.model.eval()(((i / 255 - 0.2) / 0.3).view(1, 1, 28, 28)) for i in images])
    assert error == (logits.argmax(1) != labels).sum().item() / count
    ranks = [sorted(row, reverse=True).index(row[k]) for row, k in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert top5 == sum(rank >= 5 for rank in ranks) / count
    assert loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-5)


class Stop(Exception):
    """Ends a run from within."""


def test_11_each_step_has_its_own_rate_in_a_resumed_run_too(tmp_path: Path) -> None:
    """Catches a cosine over epochs that is stepped per batch (it wraps), a warm-up that begins or ends a step off, and
    a schedule that a resume shifts or starts anew.
    """
    # 200 pictures in batches of 32: 7 steps an epoch, 14 in all, of which the warm-up takes three and a half.
    expected = [0.05 * (1 + math.cos(math.pi * s / 14)) / 2 * min(1, s / 3.5) for s in range(14)]
    found: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if len(found) == 9:
            raise Stop
        found.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    with pytest.raises(Stop):
        train(tiny_recipe(), run_dir=tmp_path, save_every_s=0)
    hook.remove()
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: found.append(optimizer.param_groups[0]["lr"]))
    train(tiny_recipe(), run_dir=tmp_path, resume=True)
    hook.remove()
    assert found == pytest.approx(expected, abs=1e-12)


def test_12_pictures_reach_the_net_as_a_person_sees_them(data: Path, cache: Path) -> None:
    """Catches resizing without antialiasing, BGR for RGB, 0…255 for 0…1, EXIF's orientation ignored, and labels by the
    order in which folders are listed, or by those of one split: in `test` there is no cat.
    """
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32] = (200, 40, 0)
    upright[32:, ::2] = 255  # stripes so fine that they have to become grey
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right
    for place in ("train/eel", "train/dog", "train/cat", "test/eel", "test/dog"):
        (data / "pets" / place).mkdir(parents=True)
        (data / "pets" / place / "1.png").write_bytes(encode(turned, exif=exif))
    train_set, test_set = (load("pets", split, size=16) for split in ("train", "test"))
    assert train_set.classes == test_set.classes == ("cat", "dog", "eel")
    assert (train_set.labels.tolist(), test_set.labels.tolist()) == ([0, 1, 2], [1, 2])
    seen = Batches(test_set, (0.5,) * 3, (0.25,) * 3).plain(0, 2)[0]  # (2, 3, 16, 16)
    color = (torch.tensor([200.0, 40.0, 0.0]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(seen[:, :, :6], color.view(1, 3, 1, 1).expand(2, 3, 6, 16), atol=0.05, rtol=0)
    assert seen[:, :, 10:].abs().max() < 0.5  # black is −2, white is 2
