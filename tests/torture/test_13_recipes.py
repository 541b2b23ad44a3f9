"""Row 13: every shipped recipe with a slip of the hand, one at a time, and recipes drawn at random."""

import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tier import FULL, Finding, amount

from repro import cli
from repro.errors import RecipeError
from repro.training.recipe import Recipe, list_recipes, load_recipe, parse_recipe

SHIPPED = Path(cli.__file__).parent / "recipes"
LINE = re.compile(r"^(\w+)( *= *)(.+)$")
# A text, a number that is none, one out of every range, a list, a table, and nothing.
VALUES = ('"oops"', "nan", "-1.5", "[[]]", "{ oops = 1 }", "")


def parts(model: type) -> dict[str, type]:
    """A recipe's tables by name."""
    return {
        name: field.annotation for name, field in model.model_fields.items() if hasattr(field.annotation, "decisive")
    }


FIELDS = sorted({field for part in (Recipe, *parts(Recipe).values()) for field in part.model_fields})


def misspelt(key: str, draw: random.Random) -> Iterator[str]:
    """A letter lost, doubled, or changed places with the next one."""
    i = draw.randrange(len(key))
    yield key[:i] + key[i + 1 :]
    yield key[:i] + key[i] + key[i:]
    if len(key) > 1:
        i = draw.randrange(len(key) - 1)
        yield key[:i] + key[i + 1] + key[i] + key[i + 2 :]


def mutants(text: str, draw: random.Random) -> Iterator[tuple[str, str, str]]:
    """Kind, key, and the recipe's text with one line changed."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not (found := LINE.match(line)):
            continue
        key, sign, value = found.groups()
        changed = [("deleted", "")]
        changed += [
            ("misspelt", other + sign + value) for other in misspelt(key, draw) if other and other not in FIELDS
        ]
        changed += [("value", key + sign + other) for other in VALUES if other != value]
        for kind, new in changed:
            yield kind, key, "\n".join([*lines[:number], new, *lines[number + 1 :]])


def attempt(take: Callable[[], Recipe]) -> tuple[Recipe | None, str]:
    """The recipe, or none and the words in which it was refused; any other exception is the test's failure."""
    try:
        return take(), ""
    except RecipeError as e:
        return None, str(e)


def as_written(recipe: Recipe, text: str) -> bool:
    """Whether a recipe that was taken has each value as it stands in the file, none converted."""

    def same(told: Any, taken: Any) -> bool:
        if isinstance(told, dict):
            fields = taken if isinstance(taken, dict) else vars(taken)
            return all(key in fields and same(value, fields[key]) for key, value in told.items())
        return (told == taken or told != told) and isinstance(told, bool) == isinstance(taken, bool)  # NaN is not NaN

    return same({"name": recipe.name} | tomllib.loads(text), recipe)


def test_each_slip_of_each_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finding: Finding
) -> None:
    """Catches a key that is ignored because it is misspelt, a value that is converted or clipped in silence, a stack
    trace, an error that does not name the key, and a refused run that leaves a folder.
    """
    monkeypatch.chdir(tmp_path)
    draw, outcomes = random.Random(0), Counter[str]()
    for name in list_recipes():
        shipped = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")
        for number, (kind, key, text) in enumerate(mutants(shipped, draw)):
            if not FULL and number % 12:
                continue
            (tmp_path / "mine.toml").write_text(text)
            recipe, refusal = attempt(lambda: load_recipe("mine.toml"))
            if recipe is not None:
                assert as_written(recipe, text), (kind, key)
                outcomes["taken as it stands"] += 1
                continue
            outcomes["refused"] += 1
            assert len(refusal.splitlines()) == 1, refusal
            assert key in refusal or "not TOML" in refusal, (key, refusal)
            if kind == "misspelt":
                assert re.search(rf"unknown key '[\w.]*': did you mean .*\b{key}\b", refusal), (key, refusal)
    assert outcomes["refused"] > amount(100, 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    total = sum(outcomes.values())
    finding(
        f"{total:,} slips in {len(list_recipes())} recipes, one at a time",
        f"{outcomes['refused']:,} refused in one line that names the key; the rest are recipes and taken as they stand",
    )


@pytest.mark.parametrize(
    "override",
    [
        'model="oops"',
        'data.name="oops"',
        'data.train="oops"',
        "model_options.oops=1",
        "model_options.num_classes=-1",
        "augmentation.crop=999",
        "data.std=[1.0, 2.0]",
        "data.channels=3",
    ],
)
def test_what_only_the_run_can_tell(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a stack trace from inside a net or a set, for a value that no schema judges, and a folder left over."""
    monkeypatch.chdir(tmp_path)
    digits = ["--set", 'data.name="digits"', "--set", "epochs=1", "--set", override]
    monkeypatch.setattr("sys.argv", ["repro", "train", "lenet5-modern", *digits])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (2, 3)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("repro: ")
    assert not list(tmp_path.iterdir())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
RECIPES = st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=8),
    ANYTHING | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), ANYTHING, max_size=4),
    max_size=8,
)


def test_recipes_drawn_at_random(finding: Finding) -> None:
    """Catches an exception of another kind than the stated one, from any content that TOML can express."""
    outcomes = Counter[str]()
    base = tomllib.loads((SHIPPED / "lenet5-modern.toml").read_text(encoding="utf-8")) | {"name": "drawn"}

    @settings(max_examples=amount(200, 2000), deadline=None, derandomize=True, database=None)
    @given(RECIPES)
    def draw(content: dict[str, Any]) -> None:
        for drawn in (content, base | content):
            recipe, refusal = attempt(lambda drawn=drawn: parse_recipe(drawn, "drawn.toml"))
            assert all(line.startswith("drawn.toml: ") for line in refusal.splitlines())
            outcomes["refused" if recipe is None else "taken"] += 1

    draw()
    assert outcomes["refused"] > outcomes["taken"] > 0
    finding(
        f"{outcomes.total():,} drawn recipes", f"{outcomes['refused']:,} refused by the stated error, no other raised"
    )
