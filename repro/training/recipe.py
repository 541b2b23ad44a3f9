"""What to train, declared: a recipe is one TOML file, and everything a run does follows from it and a seed.

The fields below are all there is; a key that is not among them is refused with the nearest one that is. Recipes of the
package stand in `repro/recipes/`; `repro train FILE.toml` takes your own.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from repro.errors import RecipeError, UnknownName, nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def later(default: Any) -> Any:
    """A field that came after the first records: at its default the digest leaves it out, so that theirs still hold."""
    return Field(default, json_schema_extra={"later": True})


class Part(BaseModel):
    """A table of a recipe: typed, frozen, and nothing beside its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def decisive(self) -> dict[str, Any]:
        """The fields and their values as JSON, without those fields of `later` that are at their default."""
        content = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.json_schema_extra and value == field.default:
                del content[name]
            elif isinstance(value, Part):
                content[name] = value.decisive()
        return content


class Data(Part):
    """Which pictures, and how they reach the net."""

    name: str
    train: str = "train"
    test: str = "test"
    size: Count | None = None
    """Side of the square that every picture is brought to; its own size when not given."""
    border: Annotated[int, Field(ge=0)] = 0
    """Zeros around every picture, in pixels."""
    mean: list[Finite] | None = None
    """Per channel in units of 0…1; the training split's own when not given."""
    std: list[Positive] | None = None
    limit: Count | None = None
    """Train on the first so many pictures only."""
    fit: Literal["cut", "squash", "shorter"] = later("cut")
    """How a picture is brought to `size`: its centre cut out, or both sides resized, whatever its shape; `shorter`, of
    prepared shards only, resizes the shorter side and keeps all of the other."""
    mean_image: Literal["none", "centre", "crop"] = later("none")
    """Subtract the training split's mean at each pixel instead of `mean`: its centre whatever the crop (the 2012 code),
    or cut along with the picture."""
    order: Literal["samples", "shards"] = later("samples")
    """Of an epoch: any order of all samples, or, of prepared shards, one that reads a few whole shards at a time."""
    on_damage: Literal["stop", "skip"] = later("stop")
    """What a damaged shard does to the run: ends it, or is left out, with its cost said."""
    channels: Literal[1, 3] | None = later(None)
    """3: grey pictures are given to the net three times over."""


class Augmentation(Part):
    """What is drawn anew for each picture in each epoch: see `repro.data.augmentation.Augmentation`."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    crop: Count | None = later(None)
    """Side of the square cut out at random; the test pictures get the centre one."""
    crop_chunk: Count = later(1)
    """So many consecutive pictures of a batch share crop and reflection."""
    color_noise: NotNegative = later(0.0)
    color_noise_convention: Literal["paper", "code"] = later("paper")
    rotation: NotNegative = later(0.0)
    """Degrees, to either side, like `shear`."""
    shear: NotNegative = later(0.0)
    zoom: Annotated[float, Field(ge=0, lt=1)] = later(0.0)
    """A fraction, up and down, like `shift`."""
    shift: NotNegative = later(0.0)


class Optimizer(Part):
    """`sgd`: PyTorch's stochastic gradient descent; `sgd2012`: with the rate inside the velocity."""

    name: Literal["sgd", "sgd2012"] = "sgd"
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False
    bias_rate: Positive = later(1.0)
    """The rate of the biases, as a multiple of the others'."""
    bias_decay: bool = later(True)
    weight_decay_of: dict[str, NotNegative] = later({})
    """The decay of the weights of single layers, by the layer's name (`fc10`)."""

    @model_validator(mode="after")
    def _forms_of_momentum(self) -> "Optimizer":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if self.name == "sgd2012" and (self.nesterov or self.momentum == 0):
            raise ValueError("sgd2012 needs a momentum above 0, and has no nesterov")
        return self


class Schedule(Part):
    """How the learning rate goes: see `repro.training.optim.learning_rate`."""

    name: Literal["constant", "cosine", "linear", "steps", "plateau"] = "constant"
    warmup_epochs: NotNegative = 0.0
    at: list[Count] = []
    """`steps`: after how many epochs the rate is multiplied by `factor`."""
    factor: Positive = 0.1
    patience: Count = later(5)
    """`plateau`: after how many epochs without a smaller test loss the rate is multiplied by `factor`."""
    min_delta: NotNegative = later(1e-4)
    """`plateau`: how much smaller the test loss has to be to count."""
    decay_per_step: NotNegative = later(0.0)
    """The rate is divided by 1 + decay_per_step · (steps done): what Keras called `decay`."""


