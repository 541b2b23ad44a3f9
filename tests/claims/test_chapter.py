"""A chapter's claims and verdicts: on the ledger as it is, with what a chapter might find, rightly or wrongly."""

import pytest

from repro.claims import chapter as module
from repro.claims import claims, command
from repro.claims.chapter import Chapter
from repro.errors import ReproError, UnknownName

TAKEN_UP = {"vgg-stacks": ["vgg-stack-fields", "vgg-stack-weights"], "vgg-bn": ["study-bn-forgives-starts"]}
FOUND = {"vgg-stack-fields": [5, 7], "study-bn-forgives-starts": True}


def test_unknown_claim() -> None:
    """Catches a claim that was renamed in the ledger and would silently leave the chapter; the nearest is named."""
    with pytest.raises(UnknownName, match=r"vgg-stack-feilds.*vgg-stack-fields"):
        Chapter("12_vgg", {"vgg-stacks": ["vgg-stack-feilds"]})


def test_claim_taken_up_twice() -> None:
    """Catches a claim that two sections list, of which the table would show two verdicts."""
    with pytest.raises(ReproError, match="2 times"):
        Chapter("12_vgg", {"vgg-stacks": ["vgg-stack-fields"], "vgg-bn": ["vgg-stack-fields"]})


def test_claims_stand_by_section() -> None:
    """Catches statements that come from elsewhere than the ledger, and a section that lost its claims."""
    html = Chapter("12_vgg", TAKEN_UP).claims().data
    statements = {claim.id: claim.statement for claim in claims()}
    places = [html.index(text) for text in ("vgg-stacks", statements["vgg-stack-weights"], "vgg-bn")]
    assert places == sorted(places)
    assert statements["study-bn-forgives-starts"][:40] in html


def test_verdicts_are_the_ledgers() -> None:
    """Catches a chapter's table that leaves a claim out, or shows another verdict than the ledger's."""
    html = Chapter("12_vgg", TAKEN_UP).verdicts(FOUND).data
    table, folded = html.split("<details>")
    assert table.count("<td>holds</td>") == 3
    assert "81 %" in table
    assert "81.4815 %" in table  # what the ledger finds, since the chapter gave nothing
    others = {claim.id for claim in claims(chapter="12_vgg")} - {name for names in TAKEN_UP.values() for name in names}
    assert f"{len(others)} more claims" in folded
    assert all(f">{name}</code>" in folded for name in others)


@pytest.mark.parametrize("wrong", [[5, 8], [5], "5, 7", True])
def test_chapter_and_ledger_disagree(wrong: object) -> None:
    """Catches a wrong number in a chapter that the table would pass over in favour of the ledger's."""
    with pytest.raises(command.StaleVerdicts, match=r"vgg-stack-fields.*\[5, 7\]"):
        Chapter("12_vgg", TAKEN_UP).verdicts(FOUND | {"vgg-stack-fields": wrong})


def test_rounded_by_the_source_and_not_by_us() -> None:
    """81 % is printed and 81.48 computed: either is within the claim's tolerance; 82.1 is not."""
    chapter = Chapter("12_vgg", TAKEN_UP)
    assert chapter.verdicts({"vgg-stack-weights": 81}).data == chapter.verdicts({}).data
    with pytest.raises(command.StaleVerdicts):
        chapter.verdicts({"vgg-stack-weights": 82.1})


def test_found_of_a_claim_not_taken_up() -> None:
    """Catches a value that would vanish, for a claim that the opening does not name."""
    with pytest.raises(UnknownName, match="vgg-parameters"):
        Chapter("12_vgg", TAKEN_UP).verdicts({"vgg-parameters": 1})


def test_what_the_ledger_could_not_find_is_shown_as_the_chapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a value from a smaller experiment that is lost, or that turns the verdict from not tested to another."""
    untested = command.Stored(verdict="not tested", found=None, detail="ImageNet <is> not here")
    monkeypatch.setattr(module, "read", lambda folder: command.read(folder) | {"vgg-stack-weights": untested})
    html = Chapter("12_vgg", TAKEN_UP).verdicts({"vgg-stack-weights": "about 80 %"}).data
    row = html[html.index("At equal width") :]
    row = row[: row.index("</tr>")]
    assert "<td>about 80 %</td>" in row
    assert "ImageNet &lt;is&gt; not here" in row
    assert row.endswith("<td>not tested</td>")
