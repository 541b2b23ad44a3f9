"""What to train, declared: a recipe is one TOML file, and everything a run does follows from it and a seed.

The fields below are all there is; a key that is not among them is refused with the nearest one that is. Recipes of the
package stand in `repro/recipes/`; `repro train FILE.toml` takes your own.
"""

import hashlib
import json
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


class Part(BaseModel):
    """A table of a recipe: typed, frozen, and nothing beside its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class Augmentation(Part):
    """What is drawn anew for each picture in each epoch."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False


class Optimizer(Part):
    """`sgd`: PyTorch's stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Optimizer":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Part):
    """How the learning rate goes: see `repro.training.optim.learning_rate`."""

    name: Literal["constant", "cosine", "linear", "steps"] = "constant"
    warmup_epochs: NotNegative = 0.0
    at: list[Count] = []
    """`steps`: after how many epochs the rate is multiplied by `factor`."""
    factor: Positive = 0.1


class Published(Part):
    """The figure of the source that the run is held against."""

    test_error: Annotated[float, Field(ge=0, le=1)]
    rounding: Positive
    """Half a unit of the last digit the source prints, as a fraction: 0.00005 for 0.95 %."""
    source: str


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

    def digest(self) -> str:
        """sha256 over all that decides the outcome: everything but title, seeds and the published figure."""
        content = self.model_dump(mode="json", exclude={"title", "seeds", "published"})
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
        raise RecipeError("\n".join(f"{where}: {_explain(err)}" for err in e.errors())) from e


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


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: key, value, and what is allowed."""
    location: Sequence[str | int] = error["loc"]
    key = ".".join(map(str, location)) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(str(location[-1]), _fields_at(location[:-1]))}"
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    return f"{key} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _fields_at(tables: Sequence[str | int]) -> list[str]:
    part: type[BaseModel] = Recipe
    for table in tables:
        annotation = part.model_fields[str(table)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        part = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(part.model_fields)
