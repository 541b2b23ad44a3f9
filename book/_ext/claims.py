"""Sphinx extension: `{claims-ledger}` and its like put the ledger's tables into a page."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from repro.claims.pages import errata_html, ledger_html
from repro.claims.report import runs_html, summary_html


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


def setup(app: Sphinx) -> dict[str, bool]:
    """Enter the directives and the ledger's script."""
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-errata", Errata)
    app.add_directive("claims-summary", Summary)
    app.add_directive("claims-runs", Runs)
    app.add_js_file("ledger.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
