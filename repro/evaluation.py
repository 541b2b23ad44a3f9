"""A trained net measured in many ways: the same weights under one crop, ten crops, dense maps, several scales.

Krizhevsky et al. (2012), section 4.1, test with ten crops; Simonyan & Zisserman (2015), section 3.2 and tables 4 to 6,
hold one scale against several and dense maps against many crops. What is measured goes to
`records/evaluations/RECIPE-SEED.json`, which chapters 12 and 15 read.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from repro import records
from repro.data import ImageSet, open_set
from repro.data.augmentation import Batches
from repro.data.sources import SPECS
from repro.data.views import centre, ten_views
from repro.dense import convolutionize, crop_probabilities, dense_probabilities, over_scales, overfeat, resize
from repro.errors import CheckpointError, RecipeError, UnknownName, nearest
from repro.files import read_model, write_model
from repro.training import checkpoint
from repro.training.device import autocast, choose_device, describe, keep_freed_memory
from repro.training.measure import eval_batch, mean_over_views
from repro.training.recipe import Recipe
from repro.training.setup import Net, Pictures, as_input, build_net, open_pictures
from repro.training.state import MODEL

FOLDER = "evaluations"  # in that of the records
# The VGG paper tests at 224, 256 and 288: multiples of its crop of 224 that suit other crops too.
SCALES = (1, 8 / 7, 9 / 7)
VIEWS = ("one", "ten", "dense", "finer", "scales", "resized", "crops", "both")
QUICK = VIEWS[:-2]  # the others run 50 crops of every picture at each scale

Answer = Callable[[Tensor], Tensor]
"""Standardised pictures (B, C, H, W) to logits or probabilities (B, K)."""


class Row(BaseModel):
    """One way of measuring: the share of errors over all `n` pictures, and the wall time."""

    model_config = ConfigDict(extra="forbid")

    name: str
    error: float
    wrong: int
    n: int
    seconds: float


class Provenance(BaseModel):
    """Whose net something was measured on: the run, its pictures, and where it was done."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    seed: int
    recipe_digest: str
    test_digest: str
    run: dict[str, Any]
    """The run's commit, and the test error that it recorded itself."""
    started: str
    git: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]


