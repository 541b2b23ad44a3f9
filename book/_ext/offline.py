"""Sphinx extension: a book that asks the network for nothing and offers no button without a target.

Jupyter Book's defaults fetch MathJax and thebe from content delivery networks and break on an empty repository
address. Here MathJax comes from the installed `sphinx-mathjax-offline` package (one file, copied at build
time), thebe's scripts are left out, and the launch buttons appear only with an address.
"""

from __future__ import annotations

import shutil
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

MATHJAX_PACKAGE = "sphinx-mathjax-offline"

REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={target}">
<title>{title}</title>
</head>
<body><main><h1>{title}</h1><p><a href="{target}">Open the book</a></p></main></body>
</html>
"""


def configure_buttons(app: Sphinx, config: Config) -> None:
    """Show launch and repository buttons exactly when the repository's public address is set."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = True
    else:
        options["launch_buttons"] = {}


def escape_title(app: Sphinx, config: Config) -> None:
    """Make the book's title HTML: the theme puts it into every page as it is."""
    config.html_title = escape(config.html_title)


def drop_thebe(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove the scripts with which sphinx-thebe would fetch live-code support from a CDN."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in str(getattr(script, "filename", script) or "").lower()
        and "THEBE" not in (getattr(script, "attributes", {}).get("body") or "")
    ]


def mend_roles(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Docutils calls the bibliography a list, but not its entries list items, which confuses screen readers."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', "<div>")


def mathjax_source(relative: str) -> Path:
    """Where pip put the MathJax file that `mathjax_path` names, e.g. ``mathjax/tex-svg-full.js``."""
    for file in distribution(MATHJAX_PACKAGE).files or ():
        if file.as_posix().endswith(f"static/{relative}"):
            return Path(str(file.locate()))
    raise ExtensionError(f"{MATHJAX_PACKAGE} has no {relative}; check mathjax_path in _config.yml")


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Put the one MathJax file beside the pages."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", app.config.mathjax_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mathjax_source(app.config.mathjax_path), target)


def write_index(app: Sphinx, exception: Exception | None) -> None:
    """Write ``index.html`` as a redirect to the first page that has a title and a language."""
    root = app.config.root_doc
    if exception is None and app.builder.format == "html" and root != "index":
        page = REDIRECT.format(target=escape(f"{root}.html"), title=app.config.html_title)
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the handlers; `priority` puts them after those of Sphinx and the theme where that matters."""
    app.connect("config-inited", configure_buttons)
    app.connect("config-inited", escape_title)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_roles)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", write_index, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
