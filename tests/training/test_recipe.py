"""Recipes: every slip is named with its key, its value and what is allowed."""

from pathlib import Path

import pytest

from repro.data.sources import SPECS
from repro.errors import RecipeError, ReproError, UnknownName
from repro.models import list_models
from repro.training import list_recipes, load_recipe
from repro.training.recipe import Recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nmodel = "lenet5_modern"\nepochs = 2\nbatch_size = 8\n'
        '[data]\nname = "digits"\n[optimizer]\nlearning_rate = 0.1\n'
    )
    return path


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    """Catches a recipe that was never run, or one with a net or set that does not exist."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model in list_models()
    spec = SPECS[recipe.data.name]
    assert {recipe.data.train, recipe.data.test} <= set(spec.splits)
    assert recipe.published is None or len(recipe.seeds) >= 3


def test_a_file_gets_its_stem_as_name(file: Path) -> None:
    """Catches a path in the name, which becomes the name of a record."""
    assert load_recipe(file).name == "mine"
    assert load_recipe(str(file)).seeds == [0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=2", r"mine.toml: unknown key 'epoch': did you mean epochs"),
        ("optimizer.momentun=0.5", r"unknown key 'optimizer.momentun': did you mean momentum"),
        ("data.splits=1", r"unknown key 'data.splits'"),
        ("published.tset_error=1", r"unknown key 'published.tset_error': did you mean test_error"),
        ("epochs=0", r"epochs = 0: .*greater than or equal to 1"),
        ("epochs=-3", r"epochs = -3: "),
        ("epochs=2.5", r"epochs = 2.5: .*integer"),
        ("epochs=two", r"epochs = 'two': .*integer"),
        ("epochs=true", r"epochs = True: .*integer"),
        ("batch_size=", r"batch_size = '': .*integer"),
        ("optimizer.learning_rate=0", r"optimizer.learning_rate = 0: .*greater than 0"),
        ("optimizer.learning_rate=nan", r"optimizer.learning_rate = nan: .*finite"),
        ("optimizer.learning_rate=inf", r"optimizer.learning_rate = inf: .*finite"),
        ("optimizer.learning_rate='0.1'", r"optimizer.learning_rate = '0.1': .*number"),
        ("optimizer.momentum=1.0", r"optimizer.momentum = 1.0: .*less than 1"),
        ("optimizer.weight_decay=-1", r"optimizer.weight_decay = -1: "),
        ("optimizer.nesterov=true", r"nesterov needs a momentum above 0"),
        ("optimizer.name=adam", r"optimizer.name = 'adam': .*'sgd'"),
        ("optimizer=0.1", r"optimizer = 0.1: .*dictionary"),
        ("schedule.name=step", r"schedule.name = 'step': .*'constant', 'cosine', 'linear' or 'steps'"),
        ("schedule.at=[0]", r"schedule.at.0 = 0: "),
        ("augmentation.crop_padding=-1", r"augmentation.crop_padding = -1: "),
        ("augmentation.flip=1", r"augmentation.flip = 1: .*boolean"),
        ("data.mean=[nan]", r"data.mean.0 = nan: .*finite"),
        ("data.std=[0.0]", r"data.std.0 = 0.0: .*greater than 0"),
        ("data.size=0", r"data.size = 0: "),
        ("data.limit=0", r"data.limit = 0: "),
        ("precision=fp16", r"precision = 'fp16': .*'auto', 'float32' or 'bf16'"),
        ("seeds=[]", r"seeds = \[\]: "),
        ("seeds=[-1]", r"seeds.0 = -1: "),
        ("published.test_error=95", r"published.test_error = 95: "),
        ("epochs", r"--set epochs: expected key=value"),
        ("=3", r"--set =3: expected key=value"),
        ("title.x=3", r"--set title.x=3: 'title' is a value, not a table"),
    ],
)
def test_slips_are_named_with_key_value_and_what_is_allowed(file: Path, override: str, message: str) -> None:
    """Catches pydantic's own prose, values converted in silence ("2" for 2, 1 for true), and NaN let through."""
    with pytest.raises(RecipeError, match=message) as failure:
        load_recipe(file, [override])
    assert failure.value.exit_code == 2


def test_every_slip_is_told_at_once(file: Path) -> None:
    """Catches an error per run for three slips."""
    with pytest.raises(RecipeError) as failure:
        load_recipe(file, ["epochs=0", "model=7", "colour=red"])
    assert len(str(failure.value).splitlines()) == 3


def test_overrides_take_every_form_and_change_the_name(file: Path) -> None:
    """Catches two experiments under one name, of which the second overwrites the first one's record."""
    recipe = load_recipe(file, ["optimizer.momentum=0.5", "schedule.at=[1, 2]", "model_options.num_classes=10"])
    assert recipe.optimizer.momentum == 0.5
    assert recipe.schedule.at == [1, 2]
    assert recipe.model_options == {"num_classes": 10}
    assert recipe.name == "mine+optimizer.momentum=0.5+schedule.at=[1, 2]+model_options.num_classes=10"
    assert load_recipe(file, ["title=a word"]).title == "a word"


def test_digest_follows_what_decides_the_outcome_alone(file: Path) -> None:
    """Catches a digest that changes with the title, and one that misses the learning rate."""

    def digest(*overrides: str) -> str:
        changed = load_recipe(file, overrides)
        return changed.model_copy(update={"name": "x"}).digest()

    assert digest() == digest("title=other") == digest("seeds=[4]")
    others = [
        "optimizer.learning_rate=0.2",
        "data.border=1",
        "epochs=3",
        "precision=bf16",
        "model_options.num_classes=9",
    ]
    assert len({digest(), *map(digest, others)}) == len(others) + 1


def test_unknown_recipes_get_the_nearest(tmp_path: Path) -> None:
    """Catches a file that is looked for in the package, and a name looked for among files."""
    with pytest.raises(UnknownName, match=r"recipe 'lenet_5': did you mean lenet5.*ending \.toml"):
        load_recipe("lenet_5")
    with pytest.raises(RecipeError, match=r"gone\.toml: the recipe cannot be read .No such file"):
        load_recipe(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"epochs = = 2", r"bad\.toml: not TOML"), (b"\xff\xfe", "not UTF-8 text"), (b"", "key 'title' is missing")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    """Catches the parser's stack trace."""
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ReproError, match=message):
        load_recipe(tmp_path / "bad.toml")


def test_a_recipe_cannot_be_changed_later() -> None:
    """Catches code that adjusts a recipe after its digest was taken."""
    recipe = load_recipe("lenet5")
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 1  # type: ignore[misc]
    assert isinstance(recipe, Recipe)
