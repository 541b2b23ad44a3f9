"""The ledger's page by mouse and keyboard: rows are found, sorted and linked to."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from repro.claims import load_sources
from repro.claims.command import read

Open = Callable[..., Page]


@pytest.fixture
def ledger(site: Path, page: Open) -> Page:
    return page(site / "book" / "ledger.html")


def shown(ledger: Page) -> list[str]:
    """The ids of the rows that can be seen, in their order."""
    return ledger.evaluate("[...document.querySelectorAll('.ledger tbody tr')].filter(r => !r.hidden).map(r => r.id)")


def test_choices_and_words_leave_what_matches(ledger: Page) -> None:
    """Catches filters that replace each other, and a count that does not follow."""
    claims = [claim for source in load_sources() for claim in source.claim]
    assert len(shown(ledger)) == len(claims)
    ledger.get_by_label("verdict").select_option("does not hold")
    wrong = {name for name, stored in read().items() if stored.verdict == "does not hold"}
    assert set(shown(ledger)) == wrong
    ledger.get_by_label("source").select_option("cifar10study")
    own = {claim.id for source in load_sources() if source.key == "cifar10study" for claim in source.claim}
    assert set(shown(ledger)) == wrong & own
    ledger.locator(".ledger input[type=search]").fill("nothing says this")
    assert shown(ledger) == []
    expect(ledger.locator(".ledger output")).to_have_text(f"0 of {len(claims)} claims")


def test_a_head_sorts_by_keyboard(ledger: Page) -> None:
    """Catches heads that only a mouse reaches, and a second press that does not turn the order round."""
    head = ledger.get_by_role("button", name="what it says")
    head.focus()
    ledger.keyboard.press("Enter")
    first = shown(ledger)
    expect(ledger.get_by_role("columnheader", name="what it says")).to_have_attribute("aria-sort", "ascending")
    ledger.keyboard.press("Enter")
    expect(ledger.get_by_role("columnheader", name="what it says")).to_have_attribute("aria-sort", "descending")
    assert shown(ledger) != first
    assert sorted(shown(ledger)) == sorted(first)


def test_errata_link_to_their_rows(site: Path, page: Open) -> None:
    """Catches an anchor that the ledger does not have."""
    errata = page(site / "book" / "errata.html")
    links = errata.evaluate("[...document.querySelectorAll('dd a')].map(a => a.getAttribute('href').split('#')[1])")
    assert len(links) > 20
    assert set(links) <= set(read())
