"""One trained net under many views, held against loops over crops written out."""

import json
from pathlib import Path

import pytest
import torch
from helpers import register_tiny, tiny_recipe, unsealed
from torch import Tensor, nn

from repro.dense import resize
from repro.errors import CheckpointError, RecipeError, UnknownName
from repro.evaluation import VIEWS, Evaluation, Trained, evaluate, evaluate_run, load, load_trained
from repro.records import read, write
from repro.training import train

SIDE, CROP, STRIDE = 34, 28, 6  # TinyNet: a convolution of stride 3 and a pool of stride 2, nothing padded


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the tiny recipe."""
    register_tiny()
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_recipe(), 0, run_dir=folder / "tiny-0", device="cpu")
    return folder


@pytest.fixture(scope="module")
def trained(runs: Path) -> Trained:
    return load_trained(tiny_recipe(), 0, runs, "cpu")


@pytest.fixture(scope="module")
def found(trained: Trained) -> Evaluation:
    return evaluate(trained, VIEWS, [CROP, SIDE])


def pictures(trained: Trained, side: int) -> tuple[Tensor, Tensor]:
    """All test pictures with this side, standardised, and their labels."""
    images, labels = trained.pictures.test_batches.plain(0, len(trained.pictures.test_set))
    return resize(images, side), labels


def softmax(model: nn.Module, images: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """The mean softmax over the crops at (top, left) and their reflections."""
    total = torch.zeros(len(images), 10)
    with torch.inference_mode():
        for top, left in places:
            crop = images[:, :, top : top + CROP, left : left + CROP]
            total += model(crop).softmax(1) + model(crop.flip(3)).softmax(1)
    return total / (2 * len(places))


def dense(model: nn.Module, images: Tensor) -> Tensor:
    """The softmax of the mean logits over all places of the net's stride, averaged with the reflection's."""
    total = torch.zeros(len(images), 10)
    offsets = range(0, images.shape[2] - CROP + 1, STRIDE)
    with torch.inference_mode():
        for view in (images, images.flip(3)):
            crops = [view[:, :, top : top + CROP, left : left + CROP] for top in offsets for left in offsets]
            total += torch.stack([model(crop) for crop in crops]).mean(0).softmax(1) / 2
    return total


def wrong(answers: Tensor, labels: Tensor) -> int:
    return int((answers.argmax(1) != labels).sum())


def test_one_crop_is_what_the_run_recorded(trained: Trained, found: Evaluation) -> None:
    """Catches weights of another epoch, training mode, other pictures, and another standardisation."""
    row = found.row("one crop, as in the run")
    assert row.error == trained.record.last.test_error == found.run["test_error"]
    assert 0 < row.wrong == round(row.error * row.n)
    assert row.n == len(trained.pictures.test_set)


def test_dense_rows_are_means_over_crops(trained: Trained, found: Evaluation) -> None:
    """Catches another average than the paper's, a lost reflection, and scales that are not resized."""
    model = trained.net.model
    answers = {side: dense(model, pictures(trained, side)[0]) for side in (CROP, SIDE)}
    _, labels = pictures(trained, CROP)
    for side in (CROP, SIDE):
        assert found.row(f"dense, {side}").wrong == wrong(answers[side], labels)
    assert found.row("dense, all scales").wrong == wrong(answers[CROP] + answers[SIDE], labels)


def test_crops_and_both(trained: Trained, found: Evaluation) -> None:
    """Catches crops off the regular grid, ten crops that are five, and `both` that weighs crops by their number."""
    model, (images, labels) = trained.net.model, pictures(trained, SIDE)
    corners = [(0, 0), (0, 6), (6, 0), (6, 6), (3, 3)]
    assert found.row("ten crops, 34").wrong == wrong(softmax(model, images, corners), labels)
    grid = [(top, left) for top in (0, 2, 3, 4, 6) for left in (0, 2, 3, 4, 6)]  # 6 · i / 4, rounded to even
    own, _ = pictures(trained, CROP)
    crops = (softmax(model, images, grid) + softmax(model, own, [(0, 0)])) / 2
    assert found.row("100 crops, all scales").wrong == wrong(crops, labels)
    several = (dense(model, own) + dense(model, images)) / 2
    assert found.row("dense and crops, all scales").wrong == wrong(several + crops, labels)


