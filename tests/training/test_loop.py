"""The loop against plain PyTorch written out, exact metrics against a sum over samples, and what no run may do."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import register_tiny, tiny_recipe
from torch import nn
from torch.nn import functional as F

from repro.data import load
from repro.data.random import derive_seed, integers, permutation
from repro.errors import DataError, NumericsError, RecipeError, UnknownName
from repro.models import get_model
from repro.models.layers import InputShapeError
from repro.training import checkpoint, setup, train
from repro.training.loop import Trainer
from repro.training.measure import Measured, mean_over_views, outside_top

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> None:
    register_tiny()
    torch.set_num_threads(1)


def trainer(seed: int = 0, **changes: Any) -> Trainer:
    return Trainer(tiny_recipe(**changes), seed, CPU)


def run_epochs(t: Trainer) -> None:
    while not t.finished:
        t.train_epoch(lambda: None)


def augmented_by_hand(images: torch.Tensor, indices: list[int], seed: int, epoch: int, padding: int) -> torch.Tensor:
    """Crop and mirror one picture after the other with slices: (B, H, W) uint8."""
    counters = torch.tensor(indices)
    tops, lefts = (integers(2 * padding + 1, derive_seed(seed, epoch, use), counters).tolist() for use in (0, 1))
    mirrors = integers(2, derive_seed(seed, epoch, 2), counters).tolist()
    height, width = images.shape[1:]
    result = []
    for i, top, left, mirror in zip(indices, tops, lefts, mirrors, strict=True):
        padded = F.pad(images[i], (padding,) * 4)
        cut = padded[top : top + height, left : left + width]
        result.append(cut.flip(1) if mirror else cut)
    return torch.stack(result)


def test_the_loop_is_plain_pytorch_written_out() -> None:
    """Catches everything at once: a batch shifted by one, momentum over the wrong tensor, a rate one step late, a
    gradient not cleared, an epoch's order used twice, statistics of train and test together, dropout seeded by chance.
    """
    recipe = tiny_recipe()
    ours = trainer(seed=3)
    torch.manual_seed(derive_seed(3, 0))
    model = get_model("tiny").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    digits = load("digits")
    images, labels = digits.images[:200, :, :, 0], digits.labels[:200]
    pixels = images.numpy() / 255
    step = 0
    for epoch in range(2):
        order = permutation(200, 3, epoch, 1).tolist()
        model.train()
        for first in range(0, 200, 32):
            indices = order[first : first + 32]
            cut = augmented_by_hand(images, indices, derive_seed(3, 3), epoch, 2)
            x = ((cut.double() / 255 - pixels.mean()) / pixels.std()).float()[:, None]
            torch.manual_seed(derive_seed(3, epoch, first // 32, 2))
            loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            done = step / 7
            rate = 0.05 * (1 + math.cos(math.pi * done / 2)) / 2 * min(1.0, done / 0.5)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            step += 1
        assert recipe.epochs == 2
        found = ours.train_epoch(lambda: None)
        assert found.learning_rate == pytest.approx(rate)
    for (name, p), q in zip(model.state_dict().items(), ours.model.state_dict().values(), strict=True):
        torch.testing.assert_close(q, p, atol=2e-6, rtol=1e-5, msg=name)


def test_the_loop_of_2012_is_that_of_the_paper_written_out() -> None:
    """Catches a rate outside the velocity, one rate for all, decay on biases, a rate that ignores a plateau, steps
    counted from 1, and a mean image of other pictures than those that are trained on.
    """
    ours = trainer(
        seed=3,
        epochs=4,
        data={"name": "digits", "limit": 200, "mean_image": "centre", "std": [0.5]},
        augmentation={},
        model_options={"dropout": 0.0},
        optimizer={"name": "sgd2012", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.1, "bias_rate": 2.0,
                   "bias_decay": False, "weight_decay_of": {"8": 0.5}},
        schedule={"name": "plateau", "patience": 1, "min_delta": 100.0, "decay_per_step": 0.1},
    )  # fmt: skip
    torch.manual_seed(derive_seed(3, 0))
    model = get_model("tiny", dropout=0.0)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    digits = load("digits")
    pixels = digits.images[:200, :, :, 0].double() / 255
    x = ((pixels - pixels.mean(0)) / 0.5).float()[:, None]
    step = 0
    for epoch in range(4):
        order = permutation(200, 3, epoch, 1).tolist()
        for first in range(0, 200, 32):
            indices = order[first : first + 32]
            model.zero_grad()
            F.cross_entropy(model(x[indices]), digits.labels[indices]).backward()
            rate = 0.01 * 0.1 ** max(0, epoch - 1) / (1 + 0.1 * step)  # the first loss is the least for ever
            with torch.no_grad():
                for name, p in model.named_parameters():
                    bias = name.endswith("bias")
                    own, decay = (2 * rate, 0.0) if bias else (rate, 0.5 if name == "layers.8.weight" else 0.1)
                    velocity[name] = 0.9 * velocity[name] - decay * own * p - own * p.grad
                    p += velocity[name]
            step += 1
        found = ours.train_epoch(lambda: None)
        assert found.learning_rate == pytest.approx(rate)
    for (name, p), q in zip(model.state_dict().items(), ours.model.state_dict().values(), strict=True):
        torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-4, msg=name)


def test_a_plateau_is_one_of_the_test_loss() -> None:
    """Catches a rate that follows the training loss, which falls here in every epoch."""
    t = trainer(
        epochs=5, optimizer={"learning_rate": 0.01, "momentum": 0.9}, schedule={"name": "plateau", "patience": 2}
    )
    losses = iter([1.0, 1.1, 1.1, 0.5, 0.6])
    t.evaluate = lambda batches: Measured(next(losses), 0.9)  # type: ignore[method-assign]
    run_epochs(t)
    assert [e.learning_rate for e in t.place.history] == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001])


def test_training_metrics_are_sums_over_samples() -> None:
    """Catches a mean of batch means: the last batch of 200 holds 8 samples, not 32."""
    t = trainer(model_options={"dropout": 0.0}, optimizer={"learning_rate": 1e-30})
    seen: list[tuple[float, int, int]] = []
    plain = t.loss

    def watched(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits.detach(), labels, reduction="none")
        seen.extend(zip(losses.tolist(), (logits.argmax(1) != labels).tolist(), labels.tolist(), strict=True))
        return plain(logits, labels)

    t.loss = watched
    t.evaluate = lambda batches: Measured(0.0, 0.0)  # type: ignore[method-assign]
    epoch = t.train_epoch(lambda: None)
    assert len(seen) == 200
    assert sorted(label for *_, label in seen) == sorted(t.train_set.labels.tolist())
    assert epoch.train_loss == pytest.approx(math.fsum(loss for loss, *_ in seen) / 200, rel=1e-6)
    assert epoch.train_error == sum(wrong for _, wrong, _ in seen) / 200


def test_ten_views_are_the_mean_of_ten_softmaxes() -> None:
    """Catches a mean of logits, views of two pictures mixed, views that are not those of a slice, and a mean image cut
    at another place.
    """
    changes = {
        "data": {"name": "digits", "limit": 50, "size": 32, "mean_image": "centre", "std": [0.5]},
        "augmentation": {"crop": 28, "flip": True}, "test_views": 10,
    }  # fmt: skip
    t = trainer(**changes)
    measured = t.evaluate(t.test_batches)
    train, test = (load("digits", split, size=32) for split in ("train", "test"))
    mean = (train.images[:50, 2:30, 2:30, 0].double() / 255).mean(0)
    pixels = test.images[..., 0].double() / 255
    chances = torch.zeros(len(test), 10, dtype=torch.float64)
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
        cut = pixels[:, top : top + 28, left : left + 28]
        for view in (cut, cut.flip(2)):
            with torch.inference_mode():
                logits = t.model.eval()(((view - mean) / 0.5).float()[:, None])
            chances += logits.double().softmax(1) / 10
    assert measured.error == pytest.approx((chances.argmax(1) != test.labels).double().mean().item())
    own = chances[torch.arange(len(test)), test.labels]
    assert measured.loss == pytest.approx(-own.log().mean().item(), rel=1e-5)
    one = trainer(**changes | {"test_views": 1})
    assert one.evaluate(one.test_batches).loss != pytest.approx(measured.loss, rel=1e-4)


def test_views_that_are_sure_of_different_things_stay_finite() -> None:
    """Catches the logarithm of a softmax that is 0 in float32."""
    logits = torch.tensor([[0.0, 500.0], [0.0, 480.0]])
    # (e⁻⁵⁰⁰ + e⁻⁴⁸⁰) / 2, of which the first part is nothing beside the second
    torch.testing.assert_close(mean_over_views(logits, 2)[0], torch.tensor([-480 - math.log(2), 0.0]))


def test_top_5_by_hand() -> None:
    """Catches the five smallest logits, and a sixth place that counts."""
    logits = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]).repeat(7, 1)
    assert outside_top(logits, torch.arange(7)).item() == 2
    assert outside_top(logits[4:5], torch.tensor([4])).item() == 0
    assert outside_top(logits[5:6], torch.tensor([5])).item() == 1


def test_with_five_classes_or_fewer_there_is_no_top_5() -> None:
    """Catches a top-5 error of 0 for five flowers, which says nothing and looks like a result."""
    t = trainer(model="lenet5_modern")
    assert t.evaluate(t.test_batches).top5_error is not None
    t.classes = 5
    assert t.evaluate(t.test_batches).top5_error is None


def test_grey_pictures_reach_a_colour_net_three_times_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches channels that differ, a net built for one channel, and test pictures left grey."""
    monkeypatch.setattr(setup, "get_model", lambda name: nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 10)))
    t = trainer(data={"name": "digits", "limit": 64, "channels": 3}, augmentation={})
    seen: list[torch.Tensor] = []
    t.forward.register_forward_pre_hook(lambda model, arguments: seen.append(arguments[0]))
    t.train_epoch(lambda: None)
    assert [tuple(x.shape[1:]) for x in seen] == [(3, 28, 28)] * len(seen)
    assert len(seen) == 2 + 1
    for x in seen:
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], x[:, 2])
    torch.testing.assert_close(seen[-1][:, :1], t.test_batches.plain(0, len(t.test_set))[0])


