"""Recipes: every slip is named with its key, its value and what is allowed."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from repro import records
from repro.data import augmentation
from repro.data.images import ImageSet, channel_statistics
from repro.data.sources import SPECS
from repro.errors import RecipeError, ReproError, UnknownName
from repro.models import list_models
from repro.training import list_recipes, load_recipe, loop, setup
from repro.training.recipe import Augmentation, Recipe, Schedule

IMAGENET_CLASSES = 1000
SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32}  # of sets whose pictures come in one size


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
    assert recipe.data.name in SPECS or recipe.data.name == "imagenet"
    if spec := SPECS.get(recipe.data.name):
        assert {recipe.data.train, recipe.data.test} <= set(spec.splits)
    assert recipe.published is None or len(recipe.seeds) >= 3


def drawn_pictures(name: str, split: str, *, size: int | None, fit: str, on_damage: str) -> ImageSet:
    """Three pictures to train and one to test, with the channels, classes and size that the named set would have."""
    count = 3 if split == "train" else 1
    spec = SPECS.get(name)
    classes = spec.classes if spec and spec.classes else tuple(map(str, range(IMAGENET_CLASSES)))
    side = size or SIDES[name]
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(
        256, (count, side, side, spec.channels if spec else 3), dtype=torch.uint8, generator=generator
    )
    return ImageSet(name, split, images, torch.arange(count), classes, split, fit, *channel_statistics(images))


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_package_takes_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a recipe that loads and cannot run: a net of another input size or number of classes, an option it does
    not have, a layer of `weight_decay_of` that is not there, a mean of one channel for three, a crop that does not fit,
    and a parameter that the loss never reaches.
    """
    monkeypatch.setattr(setup, "open_set", drawn_pictures)
    recipe = load_recipe(name).model_copy(update={"schedule": Schedule()})  # a warm-up starts at rate 0
    trainer = loop.Trainer(recipe, 0, torch.device("cpu"))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    done = trainer.train_epoch(lambda: None)
    assert trainer.steps_per_epoch == 1
    assert (done.test_top5_error is None) == (trainer.classes <= 5)
    still = [n for (n, p), q in zip(trainer.model.named_parameters(), before, strict=True) if torch.equal(p, q)]
    assert not still


def test_augmentation_has_the_fields_of_the_one_it_is_handed_to() -> None:
    """Catches an augmentation that a recipe cannot name, and a default that is not the same in both."""
    theirs = {f.name: f.default for f in fields(augmentation.Augmentation)}
    assert {name: f.default for name, f in Augmentation.model_fields.items()} == theirs


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
        ("optimizer.name=sgd2012", r"sgd2012 needs a momentum above 0, and has no nesterov"),
        ("optimizer.bias_rate=0", r"optimizer.bias_rate = 0: .*greater than 0"),
        ("optimizer.weight_decay_of.fc10=-1", r"optimizer.weight_decay_of.fc10 = -1: "),
        ("optimizer.weight_decay_of=0.1", r"optimizer.weight_decay_of = 0.1: .*dictionary"),
        ("optimizer.name=adam", r"optimizer.name = 'adam': .*'sgd'"),
        ("optimizer=0.1", r"optimizer = 0.1: .*dictionary"),
        ("schedule.name=step", r"schedule.name = 'step': .*'constant', 'cosine', 'linear', 'steps' or 'plateau'"),
        ("schedule.patience=0", r"schedule.patience = 0: "),
        ("schedule.decay_per_step=-1", r"schedule.decay_per_step = -1: "),
        ("test_views=5", r"test_views = 5: .*1 or 10"),
        ("test_views=10", r"mine.toml: recipe: test_views = 10 needs augmentation.crop and the loss cross_entropy"),
        ("stop_at_train_error=25", r"stop_at_train_error = 25: "),
        ("augmentation.zoom=1.0", r"augmentation.zoom = 1.0: .*less than 1"),
        ("augmentation.color_noise_convention=caffe", r"color_noise_convention = 'caffe': .*'paper' or 'code'"),
        ("data.fit=stretch", r"data.fit = 'stretch': .*'cut', 'squash' or 'shorter'"),
        ("data.mean_image=true", r"data.mean_image = True: .*'none', 'centre' or 'crop'"),
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


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("lenet5*.json")), ids=lambda path: path.stem)
def test_new_fields_leave_the_digests_of_old_records_as_they_were(path: Path) -> None:
    """Catches a field that makes another experiment of every one there was: `repro train` would refuse its record."""
    found = records.read(path)
    assert load_recipe(found.recipe).digest() == found.recipe_digest


@pytest.mark.parametrize(
    "override",
    [
        "data.fit=squash",
        "augmentation.crop=24",
        "augmentation.shear=0.2",
        "optimizer.bias_decay=false",
        "optimizer.weight_decay_of.fc=1.0",
        "schedule.decay_per_step=0.1",
        "stop_at_train_error=0.25",
    ],
)
def test_new_fields_count_when_they_are_set(file: Path, override: str) -> None:
    """Catches a digest that leaves a new field out whatever its value, also inside a table."""
    plain, changed = load_recipe(file), load_recipe(file, [override]).model_copy(update={"name": "mine"})
    assert plain.digest() != changed.digest()


def test_a_field_set_to_its_default_is_no_other_experiment(file: Path) -> None:
    """Catches a digest of the text."""
    overrides = ["data.fit=cut", "optimizer.weight_decay_of={}", "test_views=1", "augmentation.crop_chunk=1"]
    assert load_recipe(file, overrides).model_copy(update={"name": "mine"}).digest() == load_recipe(file).digest()


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
