"""Sphinx extension: the ledger's tables as directives, and the marks that show a claim's verdict in running text.

`{claim}`vgg-epochs`` is such a mark: a sign for the verdict, linked to the claim's row in the ledger. In what the cells
of a chapter show of the ledger (`repro.claims.chapter`) the names of claims and of sections become links, too.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from repro.claims.command import FILE, read
from repro.claims.ledger import claims
from repro.claims.pages import errata_html, ledger_html
from repro.claims.report import runs_html, summary_html
from repro.errors import nearest
from repro.records import records_dir

LEDGER = "book/ledger"
MARKS = {"holds": "✓", "holds within the spread": "≈", "does not hold": "✗", "not tested": "?", "historical": "†"}


class Ledger(Directive):
    """All claims, to filter and to sort."""

    make: ClassVar[Any] = staticmethod(ledger_html)

    def run(self) -> list[nodes.Node]:
        """The table, as it is."""
        return [nodes.raw("", self.make(), format="html")]


class Errata(Ledger):
    """What is wrong in the sources."""

    make: ClassVar[Any] = staticmethod(errata_html)


class Summary(Ledger):
    """Verdicts by source."""

    make: ClassVar[Any] = staticmethod(summary_html)


class Runs(Ledger):
    """What the recorded runs took."""

    make: ClassVar[Any] = staticmethod(runs_html)


class Mark(SphinxRole):
    """The verdict on the claim that is named, as a sign; an unknown claim is a warning, which fails the build."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A place for the link, which needs the page's address."""
        self.env.note_dependency(str(records_dir() / FILE))
        known = {claim.id for claim in claims()}
        if self.text not in known:
            message = f"claim {self.text!r}: {nearest(self.text, known)}"
            return [], [self.inliner.reporter.warning(message, line=self.lineno)]
        return [nodes.raw("", f'<code class="claim-mark">{self.text}</code>', format="html")], []


def link(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn marks, claims' names and sections' names into links, now that the page's address is known."""
    places = [place for place in doctree.findall(nodes.raw) if '<code class="' in place.astext()]
    if not places:
        return
    stored, labels = read(), app.env.get_domain("std").labels
    texts = {claim.id: claim.statement for claim in claims()}
    ledger = app.builder.get_relative_uri(page, LEDGER)

    def to_mark(match: re.Match[str]) -> str:
        claim = match[1]
        verdict = stored[claim].verdict
        return (
            f'<sup><a class="claim-mark" href="{ledger}#{claim}" title="{escape(texts[claim])} ({escape(verdict)})" '
            f'aria-label="claim {claim}: {escape(verdict)}">{MARKS[verdict]}</a></sup>'
        )

    def to_section(match: re.Match[str]) -> str:
        section = unescape(match[1])
        _, anchor, title = labels.get(section, ("", section, section))
        return f'<a href="#{escape(anchor)}">{escape(title)}</a>'

    for place in places:
        html = re.sub(r'<code class="claim-mark">([a-z0-9-]+)</code>', to_mark, place.astext())
        html = re.sub(r'<code class="claim">([a-z0-9-]+)</code>', rf'<a href="{ledger}#\1">\1</a>', html)
        html = re.sub(r'<code class="section">([^<]+)</code>', to_section, html)
        place.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Enter the directives, the role and the ledger's script."""
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-errata", Errata)
    app.add_directive("claims-summary", Summary)
    app.add_directive("claims-runs", Runs)
    app.add_role("claim", Mark())
    app.connect("doctree-resolved", link)
    app.add_js_file("ledger.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