class Evaluation(Provenance):
    """The net of one run, measured in several ways; errors are fractions."""

    crop: int
    scales: list[int]
    rows: list[Row]

    def row(self, name: str) -> Row:
        """The row of that name; raises UnknownName with the nearest."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UnknownName(f"evaluation of {self.recipe} seed {self.seed}: {name}: {nearest(name, self.names)}")

    @property
    def names(self) -> list[str]:
        return [row.name for row in self.rows]


@dataclass(frozen=True)
class Trained:
    """A finished run: its recipe, its pictures and its net, in evaluation mode on its device."""

    recipe: Recipe
    seed: int
    record: records.Record
    pictures: Pictures
    net: Net
    device: torch.device

    def provenance(self) -> dict[str, Any]:
        """The fields of `Provenance`, with this moment as the start."""
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "recipe_digest": self.recipe.digest(),
            "test_digest": self.pictures.test_set.digest,
            "run": {"git": self.record.git, "test_error": self.record.last.test_error},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": records.git_state(),
            "versions": records.environment(),
            "device": describe(self.device) | {"precision": self.net.precision},
        }


def load_trained(recipe: Recipe, seed: int, run_dir: Path, device: str | None = None) -> Trained:
    """The net that a run in `run_dir` ended with; raises CheckpointError where there is none of this recipe."""
    folder = run_dir / records.run_name(recipe.name, seed)
    if not (folder / "record.json").exists():
        raise CheckpointError(f"{folder}: holds no run; train it first: repro train {recipe.name} --seed {seed}")
    record = records.read(folder / "record.json")
    if record.status != "complete":
        raise CheckpointError(f"{folder}: the run is not at its end ({record.status}); go on with --resume")
    if record.recipe_digest != recipe.digest():
        raise CheckpointError(f"{folder}: holds a run of {recipe.name} as it was before; train it anew")
    found = checkpoint.load_latest(folder)
    if found is None:
        raise CheckpointError(f"{folder}: holds a record but no checkpoint; train it anew")
    ours = {"recipe_digest": record.recipe_digest, "seed": seed, "epoch": len(record.epochs), "step": 0}
    for key, value in ours.items():
        if found.state.get(key) != value:  # the newest is damaged, or another run's
            raise CheckpointError(
                f"{folder}: {key} of its last whole checkpoint is {found.state.get(key)}, its record's {value}; remove "
                "record.json and go on with --resume"
            )
    place = choose_device(device)
    pictures = open_pictures(recipe, place)
    net = build_net(recipe, place, pictures)
    weights = {key.removeprefix(MODEL): t for key, t in found.tensors.items() if key.startswith(MODEL)}
    try:
        net.model.load_state_dict(weights)
    except RuntimeError as e:
        raise CheckpointError(f"{folder}: its weights do not fit this version of {recipe.model} ({e})") from e
    net.model.eval()
    return Trained(recipe, seed, record, pictures, net, place)


def evaluate(
    trained: Trained,
    views: Sequence[str] = QUICK,
    scales: Sequence[int] = (),
    on_row: Callable[[Row], None] | None = None,
) -> Evaluation:
    """The errors of a trained net under each of `views` (of VIEWS), dense maps and crops at each of `scales`.

    `scales` are lengths of the pictures' shorter side, SCALES times the crop of the training when none is given. Raises
    UnknownName for a view that there is not, RecipeError for a scale below the crop.
    """
    if unknown := [view for view in views if view not in VIEWS]:
        raise UnknownName(f"--views {unknown[0]}: {nearest(unknown[0], VIEWS)}")
    crop = trained.net.input_size[1]
    sides = list(scales) or [round(factor * crop) for factor in SCALES]
    if min(sides) < crop:
        raise RecipeError(f"--scales {min(sides)}: {trained.recipe.model} takes crops of {crop}; give {crop} or more")
    provenance = trained.provenance()
    if trained.device.type == "cpu":
        keep_freed_memory()
    rows = []
    for row in Measures(trained, sides).rows(views):
        rows.append(row)
        if on_row:
            on_row(row)
    return Evaluation(**provenance, crop=crop, scales=sides, rows=rows)


class Measures:
    """The ways of measuring one net.

    All but the first see whole pictures, resized bilinearly from the size in which they are stored, and less the mean
    colour of the training pictures: a mean image has the size of the training's crops and pictures, and no other.
    """

    def __init__(self, trained: Trained, sides: Sequence[int]) -> None:
        self.trained, self.sides = trained, sides
        recipe, pictures = trained.recipe, trained.pictures
        self.model = trained.net.model
        self.crop = trained.net.input_size[1], trained.net.input_size[2]
        self.whole = Batches(
            stored_pictures(recipe, pictures), pictures.mean, pictures.std, trained.device, border=recipe.data.border
        )
        self.net = convolutionize(self.model, trained.net.input_size)

    def rows(self, views: Sequence[str]) -> Iterator[Row]:
        """The rows of these views, in the order of VIEWS."""
        several: dict[str, Tensor] = {}  # what the last view averages
        for view in VIEWS:
            if view not in views and not ("both" in views and view in ("scales", "crops")):
                continue
            if view == "both":
                start, probabilities = time.perf_counter(), torch.stack(list(several.values())).mean(0)
                yield self._row("dense and crops, all scales", probabilities, time.perf_counter() - start)
                continue
            for name, batches, answer in getattr(self, f"_{view}")():
                start, probabilities = time.perf_counter(), self._answers(batches, answer)
                if view in ("scales", "crops"):
                    several[view] = probabilities
                yield self._row(name, probabilities, time.perf_counter() - start)

    def _one(self) -> Iterator[tuple[str, Batches, Answer]]:
        """The crop that the run itself was tested with, its mean image subtracted if it had one."""
        yield "one crop, as in the run", self.trained.pictures.test_batches, self.model

    def _ten(self) -> Iterator[tuple[str, Batches, Answer]]:
        """Corners, centre and their reflections at the smallest scale that leaves room, the softmax averaged."""
        side = min([side for side in self.sides if side > min(self.crop)], default=min(self.crop))
        yield f"ten crops, {side}", self.whole, partial(self._ten_crops, side)

    def _dense(self) -> Iterator[tuple[str, Batches, Answer]]:
        """Score maps of a picture and its reflection."""
        for side in self.sides:
            yield (
                f"dense, {side}",
                self.whole,
                partial(over_scales, partial(dense_probabilities, self.net), sides=[side]),
            )

    def _finer(self) -> Iterator[tuple[str, Batches, Answer]]:
        """The same with OverFeat's finer score maps."""
        net = overfeat(self.net)
        for side in self.sides:
            answer = partial(over_scales, partial(dense_probabilities, net), sides=[side])
            yield f"dense, finer, {side}", self.whole, answer

    def _scales(self) -> Iterator[tuple[str, Batches, Answer]]:
        """Score maps at all scales, the softmax averaged."""
        answer = partial(over_scales, partial(dense_probabilities, self.net), sides=self.sides)
        yield "dense, all scales", self.whole, answer

    def _resized(self) -> Iterator[tuple[str, Batches, Answer]]:
        """The centre crop at each scale; where the pictures shrink, without antialiasing too."""
        for side in self.sides:
            yield f"one crop, {side}", self.whole, partial(self._centre_crop, side, True)
            if side < min(self.whole.height, self.whole.width):
                yield f"one crop, {side}, not antialiased", self.whole, partial(self._centre_crop, side, False)

    def _crops(self) -> Iterator[tuple[str, Batches, Answer]]:
        """The VGG paper's 5×5 crops and their reflections at all scales."""
        crops = partial(crop_probabilities, self.model, crop=self.crop)
        yield f"{50 * len(self.sides)} crops, all scales", self.whole, partial(over_scales, crops, sides=self.sides)

    def _centre_crop(self, side: int, antialias: bool, images: Tensor) -> Tensor:
        images = resize(images, side, antialias)
        height, width = images.shape[2:]
        top, left = centre(height, width, *self.crop)
        return self._run(images, [(top, left, 0)])

    def _ten_crops(self, side: int, images: Tensor) -> Tensor:
        images = resize(images, side)
        height, width = images.shape[2:]
        return self._run(images, ten_views(height, width, *self.crop))

    def _run(self, images: Tensor, places: Sequence[tuple[int, int, int]]) -> Tensor:
        """The mean answer over crops at (top, left), mirrored or not."""
        height, width = self.crop
        cuts = [images[:, :, top : top + height, left : left + width] for top, left, _ in places]
        views = [cut.flip(3) if mirrored else cut for cut, (_, _, mirrored) in zip(cuts, places, strict=True)]
        logits = [self.model(view.contiguous(memory_format=torch.channels_last)) for view in views]
        return mean_over_views(torch.stack(logits, 1).flatten(0, 1), len(views))

    def _answers(self, batches: Batches, answer: Answer) -> Tensor:
        """What `answer` says of every picture, (N, K)."""
        return answers(self.trained, batches, answer, max(*self.sides, batches.height, batches.width))

    def _row(self, name: str, answers: Tensor, seconds: float) -> Row:
        labels = self.whole.labels
        wrong = int((answers.argmax(1) != labels).sum())
        return Row(name=name, error=wrong / len(labels), wrong=wrong, n=len(labels), seconds=seconds)


