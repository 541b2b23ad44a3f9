"""The reproduction report's tables: what came of each source, and what the recorded runs took."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from repro import records
from repro.claims.command import WORDS, read
from repro.claims.ledger import load_sources

# A server processor of 64 cores draws about 280 W at full load: an assumption, for an order of magnitude.
WATTS_PER_THREAD = 280 / 64


def summary_html(folder: Path | None = None) -> str:
    """Verdicts by source, and over all."""
    stored = read(folder)
    rows, total = [], Counter[str]()
    for source in load_sources():
        number = Counter[str](stored[claim.id].verdict for claim in source.claim)
        total += number
        rows.append([source.key, *(str(number[word]) for word in WORDS), str(len(source.claim))])
    rows.append(["all", *(str(total[word]) for word in WORDS), str(total.total())])
    return _table(["source", *WORDS, "claims"], rows)


def runs_html(folder: Path | None = None) -> str:
    """The runs behind the measured claims: seeds, hardware, hours, and an estimate of their energy."""
    rows, hours, energy = [], 0.0, 0.0
    found = [r for r in records.load_all(folder) if r.counts]
    for recipe in sorted({r.recipe for r in found}):
        runs = [r for r in found if r.recipe == recipe]
        seconds, joules = sum(r.seconds for r in runs), sum(_joules(r) for r in runs)
        hours, energy = hours + seconds / 3600, energy + joules
        seeds = ", ".join(str(r.seed) for r in runs)
        ours = records.spread([r.last.test_error for r in runs])
        error = f"{ours.mean:.2%}" + (f" ± {ours.std:.2%}" if ours.n > 1 else "")
        rows.append([recipe, seeds, _devices(runs), error, f"{seconds / 3600:.2f}", f"{joules / 1e3:.1f}"])
    rows.append(["all", str(len(found)), "", "", f"{hours:.2f}", f"{energy / 1e3:.1f}"])
    return _table(["recipe", "seeds", "processor × threads", "test error", "hours", "kJ (est.)"], rows)


def _devices(runs: Sequence[records.Record]) -> str:
    return "; ".join(sorted({f"{r.device['name']} × {r.device['threads']}" for r in runs}))


def _joules(run: records.Record) -> float:
    """Of a processor's threads at full load; hours include pauses, so that this is an upper bound."""
    return run.seconds * WATTS_PER_THREAD * run.device["threads"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="pst-scrollable-table-container report"><table class="table">'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )
