"""The ledger in a chapter: it opens with the claims that it takes up, and closes with what its cells found of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from IPython.display import HTML

from repro.claims.command import WORDS, StaleVerdicts, Stored, drift, read
from repro.claims.ledger import Claim, claims, load_sources
from repro.claims.verdicts import as_value, equal, show
from repro.errors import ReproError, UnknownName, nearest

WITH_REASON = ("holds within the spread", "not tested", "historical")  # verdicts that the word alone does not explain


@dataclass(frozen=True)
class Chapter:
    """The claims that one chapter takes up, by the section that checks them: `{"vgg-table": ["vgg-parameters"]}`.

    Raises UnknownName for a claim that the ledger does not have, and ReproError for one that is listed twice.
    """

    name: str
    sections: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        known = {claim.id for claim in claims()}
        for claim, times in Counter(self._taken_up()).items():
            if claim not in known:
                raise UnknownName(f"claim {claim!r}: {nearest(claim, known)}")
            if times > 1:
                raise ReproError(f"claim {claim!r}: {self.name} takes it up {times} times; once is enough")

    def claims(self) -> HTML:
        """What the sources say, section by section, and where; in the book sections and ids become links."""
        groups = "".join(
            f'<dt><code class="section">{escape(section)}</code></dt>'
            + "".join(f"<dd>{_statement(_entries()[claim])}</dd>" for claim in chosen)
            for section, chosen in self.sections.items()
        )
        return HTML(f'<dl class="claims">{groups}</dl>')

    def verdicts(self, found: Mapping[str, object], folder: Path | None = None) -> HTML:
        """The verdict on each claim: the ledger's, after comparing it with what this chapter's cells `found`.

        `found` holds values by claim, for those that the chapter computes itself. The ledger's further claims on the
        subject are folded away below the table. Raises UnknownName for a claim that the chapter does not take up, and
        StaleVerdicts where chapter and ledger (below the records in `folder`) do not find the same.
        """
        stored, taken_up = read(folder), self._taken_up()
        for claim in found:
            if claim not in taken_up:
                raise UnknownName(f"claim {claim!r}: {self.name} does not take it up; {nearest(claim, taken_up)}")
        for claim, value in found.items():
            _compare(_entries()[claim][1], stored[claim], value)
        rows = [_row(_entries()[claim], stored[claim], found.get(claim)) for claim in taken_up]
        others = [claim.id for claim in claims(chapter=self.name) if claim.id not in taken_up]
        return HTML(_table(rows) + _folded(others, stored))

    def _taken_up(self) -> list[str]:
        return [claim for chosen in self.sections.values() for claim in chosen]


def _entries() -> dict[str, tuple[str, Claim]]:
    """All claims by id, each with its source's key."""
    return {claim.id: (source.key, claim) for source in load_sources() for claim in source.claim}


def _compare(claim: Claim, stored: Stored, value: object) -> None:
    """Raise StaleVerdicts unless the ledger found the same; what it could not find has nothing to be compared with."""
    if stored.found is None:
        return
    if not equal(as_value(value), stored.found, max(claim.tolerance, drift(stored.found))):
        raise StaleVerdicts(f"claim {claim.id}: this chapter finds {value}, the ledger {stored.found}; one is wrong")


def _row(entry: tuple[str, Claim], stored: Stored, value: object) -> list[str]:
    """Said, found and verdict; of a value that both have found the ledger's digits are shown."""
    _, claim = entry
    ours = stored.found if stored.found is not None or value is None else as_value(value)
    reason = f"<br><em>{escape(stored.detail)}</em>" if stored.verdict in WITH_REASON else ""
    verdict = escape(stored.verdict)
    verdict = f"<strong>{verdict}</strong>" if stored.verdict == "does not hold" else verdict
    said = "" if isinstance(claim.value, bool) else _quantity(claim, claim.value)
    return [_statement(entry) + reason, said, "" if ours is None else _quantity(claim, ours), verdict]


def _quantity(claim: Claim, value: object) -> str:
    plain = as_value(value)
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    return escape(plain if isinstance(plain, str) else f"{show(plain)} {claim.unit}".rstrip())


def _statement(entry: tuple[str, Claim]) -> str:
    key, claim = entry
    place = f'{escape(key)}, {escape(claim.where)}; <code class="claim">{claim.id}</code>'
    return f"{escape(claim.statement)} <small>{place}</small>"


def _folded(others: Sequence[str], stored: Mapping[str, Stored]) -> str:
    if not others:
        return ""
    number = Counter(stored[claim].verdict for claim in others)
    tally = ", ".join(f"{number[word]} {word}" for word in WORDS if number[word])
    table = _table([_row(_entries()[claim], stored[claim], None) for claim in others])
    noun = "claim" if len(others) == 1 else "claims"
    return (
        f"<details><summary>{len(others)} more {noun} of the ledger on this subject: {tally}</summary>{table}</details>"
    )


def _table(rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "said", "found", "verdict"))
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="pst-scrollable-table-container claims"><table class="table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