def test_a_run_stops_after_the_first_epoch_that_gets_there() -> None:
    """Catches a run that goes on to its last epoch, one that stops an epoch late, and a rule kept from the record."""
    changes = {"data": {"name": "digits"}, "augmentation": {}, "epochs": 30, "schedule": {"name": "constant"}}
    record, _ = train(tiny_recipe(**changes, stop_at_train_error=0.5))
    errors = [e.train_error for e in record.epochs]
    assert 1 < len(errors) < 30
    assert all(e > 0.5 for e in errors[:-1])
    assert errors[-1] <= 0.5
    assert record.selection == "the first epoch with a training error of at most 50.00%, or the last; " + (
        "the test set chose nothing"
    )


@pytest.mark.parametrize("model", ["lenet5_modern", "tiny"])
def test_loss_at_the_start_is_the_logarithm_of_the_classes(model: str) -> None:
    """Catches weights drawn too wide, inputs in 0…255, and a loss that is a sum."""
    t = trainer(model=model)
    loss, error, _ = t.evaluate(t.test_batches)
    assert loss == pytest.approx(math.log(10), rel=0.05)
    assert 0.7 < error <= 1


@pytest.mark.parametrize("model", ["lenet5_modern", "tiny"])
def test_every_parameter_moves_after_one_step(model: str) -> None:
    """Catches a layer left out of the optimizer, or cut off from the loss."""
    t = trainer(model=model, schedule={"name": "constant"})
    before = [p.detach().clone() for p in t.model.parameters()]
    t.model.train()
    t.step(torch.arange(64))
    moved = [not torch.equal(p, q) for p, q in zip(t.model.parameters(), before, strict=True)]
    assert all(moved), moved


