"""The ledger's form, and every source in the tree."""

from pathlib import Path

import pytest

from repro.claims.ledger import Claim, FromRecord, load_source, load_sources
from repro.errors import DataError
from repro.training import list_recipes

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = """
key = "made"
title = "A made document"
[[claim]]
id = "made-sum"
where = "page 1"
statement = "One and one are two."
value = 2
kind = "arithmetic"
check = {expression = "1 + 1"}
"""


def written(folder: Path, text: str, name: str = "made") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_good_source_is_read(tmp_path: Path) -> None:
    """Catches a check taken for another kind."""
    (claim,) = load_source(written(tmp_path, GOOD)).claim
    assert claim.value == 2
    assert claim.check is not None
    assert claim.check.expression == "1 + 1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('check = {expression = "1 + 1"}', "", "made-sum.*either a check"),
        ("value = 2", "value = 2\ntolerance = 0.5", "made-sum.*needs its reason"),
        ("value = 2", "", "made-sum.*value"),
        ('id = "made-sum"', 'id = "Made Sum"', "pattern"),
        ('kind = "arithmetic"', 'kind = "historical"', "not checked by Expression"),
        ('kind = "arithmetic"', 'kind = "arithmetic"\nverdict = "holds"', "verdict"),
        ("[[claim]]", "[[claim", "cannot be read"),
    ],
)
def test_a_bad_source_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Catches a verdict that somebody typed, a tolerance without a reason, and a claim that nothing checks."""
    with pytest.raises(DataError, match=message):
        load_source(written(tmp_path, GOOD.replace(old, new)))


def test_ids_are_unique_and_contradictions_exist(tmp_path: Path) -> None:
    """Catches two sources that share an id, and a link to nowhere."""
    written(tmp_path, GOOD)
    written(tmp_path, GOOD, "again")
    with pytest.raises(DataError, match="two are called made-sum"):
        load_sources(tmp_path)
    (tmp_path / "again.toml").unlink()
    load_sources.cache_clear()
    written(tmp_path, GOOD + 'contradicts = ["made-sun"]\n')
    with pytest.raises(DataError, match=r"contradicts made-sun.*did you mean made-sum"):
        load_sources(tmp_path)


def ledger() -> list[Claim]:
    return [claim for source in load_sources() for claim in source.claim]


def test_every_source_is_in_the_bibliography() -> None:
    """Catches a source that the book cannot cite."""
    entries = (ROOT / "book" / "references.bib").read_text()
    for source in load_sources():
        assert f"{{{source.key}," in entries


def test_contradictions_are_mutual() -> None:
    """Catches a claim that says otherwise than another which does not name it: in the ledger each links the other."""
    others = {claim.id: claim.contradicts for claim in ledger()}
    assert [(one, other) for one in others for other in others[one] if one not in others[other]] == []


def test_every_chapter_exists() -> None:
    """Catches a claim sent to a chapter that was renamed."""
    chapters = {path.stem for path in (ROOT / "chapters").glob("*.md")} | {""}
    assert {claim.chapter for claim in ledger()} <= chapters


def test_every_recipe_exists() -> None:
    """Catches a claim that waits for runs of a recipe that there is not."""
    asked = {claim.check.record for claim in ledger() if isinstance(claim.check, FromRecord)}
    assert {name.split("+")[0] for name in asked} <= set(list_recipes())
