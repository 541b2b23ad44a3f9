"""Transfer: draws, features, linear classifiers and the study, held against loops written out and cases by hand."""

import json
import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import encode, needs_data, random_images, unsealed
from PIL import Image
from torch import Tensor, nn

from repro import cli, data, transfer, weights
from repro.data import ImageSet
from repro.data.images import channel_statistics
from repro.data.preparation import Preparation
from repro.errors import CheckpointError, DataError, UnknownName
from repro.transfer import PIXELS, RANDOM, TRAINED, classify, draw_pictures, features, random_like, stages, study
from repro.transfer.classify import FOLDS, STRENGTHS, in_their_span, mean_accuracy, standardised
from repro.transfer.command import from_folder, open_target
from repro.transfer.features import digest, pooled
from repro.transfer.study import Point, Study, load, write
from repro.visualization.probe import ProbeError
from repro.weights import Pretrained

mpl.use("Agg")
SIDE = 12
PREPARE = Preparation(SIDE, SIDE, torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.2))


def small_net() -> nn.Sequential:
    """Two convolutions, batch normalisation, dropout and two linear layers, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),  # (N, 6, 10, 10)
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),  # (N, 6, 5, 5)
        nn.Conv2d(6, 8, 3),  # (N, 8, 3, 3)
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(72, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


def small() -> Pretrained:
    return Pretrained("small", small_net(), PREPARE, tuple("abcd"), "for tests", None, None)


def coloured(per_class: int, seed: int, split: str = "train", side: int = SIDE) -> ImageSet:
    """Three classes of noise that differ in the mean of one colour, easy to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    images = torch.randint(0, 150, (len(labels), side, side, 3), dtype=torch.uint8, generator=generator)
    images[torch.arange(len(labels)), :, :, labels] += 25
    mean, std = channel_statistics(images)
    return ImageSet("coloured", split, images, labels, ("red", "green", "blue"), f"{seed}", "", mean, std)


def test_draws_are_nested_balanced_and_independent() -> None:
    """Catches classes of unequal share, pictures drawn twice, and small draws that are not part of the larger ones."""
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 2, 0, 1, 2])
    draws = {(n, d): draw_pictures(labels, n, d, seed=3) for n in (1, 2, 4) for d in range(3)}
    for (n, d), drawn in draws.items():
        assert labels[drawn].tolist() == sorted([0, 1, 2] * n)
        assert len(set(drawn.tolist())) == 3 * n
        assert set(drawn.tolist()) <= set(draws[4, d].tolist())
    assert len({tuple(draws[2, d].tolist()) for d in range(3)}) == 3
    assert draw_pictures(labels, 2, 0, seed=4).tolist() != draws[2, 0].tolist()
    assert draw_pictures(labels, 2, 1, seed=3).equal(draws[2, 1])
    with pytest.raises(DataError, match="5 pictures of each class are asked for; class 0 has 4"):
        draw_pictures(labels, 5, 0, 0)


def test_standardised_by_hand() -> None:
    """Catches a deviation of n − 1, test rows in the mean, a dead feature that explodes, and a forgotten √D."""
    train = torch.tensor([[0.0, 7.0], [4.0, 7.0]])  # mean 2 and 7, deviation 2 and 0
    rows, test = standardised(train, torch.tensor([[6.0, 8.0]]))
    assert np.allclose(rows * math.sqrt(2), [[-1, 0], [1, 0]])
    assert np.allclose(test * math.sqrt(2), [[2, 0]])


def test_two_points_by_hand() -> None:
    """Catches labels that are swapped and a boundary that is not in the middle of two points."""
    train, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1])
    found = classify(train, labels, torch.tensor([[0.9], [1.1], [-5.0], [30.0]]), torch.tensor([0, 1, 0, 0]))
    assert found.predictions.tolist() == [0, 1, 0, 1]
    assert found.accuracy == (2 / 3 + 1) / 2  # class 0: two of three right; class 1: one of one


def test_mean_over_classes_by_hand() -> None:
    """Catches an accuracy over all pictures, with which naming the commonest class beats chance."""
    assert mean_accuracy(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1])) == 0.5