def test_32_samples_are_learnt_by_heart() -> None:
    """Catches labels that do not belong to their pictures, and a net that cannot learn."""
    changes = {
        "model": "lenet5_modern", "data": {"name": "digits", "limit": 32}, "augmentation": {}, "epochs": 200,
        "optimizer": {"learning_rate": 0.03, "momentum": 0.9}, "schedule": {"name": "cosine"},
    }  # fmt: skip
    t = trainer(**changes)
    t.evaluate = lambda batches: Measured(0.0, 0.0)  # type: ignore[method-assign]
    run_epochs(t)
    assert t.place.history[-1].train_error == 0
    assert t.place.history[-1].train_loss < 0.05


def test_shuffled_labels_leave_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a label that leaks into the input, or test pictures among the training pictures."""
    t = trainer(data={"name": "digits"}, augmentation={}, epochs=3)
    shuffled = permutation(len(t.train_set), 1)
    t.train_batches.labels = t.train_batches.labels[shuffled]
    run_epochs(t)
    deviation = math.sqrt(0.9 * 0.1 / len(t.test_set))
    assert abs(t.place.history[-1].test_error - 0.9) < 4 * deviation


def test_digits_are_learnt() -> None:
    """Catches a loop that runs and does not learn."""
    changes = {"data": {"name": "digits"}, "augmentation": {}, "epochs": 6, "model_options": {"dropout": 0.0}}
    record, model = train(tiny_recipe(**changes))
    assert record.last.test_error < 0.2
    assert not model.training


def test_runs_are_the_same_to_the_bit_and_seeds_differ() -> None:
    """Catches anything drawn from the clock or from the generator that the caller left behind."""
    torch.manual_seed(1)
    one = train(tiny_recipe(), 5)[1]
    torch.manual_seed(2)
    other = train(tiny_recipe(), 5)[1]
    third = train(tiny_recipe(), 6)[1]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True) if a.ndim > 1)


def test_dropout_differs_between_steps_and_epochs() -> None:
    """Catches one mask for all steps, or for all epochs: the pictures of every step are the same, and so is the net."""
    t = trainer(data={"name": "digits", "limit": 64}, augmentation={}, optimizer={"learning_rate": 1e-30}, epochs=3)
    t.order = lambda epoch: torch.arange(32).repeat(2)  # type: ignore[method-assign]
    losses: list[float] = []
    plain = t.loss
    t.loss = lambda logits, labels: losses.append(logits.detach().sum().item()) or plain(logits, labels)
    t.evaluate = lambda batches: Measured(0.0, 0.0)  # type: ignore[method-assign]
    run_epochs(t)
    assert len(losses) == 6
    assert len({round(x, 4) for x in losses}) == 6


@pytest.mark.parametrize("rate", [1e10, 1e38])
def test_a_rate_far_too_high_stops_with_finite_checkpoints(rate: float, tmp_path: Path) -> None:
    """Catches weights that overflow while the loss of their own step was still finite, saved as the last good ones."""
    recipe = tiny_recipe(optimizer={"learning_rate": rate, "momentum": 0.9}, schedule={"name": "constant"})
    with pytest.raises(NumericsError, match="the last checkpoint is from before it"):
        train(recipe, run_dir=tmp_path, save_every_s=0)
    kept = checkpoint.load_latest(tmp_path)
    assert kept is None or all(t.isfinite().all() for t in kept.tensors.values())


def test_a_test_loss_that_is_not_finite_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches NaN in a record, which JSON turns into null and no reader takes back."""
    t = trainer()
    monkeypatch.setattr(t, "evaluate", lambda batches: Measured(math.nan, 0.9))
    with pytest.raises(NumericsError, match="test loss is nan after epoch 1"):
        t.train_epoch(lambda: None)