@torch.inference_mode()
def answers(trained: Trained, batches: Batches, answer: Answer, largest: int) -> Tensor:
    """What `answer` says of every picture, (N, K); on its way a picture is at most `largest` pixels wide and high."""
    size = eval_batch(batches.channels * largest**2)
    batches.expect(torch.arange(len(batches)).split(size))
    found = []
    for start in range(0, len(batches), size):
        images, _ = batches.plain(start, min(start + size, len(batches)))
        with autocast(trained.device, trained.net.precision):
            found.append(answer(as_input(images, trained.recipe.data.channels)).float())
    return torch.cat(found)


def stored_pictures(recipe: Recipe, pictures: Pictures) -> Any:
    """The test pictures as large as the set holds them, if the recipe made them smaller."""
    data, stored = recipe.data, SPECS[recipe.data.name].size if recipe.data.name in SPECS else None
    if not isinstance(pictures.test_set, ImageSet) or not stored or stored <= (data.size or stored):
        return pictures.test_set
    return open_set(data.name, data.test, size=stored, fit=data.fit)


def evaluate_run(
    recipe: Recipe,
    seed: int,
    run_dir: Path,
    records_dir: Path,
    views: Sequence[str] = QUICK,
    scales: Sequence[int] = (),
    device: str | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> Path:
    """Measure the net of a finished run and write its evaluation; returns the file."""
    found = evaluate(load_trained(recipe, seed, run_dir, device), views, scales, on_row)
    path = records_dir / FOLDER / records.file_of(recipe.name, seed)
    write_model(found, path, "evaluation")
    return path


def load(recipe: str, seed: int = 0, folder: Path | None = None) -> Evaluation:
    """The evaluation of a run, from `folder` or the records; raises CheckpointError when it is missing or damaged."""
    path = (folder or records.records_dir()) / FOLDER / records.file_of(recipe, seed)
    return read_model(Evaluation, path, "evaluation", f"make it: repro evaluate {recipe} --seed {seed}")
