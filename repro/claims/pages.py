"""The ledger as pages of the book: all claims in one table, and what is wrong in the sources, document by document.

They are made from the claims and the stored verdicts, without a net or a record, when the book is built.
"""

from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from repro.claims.command import WORDS, Stored, read
from repro.claims.ledger import Citation, Claim, Source, load_sources
from repro.claims.verdicts import equal

COLUMNS = ("source", "what it says", "verdict", "how we know", "chapter")


def ledger_html(folder: Path | None = None) -> str:
    """A table of all claims, with the controls that `ledger.js` brings to life: without it the table shows them all."""
    stored, sources = read(folder), load_sources()
    number = Counter(verdict.verdict for verdict in stored.values())
    chapters = sorted({claim.chapter for source in sources for claim in source.claim} - {""})
    rows = "".join(_row(source, claim, stored[claim.id]) for source in sources for claim in source.claim)
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in COLUMNS)
    return (
        '<div class="ledger"><form class="ledger-controls" hidden>'
        '<label>search <input type="search" name="words"></label>'
        + _select("source", [source.key for source in sources])
        + _select("verdict", [word for word in WORDS if number[word]])
        + _select("chapter", chapters)
        + '<output aria-live="polite"></output></form>'
        '<div class="pst-scrollable-table-container"><table class="table"><caption>'
        f"{len(stored)} claims</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _select(name: str, values: list[str]) -> str:
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _row(source: Source, claim: Claim, stored: Stored) -> str:
    others = "".join(f' <a href="#{other}">against {other}</a>' for other in claim.contradicts)
    chapter, verdict = escape(claim.chapter), escape(stored.verdict)
    cells = (
        f"{escape(source.key)}<br>{escape(claim.where)}",
        f'{escape(claim.statement)}<br><a href="#{claim.id}">{claim.id}</a>{others}',
        f"<strong>{verdict}</strong>" if stored.verdict == "does not hold" else verdict,
        escape(stored.detail),
        chapter and f'<a href="../chapters/{chapter}.html">{chapter}</a>',
    )
    keys = (source.key, stored.verdict, claim.chapter)
    marks = " ".join(
        f'data-{name}="{escape(key)}"' for name, key in zip(("source", "verdict", "chapter"), keys, strict=True)
    )
    return f'<tr id="{claim.id}" {marks}>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def errata(folder: Path | None = None) -> dict[str, list[tuple[Claim, Stored]]]:
    """What does not hold, and what history corrects, by the title of the source."""
    stored = read(folder)
    return {
        source.title: wrong
        for source in load_sources()
        if (wrong := [(c, stored[c.id]) for c in source.claim if _is_wrong(c, stored[c.id])])
    }


def _is_wrong(claim: Claim, stored: Stored) -> bool:
    cited = claim.check if isinstance(claim.check, Citation) and claim.check.corrects else None
    corrected = cited is not None and not equal(cited.value, claim.value, claim.tolerance)
    return stored.verdict == "does not hold" or corrected


def errata_html(folder: Path | None = None) -> str:
    """A section for each source: where, what it says, what is right and how that follows."""
    return "".join(
        f"<h2>{escape(title)}</h2><dl>{''.join(_entries(wrong))}</dl>" for title, wrong in errata(folder).items()
    )


def _entries(wrong: list[tuple[Claim, Stored]]) -> Iterator[str]:
    for claim, stored in wrong:
        unit = "" if isinstance(stored.found, bool) else f" {escape(claim.unit)}".rstrip()
        yield (
            f"<dt>{escape(claim.where)}: {escape(claim.statement)}</dt>"
            f'<dd>{escape(stored.detail)}{unit} (<a href="ledger.html#{claim.id}">{claim.id}</a>)</dd>'
        )