def test_what_cannot_be_trained_is_said_before_it_starts() -> None:
    """Catches a traceback from inside a layer where a recipe is at fault."""
    with pytest.raises(UnknownName, match=r"'tinny'.*did you mean tiny"):
        trainer(model="tinny")
    with pytest.raises(UnknownName, match=r"no option 'dropuot'.*did you mean dropout"):
        trainer(model_options={"dropuot": 0.1})
    with pytest.raises(RecipeError, match=r"tiny: model_options {'dropout': 'much'}: "):
        trainer(model_options={"dropout": "much"})
    with pytest.raises(RecipeError, match="lenet5_modern has 7 outputs, but digits has 10 classes"):
        trainer(model="lenet5_modern", model_options={"num_classes": 7})
    with pytest.raises(DataError, match="1 channels, but 2 means"):
        trainer(data={"name": "digits", "mean": [0.1, 0.2]})
    with pytest.raises(DataError, match=r"crop of 40.* picture of 28"):
        trainer(augmentation={"crop": 40})
    with pytest.raises(RecipeError, match="weight_decay_of: layer 'fc10': known: "):
        trainer(optimizer={"learning_rate": 0.1, "weight_decay_of": {"fc10": 1.0}})
    with pytest.raises(InputShapeError, match="expects a batch of shape N×1×28×28"):
        trainer(model="lenet5_modern", data={"name": "digits", "channels": 3})


def test_channels_last_survives_the_optimizer() -> None:
    """Catches a net that falls back to the other layout, and is slower ever after."""
    t = trainer()
    t.train_epoch(lambda: None)
    conv = next(m for m in t.model.modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