def test_the_span_loses_nothing() -> None:
    """Catches a projection that shortens rows: products and a classifier must be those of the full features."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    rows, test, labels = rng.normal(size=(12, 40)), rng.normal(size=(30, 40)), np.arange(12) % 3
    short, short_test = in_their_span(rows, test)
    assert short.shape == (12, 12)
    assert np.allclose(short @ short.T, rows @ rows.T)
    assert np.allclose(short_test @ short.T, test @ rows.T)
    full, reduced = (LogisticRegression(tol=1e-8, max_iter=2000).fit(x, labels) for x in (rows, short))
    assert np.allclose(full.predict_proba(test), reduced.predict_proba(short_test), atol=1e-5)
    assert in_their_span(short, short_test)[0] is short


def test_strength_is_chosen_on_training_rows_alone() -> None:
    """Catches a strength chosen by accuracy, on other folds, or by a look at the test rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(8)
    train = torch.randn(24, 5, generator=generator) + labels[:, None]
    test = torch.randn(50, 5, generator=generator)
    rows, test_rows = standardised(train, test)
    losses = {}
    for strength in STRENGTHS:
        each = []
        for fitted, held in StratifiedKFold(FOLDS, shuffle=True, random_state=2).split(rows, labels):
            model = LogisticRegression(C=strength, max_iter=1000).fit(rows[fitted], labels[fitted])
            each.append(log_loss(labels[held], model.predict_proba(rows[held])))
        losses[strength] = np.mean(each)
    best = min(losses, key=lambda strength: losses[strength])
    assert STRENGTHS[0] < best < STRENGTHS[-1]
    found = classify(train, labels, test, torch.zeros(50, dtype=torch.long), seed=2)
    assert found.strength == best
    expected = LogisticRegression(C=best, max_iter=1000).fit(rows, labels).predict(test_rows)
    assert found.predictions.tolist() == expected.tolist()
    assert classify(train, labels, 100 - test, torch.ones(50, dtype=torch.long), seed=2).strength == best


def test_shuffled_labels_give_chance() -> None:
    """Catches a leak: training labels that say nothing must not help, while the true ones do."""
    train, test = coloured(60, 0), coloured(300, 1, "test")
    rows, test_rows = (transfer.pixels(s.images) for s in (train, test))
    assert classify(rows, train.labels, test_rows, test.labels).accuracy > 0.95
    # The shuffling, not the test set, decides by how much one classifier differs from chance.
    orders = [torch.randperm(180, generator=torch.Generator().manual_seed(seed)) for seed in range(9)]
    found = [classify(rows, train.labels[order], test_rows, test.labels).accuracy for order in orders]
    assert abs(np.mean(found) - 1 / 3) < 4 * np.std(found, ddof=1) / 3


def test_stages() -> None:
    """Catches layers before their activation, a last layer that is kept, and one name for two outputs."""
    assert stages(small_net(), (3, SIDE, SIDE)) == ["3", "7", "9"]
    assert stages(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Tanh()), (3, 5, 5)) == ["1", "3"]
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Flatten(), nn.Linear(100, 2))
    assert stages(twice, (3, 5, 5)) == ["4"]
    with pytest.raises(ProbeError, match="no layer lies between two with weights"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), (3, 5, 5))


def by_hand(model: nn.Sequential, image: Tensor, layer: int) -> Tensor:
    """What a layer gives for one standardised picture, flattened, with the modules called one after another."""
    model.eval()
    with torch.no_grad():
        for module in list(model)[: layer + 1]:
            image = module(image.clone())
    return image.flatten()


def test_features_are_the_layers_outputs() -> None:
    """Catches training mode, a lost order, outputs that a later in-place layer overwrites, and a net left changed."""
    images = torch.from_numpy(random_images(7, SIDE))
    model, other = small_net(), small_net()
    other.load_state_dict(model.state_dict())
    found = features(model, PREPARE, images, ["1", "3", "9"], memory=20_000)
    for i in range(7):
        standardised_picture = ((images[i].permute(2, 0, 1) / 255 - 0.4) / 0.2)[None]
        for layer in (1, 3, 9):
            assert torch.allclose(found[str(layer)][i], by_hand(other, standardised_picture, layer), atol=1e-5)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert digest(model) == digest(other)
    with pytest.raises(UnknownName, match="layer '33'"):
        features(model, PREPARE, images, ["33"])
    assert model.training


