"""What a trained net says of each picture, held against the net run by hand and a table counted by hand."""

import json
from pathlib import Path

import pytest
import torch
from helpers import register_tiny, tiny_recipe, unsealed

from repro import records
from repro.errors import CheckpointError
from repro.evaluation import Trained, load_trained
from repro.predictions import Predictions, load, predict, predict_run
from repro.training import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the tiny recipe, and its record as if from a clean commit beside it."""
    register_tiny()
    folder = tmp_path_factory.mktemp("runs")
    record, _ = train(tiny_recipe(), 0, run_dir=folder / "tiny-0", device="cpu")
    clean = record.model_copy(update={"git": {"commit": "0" * 40, "dirty": False}})
    records.write(clean, folder / "records" / "tiny-0.json")
    return folder


@pytest.fixture(scope="module")
def trained(runs: Path) -> Trained:
    return load_trained(tiny_recipe(), 0, runs, "cpu")


@pytest.fixture(scope="module")
def found(trained: Trained) -> Predictions:
    return predict(trained)


def by_hand(**changes: object) -> Predictions:
    """Six pictures of three classes, three of them named wrongly."""
    content = {
        "recipe": "r", "seed": 0, "recipe_digest": "", "test_digest": "", "run": {}, "started": "", "git": {},
        "versions": {}, "device": {}, "classes": ["ash", "beech", "oak"], "labels": [0, 0, 1, 2, 2, 2],
        "predicted": [0, 2, 1, 0, 2, 0], "probabilities": [0.9, 0.5, 0.6, 0.7, 1.0, 0.95],
    }  # fmt: skip
    return Predictions.model_validate(content | changes)


def test_each_picture_is_asked_by_itself(trained: Trained, found: Predictions) -> None:
    """Catches a net in training mode, another order of pictures, logits for probabilities, and a lost last batch."""
    test_set = trained.pictures.test_set
    assert found.labels == test_set.labels.tolist()
    assert found.classes == [str(digit) for digit in range(10)]
    with torch.inference_mode():
        for i in (0, 1, 17, len(test_set) - 1):
            image, _ = trained.pictures.test_batches.plain(i, i + 1)
            scores = trained.net.model(image)[0].double().exp()
            share, best = (scores / scores.sum()).max(0)
            assert (found.predicted[i], found.probabilities[i]) == (best, pytest.approx(share.item(), abs=1e-4))


def test_the_error_is_the_runs_own(trained: Trained, found: Predictions) -> None:
    """Catches weights of another epoch, and shares of the right in place of the wrong."""
    assert 0 < found.error == trained.record.last.test_error


def test_confusion_and_mistakes_counted_by_hand() -> None:
    """Catches rows and columns exchanged, one count for a pair that occurs twice, and mistakes in the sets' order."""
    assert by_hand().confusion().tolist() == [[1, 0, 1], [0, 1, 0], [2, 0, 1]]
    assert by_hand().mistakes() == [5, 3, 1]
    assert by_hand().error == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": [0, 2, 1, 0, 2]}, "not as many labels"),
        ({"predicted": [0, 3, 1, 0, 2, 0]}, "a class outside 0…2"),
        ({"labels": [0, 0, 1, 2, 2, -1]}, "a class outside 0…2"),
        ({"probabilities": [0.9, 0.5, 0.6, 0.7, 1.1, 0.95]}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_predictions(change: dict[str, list[int]], message: str) -> None:
    """Catches a file that would be counted into the wrong class or beyond the table."""
    with pytest.raises(ValueError, match=message):
        by_hand(**change)


def test_what_is_written_is_read(runs: Path, found: Predictions, tmp_path: Path) -> None:
    """Catches predictions of another run beside a record, a damaged file, and some without a record that counts."""
    folder, own = runs / "records", {"started"}
    assert load("tiny", folder) == []
    path = predict_run(tiny_recipe(), 0, runs, folder, "cpu")
    assert path == folder / "predictions" / "tiny-0.json"
    (read,) = load("tiny", folder)
    assert read.model_dump(exclude=own) == found.model_dump(exclude=own)
    assert load("tiny", tmp_path) == []

    content = unsealed(path)
    for change, message in (
        ({"recipe_digest": "0" * 64}, "tiny-0.json: is of another run than the record of tiny seed 0"),
        ({"seed": 1}, "is of another run"),
        ({"predicted": "all"}, "not a file of predictions: predicted: .*; make it: repro predict tiny --seed 0"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(CheckpointError, match=message):
            load("tiny", folder)
