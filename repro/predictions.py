"""What a trained net says of each test picture: kept, so that its mistakes can be looked at without its weights.

`repro predict` writes `records/predictions/RECIPE-SEED.json`, which chapter 8 reads.
"""

from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from repro import records
from repro.errors import CheckpointError
from repro.evaluation import Provenance, Trained, answers, load_trained
from repro.files import read_model, write_model
from repro.training.recipe import Recipe

FOLDER = "predictions"  # in that of the records


class Predictions(Provenance):
    """The net of one run under the crop that the run was tested with; pictures in the order of the test set.

    `predicted` are the classes it names, `probabilities` what its softmax gives them, to four decimals.
    """

    classes: list[str]
    labels: list[int]
    predicted: list[int]
    probabilities: list[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _of_one_set(self) -> Self:
        if not len(self.labels) == len(self.predicted) == len(self.probabilities) > 0:
            raise ValueError("not as many labels as predictions and probabilities")
        if not 0 <= min(self.labels + self.predicted) <= max(self.labels + self.predicted) < len(self.classes):
            raise ValueError(f"a class outside 0…{len(self.classes) - 1}")
        return self

    @property
    def error(self) -> float:
        """The share named wrongly."""
        return sum(a != b for a, b in zip(self.labels, self.predicted, strict=True)) / len(self.labels)

    def confusion(self) -> Tensor:
        """How often each class, by row, was taken for each, by column: int64 (K, K)."""
        table = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        places = torch.tensor(self.labels), torch.tensor(self.predicted)
        return table.index_put_(places, torch.tensor(1), accumulate=True)

    def mistakes(self) -> list[int]:
        """The pictures named wrongly, the surest first."""
        wrong = [i for i, label in enumerate(self.labels) if self.predicted[i] != label]
        return sorted(wrong, key=lambda i: -self.probabilities[i])


def predict(trained: Trained) -> Predictions:
    """What a finished run's net says of its test pictures."""
    provenance, batches = trained.provenance(), trained.pictures.test_batches
    logits = answers(trained, batches, trained.net.model, max(batches.height, batches.width))
    probabilities, predicted = logits.softmax(1).max(1)
    return Predictions(
        **provenance,
        classes=list(trained.pictures.test_set.classes),
        labels=batches.labels.tolist(),
        predicted=predicted.tolist(),
        probabilities=[round(p, 4) for p in probabilities.tolist()],
    )


def predict_run(recipe: Recipe, seed: int, run_dir: Path, records_dir: Path, device: str | None = None) -> Path:
    """Write the predictions of a finished run's net; returns the file."""
    path = records_dir / FOLDER / records.file_of(recipe.name, seed)
    write_model(predict(load_trained(recipe, seed, run_dir, device)), path, "file of predictions")
    return path


def load(recipe: str, folder: Path | None = None) -> list[Predictions]:
    """Those of a recipe's runs whose records count, by seed; raises CheckpointError for a file that is not theirs."""
    folder, found = folder or records.records_dir(), []
    for run in records.load(recipe, folder):
        path = folder / FOLDER / records.file_of(recipe, run.seed)
        if not path.exists():
            continue
        remedy = f"make it: repro predict {recipe} --seed {run.seed}"
        one = read_model(Predictions, path, "file of predictions", remedy)
        if (one.recipe, one.seed, one.recipe_digest) != (recipe, run.seed, run.recipe_digest):
            raise CheckpointError(f"{path}: is of another run than the record of {recipe} seed {run.seed}; remove it")
        found.append(one)
    return found