def test_small_pictures_are_enlarged_whole() -> None:
    """Catches small pictures whose border is cut off as a photograph's is."""
    prepare = Preparation(16, SIDE, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    images = torch.from_numpy(random_images(2, 5))
    found = features(nn.Sequential(nn.Identity(), nn.Conv2d(3, 1, 1)), prepare, images, ["0"])["0"]
    for image, row in zip(images, found, strict=True):
        large = Image.fromarray(image.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        assert torch.equal(row, torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1).flatten() / 255)


def test_pooled_by_hand() -> None:
    """Catches a sum for a mean, a grid finer than allowed, and vectors that are pooled too."""
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    quarters = [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    for most in (8, 17):  # 2·3² = 18 would be too many
        assert pooled(maps, most).tolist() == [quarters]
    assert pooled(maps, 32).tolist() == [list(range(32))]
    assert pooled(maps, 1).tolist() == [[7.5, 23.5]]
    assert pooled(torch.ones(3, 50), 8).shape == (3, 50)


def test_random_net_is_fresh() -> None:
    """Catches a random net that shares weights or statistics with the trained one, or has another spread than He's."""
    model = small_net()
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)
    before = digest(model)
    blank = random_like(model, 7)
    assert digest(model) == before
    assert digest(random_like(model, 7)) == digest(blank) != digest(random_like(model, 8))
    assert blank[1].running_mean.tolist() == [0.0] * 6
    wide = random_like(nn.Sequential(nn.Conv2d(32, 64, 3)), 0)[0]
    assert wide.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.03)
    assert not wide.bias.any()


@pytest.fixture(scope="module")
def found() -> Study:
    return study(small(), coloured(20, 0), coloured(30, 1, "test"), numbers=[4, 1, 4], draws=3, seed=2, whole=True)


def test_a_study_is_its_draws(found: Study) -> None:
    """Catches features looked up at the wrong place, other draws for other layers, and test pictures among them."""
    train, test, model = coloured(20, 0), coloured(30, 1, "test"), small_net()
    assert (found.numbers, found.layers, found.last) == ([1, 4], ["3", "7", "9"], "9")
    assert len(found.points) == 2 * 3 * (1 + 2 * 3) + 1
    blank = random_like(model, 2)
    for kind, net in ((TRAINED, model), (RANDOM, blank)):
        for layer in ("3", "9"):
            rows, test_rows = (features(net, PREPARE, s.images, [layer])[layer] for s in (train, test))
            assert found.widths[layer] == rows.shape[1]
            picked = [draw_pictures(train.labels, 4, d, 2) for d in range(3)]
            expected = [classify(rows[i], train.labels[i], test_rows, test.labels, 2).accuracy for i in picked]
            assert found.accuracies(kind, layer, 4) == expected
    everything = classify(transfer.pixels(train.images), train.labels, transfer.pixels(test.images), test.labels, 2)
    assert found.accuracies(PIXELS, "", None) == [everything.accuracy]
    with pytest.raises(UnknownName, match="did you mean trained 9 4"):
        found.accuracies(TRAINED, "9", 5)


def test_the_same_seed_gives_the_same_bits(found: Study) -> None:
    """Catches a draw, a net or folds that depend on anything but the seed, the caller's generator say."""
    torch.manual_seed(123)
    again = study(small(), coloured(20, 0), coloured(30, 1, "test"), numbers=[1, 4], draws=3, seed=2, whole=True)
    assert again.points == found.points
    assert (again.drawn, again.random_digest) == (found.drawn, found.random_digest)
    other = study(small(), coloured(20, 0), coloured(30, 1, "test"), numbers=[1, 4], draws=3, seed=3)
    assert other.drawn != found.drawn
    assert other.accuracies(PIXELS, "", 1) != found.accuracies(PIXELS, "", 1)


def test_interval_by_hand(found: Study) -> None:
    """Catches a deviation for its error, a normal quantile for Student's, and a test set without error."""
    accuracies = (0.5, 0.6, 0.7)
    points = [Point(features=PIXELS, layer="", n=4, draw=d, accuracy=a, strength=1) for d, a in enumerate(accuracies)]
    points.append(Point(features=PIXELS, layer="", n=1, draw=0, accuracy=0.4, strength=1))
    interval = found.model_copy(update={"points": points, "test_pictures": 96}).interval(PIXELS, "", 4)
    drawn, binomial = 4.302653 * 0.1 / math.sqrt(3), 1.96 * 0.05  # √(0.6 · 0.4 / 96) = 0.05
    assert interval.mean == pytest.approx(0.6)
    assert interval.high - 0.6 == pytest.approx(0.6 - interval.low) == pytest.approx(math.hypot(drawn, binomial))
    study_of_two = found.model_copy(update={"points": points})
    assert [study_of_two.smallest(PIXELS, "", level) for level in (0.3, 0.5, 0.9)] == [1, 4, None]