class Published(Part):
    """The figure of the source that the run is held against."""

    test_error: Annotated[float, Field(ge=0, le=1)]
    rounding: Positive
    """Half a unit of the last digit the source prints, as a fraction: 0.00005 for 0.95 %."""
    source: str
    test_top5_error: Annotated[float, Field(ge=0, le=1)] | None = None


class Recipe(Part):
    """One experiment: model, data, optimizer and schedule, for a fixed number of epochs."""

    name: str
    title: str
    model: str
    model_options: dict[str, Any] = {}
    data: Data
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    loss: Literal["cross_entropy", "lenet5_map", "lenet5_mse"] = "cross_entropy"
    epochs: Count
    batch_size: Count
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """`auto`: bfloat16 where the device computes it fast and the net is large enough to gain."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Chosen before running; every one of them is reported."""
    published: Published | None = None
    stop_at_train_error: Annotated[float, Field(ge=0, le=1)] | None = later(None)
    """The run ends after the first epoch whose training error is no larger; after `epochs` at the latest."""
    test_views: Literal[1, 10] = later(1)
    """10: the mean of the softmax over four corners, centre, and their reflections (the AlexNet paper, section 4.1)."""

    @model_validator(mode="after")
    def _ten_views(self) -> "Recipe":
        if self.test_views == 10 and (self.augmentation.crop is None or self.loss != "cross_entropy"):
            raise ValueError("test_views = 10 needs augmentation.crop and the loss cross_entropy")
        return self

    def digest(self) -> str:
        """sha256 over all that decides the outcome: everything but title, seeds and the published figure."""
        content = {k: v for k, v in self.decisive().items() if k not in ("title", "seeds", "published")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def list_recipes() -> list[str]:
    """The names of the package's recipes."""
    return sorted(f.name.removesuffix(".toml") for f in _shipped().iterdir() if f.name.endswith(".toml"))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name, or in that TOML file, with `key=value` overrides applied (`optimizer.momentum=0.5`).

    An overridden recipe is another experiment and gets another name: `lenet5+epochs=2`. Raises RecipeError naming key,
    value and what is allowed; UnknownName with the nearest recipes.
    """
    path = Path(name)
    if path.suffix == ".toml":
        text, stem = _read(path), path.stem
    elif str(name) in list_recipes():
        text, stem = (_shipped() / f"{name}.toml").read_text("utf-8"), str(name)
    else:
        raise UnknownName(f"recipe '{name}': {nearest(str(name), list_recipes())} A file needs the ending .toml.")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{stem}.toml: not TOML: {e}") from e
    overrides = list(overrides)
    for override in overrides:
        _apply(content, override)
    content["name"] = "+".join([stem, *overrides])
    return parse_recipe(content, f"{stem}.toml")


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Check a recipe given as a dictionary; `where` names it in messages."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as e:
        raise RecipeError("\n".join(f"{where}: {_explain(err)}" for err in _without_echoes(e.errors()))) from e


def _shipped() -> Any:
    return resources.files("repro.recipes")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: the recipe cannot be read ({reason})") from e


def _apply(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set {override}: expected key=value, for example --set optimizer.momentum=0.5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *tables, last = key.split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {override}: '{table}' is a value, not a table")
    content[last] = value


def _without_echoes(errors: Sequence[Any]) -> list[Any]:
    """The errors but those of a missing key that stands there misspelt: it is told as unknown, with the right name."""
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]

    def is_echo(error: Any) -> bool:
        *table, key = error["loc"]
        here = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == table]
        meant = (re.findall(r"\w+", nearest(name, _fields_at(table)).partition("did you mean")[2]) for name in here)
        return error["type"] == "missing" and any(key in names for names in meant)

    return [error for error in errors if not (error["loc"] and is_echo(error))]


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: key, value, and what is allowed."""
    location: Sequence[str | int] = error["loc"]
    key = ".".join(map(str, location)) or "recipe"
    key = key if key.isprintable() else ascii(key)[1:-1]
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(str(location[-1]), _fields_at(location[:-1]))}"
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    if error["type"] == "value_error":  # of a whole table, which need not be printed
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    return f"{key} = {error['input']!r}: {error['msg']}"


def _fields_at(tables: Sequence[str | int]) -> list[str]:
    part: type[BaseModel] = Recipe
    for table in tables:
        annotation = part.model_fields[str(table)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        part = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(part.model_fields)
