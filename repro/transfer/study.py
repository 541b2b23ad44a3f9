"""The whole experiment, its record and its figures: error against the number of training pictures, layer by layer.

`repro transfer` writes `records/transfer/NET-to-SET.json`, which chapter 20 reads.
"""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from repro import records
from repro.data import ImageSet
from repro.errors import DataError, UnknownName, nearest
from repro.files import read_model, write_model
from repro.progress import track
from repro.training.device import describe
from repro.transfer.classify import classify, draw_pictures
from repro.transfer.features import digest, features, pixels, random_like, stages
from repro.visualization.probe import MEMORY, find_layer
from repro.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "transfer"  # in that of the records
TRAINED, RANDOM, PIXELS = "trained", "random", "pixels"
NUMBERS = (1, 2, 5, 10, 20, 50, 100)
DRAWS = 5


class Point(BaseModel):
    """One linear classifier: on what it was trained, and the mean over the classes of the share that is right.

    `layer` is empty for pixels; `n` is pictures per class, None for all there are; `strength` is what cross-validation
    chose (scikit-learn's C).
    """

    model_config = ConfigDict(extra="forbid")

    features: str
    layer: str
    n: int | None
    draw: int
    accuracy: float
    strength: float


@dataclass(frozen=True)
class Interval:
    """A mean accuracy and its 95 % interval, fractions."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%} ± {(self.high - self.low) / 2:.1%}"


class Study(BaseModel):
    """A net's layers, a random net's and raw pixels, as features for another set: every draw, and how it was made."""

    model_config = ConfigDict(extra="forbid")

    net: str
    source: str
    weights_digest: str
    random_seed: int
    random_digest: str
    target: str
    classes: list[str]
    train_digest: str
    test_digest: str
    train_pictures: int
    test_pictures: int
    layers: list[str]
    widths: dict[str, int]
    """Features per picture, by layer; those of the pixels under the empty name."""
    numbers: list[int]
    draws: int
    seed: int
    drawn: str
    """sha256 over the indices of the training pictures of all draws."""
    points: list[Point]
    seconds: float
    started: str
    git: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]

    @property
    def chance(self) -> float:
        return 1 / len(self.classes)

    @property
    def last(self) -> str:
        """The layer before the classifier's last one: the net with its last layer chopped off."""
        return self.layers[-1]

    def accuracies(self, kind: str, layer: str, n: int | None) -> list[float]:
        """By draw; raises `UnknownName` where the study has no such point."""
        found = [p.accuracy for p in self.points if (p.features, p.layer, p.n) == (kind, layer, n)]
        if not found:
            known = {f"{p.features} {p.layer} {p.n}" for p in self.points}
            raise UnknownName(f"{self.net} to {self.target}: {nearest(f'{kind} {layer} {n}', known)}")
        return found

    def interval(self, kind: str, layer: str, n: int | None) -> Interval:
        """Student's over the draws, widened by the binomial error of the test pictures, which all draws share."""
        ours = records.spread(self.accuracies(kind, layer, n))
        half = math.hypot(_student(ours), 1.96 * math.sqrt(ours.mean * (1 - ours.mean) / self.test_pictures))
        return Interval(ours.mean, ours.mean - half, ours.mean + half)

    def smallest(self, kind: str, layer: str, accuracy: float) -> int | None:
        """The smallest number of pictures per class whose mean accuracy is at least this; None if there is none."""
        return next((n for n in self.numbers if self.interval(kind, layer, n).mean >= accuracy), None)

    def best(self, kind: str) -> str:
        """The layer of the trained or the random net that is best at the largest number, chosen by looking."""
        return max(self.layers, key=lambda layer: self.interval(kind, layer, self.numbers[-1]).mean)

    def gain(self, first: tuple[str, str], second: tuple[str, str], n: int) -> Interval:
        """By how much one kind and layer is better than another: Student's interval of the differences, draw by draw.

        The test pictures are the same for both; of how others would turn out it says nothing.
        """
        pairs = zip(self.accuracies(*first, n), self.accuracies(*second, n), strict=True)
        ours = records.spread([a - b for a, b in pairs])
        half = _student(ours)
        return Interval(ours.mean, ours.mean - half, ours.mean + half)

    def rows(self) -> list[tuple[str, ...]]:
        """Kind and layer with the accuracies at each number of pictures, in words."""
        pairs = [(PIXELS, ""), *((kind, layer) for kind in (TRAINED, RANDOM) for layer in self.layers)]
        return [(kind, layer, *(str(self.interval(kind, layer, n)) for n in self.numbers)) for kind, layer in pairs]

    def figure(self, axes: Any = None) -> "Figure":
        """Error against pictures per class: the chopped net, the best layers of it and of the random net, pixels."""
        from repro.transfer import drawing

        return drawing.curves(self, axes)

    def layer_figure(self, n: int, axes: Any = None) -> "Figure":
        """Error against the layer, at `n` pictures per class; the first place is that of the pixels."""
        from repro.transfer import drawing

        return drawing.by_layer(self, n, axes)