def test_figures_show_the_errors(found: Study) -> None:
    """Catches accuracy drawn as error, curves under each other's names, and half of an interval."""
    ax = found.figure().axes[0]
    lines = {bars.get_label(): bars.lines[0].get_ydata().tolist() for bars in ax.containers}
    pairs = {"trained, last layer off": (TRAINED, "9"), "pixels": (PIXELS, "")}
    pairs["random weights, best layer"] = (RANDOM, found.best(RANDOM))
    for label, (kind, layer) in pairs.items():
        assert lines[label] == [100 * (1 - found.interval(kind, layer, n).mean) for n in (1, 4)]
    assert "pixels of all pictures" in [line.get_label() for line in ax.lines]
    layers = found.layer_figure(4).axes[0]
    shown = [found.interval(RANDOM, layer, 4) for layer in found.layers]
    bars = layers.containers[1]
    assert bars.lines[0].get_ydata().tolist()[1:] == [100 * (1 - i.mean) for i in shown]
    low, high = zip(*(segment[:, 1] for segment in bars.lines[2][0].get_segments()[1:]), strict=True)
    assert np.allclose(low, [100 * (1 - i.high) for i in shown])
    assert np.allclose(high, [100 * (1 - i.low) for i in shown])
    assert [text.get_text() for text in layers.get_xticklabels()] == ["pixels", "3", "7", "9"]


def test_the_best_layer(found: Study) -> None:
    """Catches a layer that is best at the smallest number, or of the other net."""
    level = {(TRAINED, "3"): (0.9, 0.4), (TRAINED, "7"): (0.1, 0.6), (RANDOM, "3"): (0.1, 0.9), (RANDOM, "7"): (1, 0)}
    made = [
        Point(features=kind, layer=layer, n=n, draw=d, accuracy=a, strength=1)
        for (kind, layer), both in level.items()
        for n, a in zip((1, 4), both, strict=True)
        for d in range(2)
    ]
    tried = found.model_copy(update={"points": made, "layers": ["3", "7"]})
    assert (tried.best(TRAINED), tried.best(RANDOM)) == ("7", "3")


def test_gain_by_hand(found: Study) -> None:
    """Catches draws that are not paired: each draw differs by 0.1 or 0.2, the draws themselves by far more."""
    accuracies = {TRAINED: (0.3, 0.9), RANDOM: (0.2, 0.7)}
    made = [
        Point(features=kind, layer="3", n=1, draw=d, accuracy=a, strength=1)
        for kind, both in accuracies.items()
        for d, a in enumerate(both)
    ]
    gain = found.model_copy(update={"points": made}).gain((TRAINED, "3"), (RANDOM, "3"), 1)
    assert gain.mean == pytest.approx(0.15)
    assert gain.high - gain.mean == pytest.approx(12.7062 * 0.0707107 / math.sqrt(2), rel=1e-4)


def test_what_is_written_is_read(found: Study, tmp_path: Path) -> None:
    """Catches a record that its reader does not understand, and a file that is damaged and read all the same."""
    path = write(found, tmp_path)
    assert path == tmp_path / "transfer" / "small-to-coloured.json"
    assert load("small", "coloured", folder=tmp_path) == found
    path.write_text(json.dumps(unsealed(path) | {"points": [{"features": 1}]}))
    with pytest.raises(CheckpointError, match=r"not a study: points\.0"):
        load("small", "coloured", folder=tmp_path)
    with pytest.raises(CheckpointError, match="make it: repro transfer small --to coloured"):
        load("small", "coloured", "imagenet", tmp_path)


def class_folders(place: Path, per_class: int = 6) -> Path:
    """Two folders of PNGs, and in the first a file that is no picture."""
    for k, kind in enumerate(("001.cup", "002.pen")):
        (place / kind).mkdir(parents=True)
        for i, image in enumerate(random_images(per_class, 20, seed=k)):
            (place / kind / f"{i}.png").write_bytes(encode(Image.fromarray(image)))
    (place / "001.cup" / "z.txt").write_text("no picture")
    (place / ".hidden").mkdir()
    (place / "empty").mkdir()
    return place


