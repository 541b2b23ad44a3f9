"""The ledger's pages, made from sources and verdicts written here."""

import json
from pathlib import Path

import pytest

from repro.claims import pages
from repro.claims.ledger import Source

CLAIMS = [
    {"id": "made-wrong", "statement": "A < B & C", "value": 3, "kind": "arithmetic", "check": {"expression": "1 + 1"}},
    {"id": "made-right", "statement": "two", "value": 2, "kind": "arithmetic", "check": {"expression": "1 + 1"}},
    {"id": "made-old", "statement": "1998", "value": 1998, "kind": "historical", "contradicts": ["made-right"]},
    {"id": "made-other", "statement": "1999", "value": 1999, "kind": "historical"},
]
CITED = {"citation": "lecun1998", "place": "title", "value": 1997}
STORED = {
    "made-wrong": {"verdict": "does not hold", "found": 2, "detail": "3 is said, we find 2"},
    "made-right": {"verdict": "holds", "found": 2, "detail": "we find 2"},
    "made-old": {"verdict": "historical", "found": 1997, "detail": "lecun1998, title, says 1997"},
    "made-other": {"verdict": "historical", "found": 1997, "detail": "lecun1998, title, says 1997"},
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four claims, of which two are wrong, and their verdicts."""
    for claim, corrects in zip(CLAIMS[2:], (True, False), strict=True):
        claim["check"] = CITED | {"corrects": corrects}
    content = {"key": "made1998", "title": "Made", "claim": [{"where": "page 1"} | claim for claim in CLAIMS]}
    monkeypatch.setattr(pages, "load_sources", lambda: (Source.model_validate(content),))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "verdicts.json").write_text(json.dumps(STORED))
    return tmp_path


def test_the_ledger_shows_every_claim(made: Path) -> None:
    """Catches rows without the marks that the filter reads, text that is taken for markup, and links to nowhere."""
    html = pages.ledger_html(made)
    assert html.count("<tr id=") == 4
    assert 'id="made-wrong" data-source="made1998" data-verdict="does not hold" data-chapter=""' in html
    assert "A &lt; B &amp; C" in html
    assert '<a href="#made-right">against made-right</a>' in html
    assert "<option>historical</option>" in html
    assert "not tested" not in html  # a choice that would show nothing


def test_the_errata_are_what_is_wrong(made: Path) -> None:
    """Catches what holds among the errata, and a document that merely differs from another."""
    assert [claim.id for claim, _ in pages.errata(made)["Made"]] == ["made-wrong", "made-old"]
    html = pages.errata_html(made)
    assert "3 is said, we find 2" in html
    assert 'href="ledger.html#made-wrong"' in html
