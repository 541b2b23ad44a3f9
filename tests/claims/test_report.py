"""The report's tables, against sums made here."""

import re
from collections import Counter
from html import unescape

from repro import records
from repro.claims import load_sources
from repro.claims.command import WORDS, read
from repro.claims.report import runs_html, summary_html


def cells(html: str) -> list[list[str]]:
    """The rows of a table, as text."""
    return [[unescape(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in html.split("<tr>")[1:]]


def test_every_claim_is_counted_once() -> None:
    """Catches a source or a verdict that is left out, and a total that is not the sum."""
    head, *rows, total = cells(summary_html())
    assert head == ["source", *WORDS, "claims"]
    assert [row[0] for row in rows] == [source.key for source in load_sources()]
    number = Counter(stored.verdict for stored in read().values())
    assert total[1:-1] == [str(number[word]) for word in WORDS]
    assert int(total[-1]) == sum(int(row[-1]) for row in rows) == number.total()


def test_every_run_that_counts_is_listed() -> None:
    """Catches hours in minutes, a recipe left out, and records that count for nothing."""
    _, *rows, total = cells(runs_html())
    found = [r for r in records.load_all() if r.counts]
    assert [row[0] for row in rows] == sorted({r.recipe for r in found})
    assert int(total[1]) == len(found) == sum(len(row[1].split(",")) for row in rows)
    assert abs(float(total[4]) - sum(r.seconds for r in found) / 3600) < 0.01
    one = next(row for row in rows if row[0] == "alexnet-cifar10-5")
    (run,) = records.load("alexnet-cifar10-5")[:1]
    if len(one[1].split(",")) == 1:
        assert abs(float(one[5]) - run.seconds * run.device["threads"] * 4.375 / 1e3) < 0.1