def test_a_folder_of_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches pictures that are in both parts, a damaged file that stops the rest, and labels out of step with it."""
    place = class_folders(tmp_path / "things")
    train, test = from_folder(place, PREPARE, 2, seed=0)
    assert (train.name, train.split, train.classes) == ("things", "train", ("001.cup", "002.pen"))
    whole = torch.cat([train.images, test.images])
    assert len(whole) == 12 == len({image.numpy().tobytes() for image in whole})
    assert [name.split(":")[0] for name in (*train.skipped, *test.skipped)] == ["001.cup/z.txt"]
    assert f"repro: {place}: 1 files skipped, the first 001.cup/z.txt" in capsys.readouterr().err
    assert [len(part.labels) + len(part.skipped) for part in (train, test)] == [9, 4]
    for part in (train, test):
        for image, label in zip(part.images, part.labels, strict=True):
            originals = [Image.fromarray(i) for i in random_images(6, 20, seed=int(label))]
            resized = [np.asarray(o.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for o in originals]
            assert any(np.array_equal(image, r) for r in resized)
    with pytest.raises(DataError, match="holds 0 folders with pictures"):
        from_folder(tmp_path / "things" / "empty", PREPARE, 2, 0)
    with pytest.raises(DataError, match="9 pictures of each class are asked for"):
        from_folder(place, PREPARE, 9, 0)
    (place / "SHA256SUMS").write_text("")
    with pytest.raises(DataError, match="not listed in SHA256SUMS"):
        from_folder(place, PREPARE, 2, 0)


def test_open_target(cache: Path) -> None:
    """Catches test pictures that are not drawn by class, and another size than the net's."""
    train, test = open_target("shapes", PREPARE, 3, 0)
    assert (train.input_size, len(test)) == ((3, SIDE, SIDE), 30)
    assert test.labels.bincount().tolist() == [3] * 10
    with pytest.raises(UnknownName, match="did you mean shapes"):
        open_target("shape", PREPARE, None, 0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["repro", "transfer", *arguments])
    try:
        cli.main()
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches a command that loses an option on the way, and one that says nothing of what it found."""
    options = ("--n", "1,3", "--draws", "2", "--seed", "4", "--layers", "features.2,head.4", "--test", "5")
    assert run(monkeypatch, "lenet5-modern", "--to", "digits", *options, "--records-dir", str(tmp_path)) == 0
    out = capfd.readouterr().out
    found = load("lenet5-modern", "digits", folder=tmp_path)
    assert (found.numbers, found.draws, found.seed) == ([1, 3], 2, 4)
    assert (found.layers, found.test_pictures) == (["features.2", "head.4"], 50)
    assert str(found.interval(TRAINED, "head.4", 3)) in out
    assert "transfer/lenet5-modern-to-digits.json" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lenet5-moder", "--to", "digits"], 2, "did you mean lenet5-modern"),
        (["lenet5-modern", "--to", "digit"], 2, "data set 'digit': did you mean digits"),
        (["lenet5-modern", "--to", "digits", "--n", "0,2"], 2, "--n 0,2, --draws 5: each must be 1 or more"),
        (["lenet5-modern", "--to", "digits", "--layers", "head.9"], 2, "layer 'head.9'"),
        (["lenet5-modern", "--to", "digits", "--n", "999"], 3, "999 pictures of each class are asked for"),
    ],
)
def test_command_refuses(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback, or a record of nothing, for what cannot be run."""
    assert run(monkeypatch, *arguments, "--records-dir", str(tmp_path)) == code
    err = capfd.readouterr().err
    assert message in err
    assert not list(tmp_path.rglob("*.json"))


def test_trained_digits_beat_pixels_and_a_random_net() -> None:
    """Catches features of the wrong pictures: on digits of other writers a net for digits must be far ahead."""
    net = weights.load("lenet5-modern")
    sets = (data.load("digits", split) for split in ("train", "test"))
    found = study(net, *sets, numbers=[5], layers=["head.4"])
    trained, blank, raw = (found.interval(*pair, 5) for pair in ((TRAINED, "head.4"), (RANDOM, "head.4"), (PIXELS, "")))
    assert trained.low > raw.high
    assert trained.low > blank.high


@needs_data("mnist")
def test_own_set_and_own_head() -> None:
    """Catches a chopped layer too many, or features that are not those that the net's own head reads."""
    net = weights.load("lenet5-modern")
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    found = study(net, train, test.subset(torch.arange(2000)), numbers=[100], draws=2, layers=["head.4"])
    assert 1 - found.interval(TRAINED, "head.4", 100).mean < net.error + 0.01
    assert 1 - found.interval(PIXELS, "", 100).mean > 0.08