def test_centre_crop_of_resized_pictures(trained: Trained, found: Evaluation) -> None:
    """Catches a crop from the corner, and a second row where pictures grow and antialiasing does nothing."""
    model, (images, labels) = trained.net.model, pictures(trained, SIDE)
    with torch.inference_mode():
        assert found.row("one crop, 34").wrong == wrong(model(images[:, :, 3:31, 3:31]), labels)
    assert not any("not antialiased" in name for name in found.names)


def test_shrinking_with_and_without_antialiasing(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the two rows computed alike where the pictures as stored are larger than the net's."""
    from repro import evaluation
    from repro.data import load as load_set

    stored = load_set("digits", "test", size=56)
    monkeypatch.setattr(evaluation, "stored_pictures", lambda recipe, pictures: stored)
    rows = evaluate(trained, ["resized"], [CROP])
    assert rows.names == ["one crop, 28", "one crop, 28, not antialiased"]
    mean, std = trained.pictures.mean[0], trained.pictures.std[0]
    images = (stored.images.permute(0, 3, 1, 2) / 255 - mean) / std
    for row, antialias in zip(rows.rows, (True, False), strict=True):
        with torch.inference_mode():
            small = nn.functional.interpolate(images, (28, 28), mode="bilinear", antialias=antialias)
            assert row.wrong == wrong(trained.net.model(small), stored.labels)


def test_what_is_written_is_read(runs: Path, tmp_path: Path) -> None:
    """Catches a file that its reader does not understand, and rows that are not those asked for."""
    path = evaluate_run(tiny_recipe(), 0, runs, tmp_path, ["one", "dense"], [SIDE], "cpu")
    assert path == tmp_path / "evaluations" / "tiny-0.json"
    found = load("tiny", 0, tmp_path)
    assert found.names == ["one crop, as in the run", "dense, 34"]
    assert found.recipe_digest == tiny_recipe().digest()
    with pytest.raises(UnknownName, match="dense, 35: did you mean dense, 34"):
        found.row("dense, 35")
    path.write_text(json.dumps(unsealed(path) | {"rows": 3}))
    with pytest.raises(CheckpointError, match="not an evaluation: rows"):
        load("tiny", 0, tmp_path)
    with pytest.raises(CheckpointError, match="make it: repro evaluate tiny --seed 1"):
        load("tiny", 1, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"status": "preempted"}, "not at its end"),
        ({"recipe_digest": "0" * 64}, "as it was before"),
    ],
)
def test_runs_that_are_not_this_recipes(
    runs: Path, tmp_path: Path, change: dict[str, str], message: str | None
) -> None:
    """Catches an unfinished run's weights measured as if final, and those of a recipe that has changed since."""
    folder = tmp_path / "tiny-0"
    folder.mkdir()
    for file in (runs / "tiny-0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write(read(folder / "record.json").model_copy(update=change), folder / "record.json")
    if message is None:
        assert not load_trained(tiny_recipe(), 0, tmp_path, "cpu").net.model.training
        return
    with pytest.raises(CheckpointError, match=message):
        load_trained(tiny_recipe(), 0, tmp_path, "cpu")


def test_no_run_at_all(tmp_path: Path) -> None:
    """Catches an error that does not say how to make the run."""
    register_tiny()
    with pytest.raises(CheckpointError, match="repro train tiny --seed 3"):
        load_trained(tiny_recipe(), 3, tmp_path, "cpu")


def test_what_cannot_be_asked(trained: Trained) -> None:
    """Catches a view misspelt that is left out without a word, and a scale at which no crop fits."""
    with pytest.raises(UnknownName, match="--views dens: did you mean dense"):
        evaluate(trained, ["one", "dens"])
    with pytest.raises(RecipeError, match="--scales 20: tiny takes crops of 28; give 28 or more"):
        evaluate(trained, ["one"], [28, 20])


def test_scales_follow_the_crop(trained: Trained) -> None:
    """Catches scales that are right for crops of 224 alone, where they are those of the paper."""
    assert evaluate(trained, []).scales == [28, 32, 36]