def study(
    net: Pretrained,
    train: ImageSet,
    test: ImageSet,
    *,
    numbers: Sequence[int] = NUMBERS,
    draws: int = DRAWS,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    whole: bool = False,
    memory: int = MEMORY,
) -> Study:
    """Linear classifiers on pixels, on each of `layers` of the net (`stages` when None) and on those of a random net.

    The same draws serve all of them. The random net has the seed `seed`. With `whole` the pixels of all training
    pictures are used once too. Raises `UnknownName` for a layer that there is not, `DataError`
    for splits of different classes and for fewer pictures than are asked for.
    """
    if train.classes != test.classes:
        raise DataError(f"{train.name}: the classes of {train.split} and {test.split} differ")
    start, started, numbers = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds"), sorted(set(numbers))
    chosen = list(layers) if layers else stages(net.model, net.prepare.input_size)
    for layer in chosen:
        find_layer(net.model, layer)  # a wrong name is told before an hour of work
    drawn = {(n, d): draw_pictures(train.labels, n, d, seed) for n in numbers for d in range(draws)}
    union = torch.cat(list(drawn.values())).unique()
    place = torch.zeros(len(train), dtype=torch.long)
    place[union] = torch.arange(len(union))
    blank, points, widths = random_like(net.model, seed), [], {}

    def measure(kind: str, layer: str, rows: Tensor, test_rows: Tensor) -> None:
        widths[layer] = rows.shape[1]
        for (n, d), picked in drawn.items():
            found = classify(rows[place[picked]], train.labels[picked], test_rows, test.labels, seed)
            points.append(
                Point(features=kind, layer=layer, n=n, draw=d, accuracy=found.accuracy, strength=found.strength)
            )

    measure(PIXELS, "", pixels(train.images[union]), pixels(test.images))
    if whole:
        found = classify(pixels(train.images), train.labels, pixels(test.images), test.labels, seed)
        points.append(
            Point(features=PIXELS, layer="", n=None, draw=0, accuracy=found.accuracy, strength=found.strength)
        )
    for kind, model in ((TRAINED, net.model), (RANDOM, blank)):
        rows = features(model, net.prepare, train.images[union], chosen, memory)
        test_rows = features(model, net.prepare, test.images, chosen, memory)
        for layer in track(chosen, len(chosen), f"{net.name} to {train.name}, {kind}: layers"):
            measure(kind, layer, rows.pop(layer), test_rows.pop(layer))
    return Study(
        net=net.name,
        source=net.source,
        weights_digest=digest(net.model),
        random_seed=seed,
        random_digest=digest(blank),
        target=train.name,
        classes=list(train.classes),
        train_digest=train.digest,
        test_digest=test.digest,
        train_pictures=len(train),
        test_pictures=len(test),
        layers=chosen,
        widths=widths,
        numbers=numbers,
        draws=draws,
        seed=seed,
        drawn=hashlib.sha256(torch.cat(list(drawn.values())).numpy().tobytes()).hexdigest(),
        points=points,
        seconds=time.perf_counter() - start,
        started=started,
        git=records.git_state(),
        versions=records.environment() | {p: importlib.metadata.version(p) for p in ("scikit-learn", "scipy")},
        device=describe(next(net.model.parameters()).device),
    )


def write(found: Study, folder: Path, weights: str = "book") -> Path:
    """Write a study below the records; returns the file. Raises ResourceError when the disk refuses."""
    path = folder / FOLDER / file_of(found.net, found.target, weights)
    write_model(found, path, "study")
    return path


def load(net: str, target: str, weights: str = "book", folder: Path | None = None) -> Study:
    """The study of a net and a set, from `folder` or the records; raises CheckpointError when missing or damaged."""
    path = (folder or records.records_dir()) / FOLDER / file_of(net, target, weights)
    return read_model(Study, path, "study", f"make it: repro transfer {net} --to {target}")


def file_of(net: str, target: str, weights: str = "book") -> str:
    """The name of a study's file."""
    return f"{net}{'' if weights == 'book' else f'+{weights}'}-to-{target}.json"


def _student(ours: records.Spread) -> float:
    """Half of the 95 % interval of a mean; 0 for a single value."""
    from scipy.stats import t

    return t.ppf(0.975, ours.n - 1) * ours.std / math.sqrt(ours.n) if ours.n > 1 else 0.0
