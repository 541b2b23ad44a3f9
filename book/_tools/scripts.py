"""What runs in the reader's browser: the book's own scripts and the theme's, and nothing that came with a name.

Text from elsewhere (claims, class names, what a cell printed) is escaped where HTML is made of it. This looks at what
came out: every page is walked by a parser, and each script, inline handler and address in it has to be one that is
known here by what it is, not by where it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt

from book._tools import notebooks
from repro.visualization.explorer import FOLDER, Explorer, inlined

# Whose scripts and pictures the pages bring along, byte for byte.
THEME = (
    "sphinx",
    "pydata-sphinx-theme",
    "sphinx-book-theme",
    "sphinx-copybutton",
    "sphinx-design",
    "sphinx-mathjax-offline",
    "sphinx-thebe",
    "sphinx-togglebutton",
)
# Written by Sphinx and its extensions from the book's configuration, which no text of the book reaches.
CONFIGURED = ("copybutton.js", "documentation_options.js", "language_data.js")
INLINE = {
    'document.documentElement.dataset.mode = localStorage.getItem("mode") || "auto"; '
    'document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";',
    "let toggleHintShow = 'Click to show';",
    "let toggleHintHide = 'Click to hide';",
    "let toggleOpenOnPrint = 'true';",
    "var togglebuttonSelector = '.toggle, .admonition.dropdown';",
    "DOCUMENTATION_OPTIONS.search_as_you_type = false;",
    "kernelName = 'python3'",
    "// Activate the search field on page load "
    'let searchInput = document.querySelector("form.bd-search input"); '
    "if (searchInput) { searchInput.focus(); searchInput.select(); "
    'console.log("[PST]: Set focus on search field."); }',
}
HANDLERS = {("button", "onclick", "window.print()")}
DATA = "text/x-thebe-config"  # the type of a script element that no browser runs
# They run, or load, what the walk does not see.
ELEMENTS = {"iframe", "frame", "frameset", "object", "embed", "applet", "portal", "base", "set", "animate"}
RAW = {"noscript", "noembed", "noframes", "xmp", "textarea", "title"}
ADDRESSES = {"href", "xlink:href", "src", "srcset", "action", "formaction", "data", "poster", "background", "ping"}
SCHEMES = {"http", "https", "mailto"}
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]*")
REFRESH = re.compile(r"^[^;,]*[;,]\s*(url\s*=\s*)?['\"]?", re.IGNORECASE)  # what stands before the address
LINKING = re.compile(r"\\(href|mmlToken|require|unicode|html\w+)\b")  # what MathJax makes links and elements of
PAGES = (".html", ".htm", ".xhtml", ".svg", ".xml")


class Walk(HTMLParser):
    """Notes all that could run on a page; `name` is the page's, as Sphinx calls it: `book/ledger`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.faults, self.files = name, list[str](), list[str]()
        self._script: list[str] | None = None
        self._style = self._math = False
        self._raw = 0  # how deep among elements whose content browsers take for text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in reversed(attrs)}  # of two the first counts
        self._style, self._math = tag == "style", "math" in found.get("class", "").split()
        if tag in ELEMENTS:
            self._fault(f"<{tag}>")
        for key, value in attrs:
            self._attribute(tag, key, value or "")
            if self._raw:
                self._inside(value or "")  # browsers read on until the element's end, wherever that stands
        if "http-equiv" in found:
            self._address(tag, REFRESH.sub("", found.get("content", "")))
        self._raw += tag in RAW
        if tag == "script":
            self._begin_script(found)

    def _attribute(self, tag: str, key: str, value: str) -> None:
        if key.startswith("on") and (tag, key, value) not in HANDLERS:
            self._fault(f"<{tag}> with the handler {key}={value!r}")
        if key == "srcdoc":
            self._fault(f"<{tag}> with a page of its own")
        if key == "src" and tag == "script":
            self.files.append(value)
        elif key in ADDRESSES and not (tag == "img" and key == "src" and PICTURE.fullmatch(value)):
            self._address(tag, value)

    def _address(self, tag: str, value: str) -> None:
        # Browsers pass over blanks and control characters in a scheme.
        scheme = re.match(r"([a-z][a-z0-9+.-]*):", re.sub(r"[\x00-\x20\x7f-\x9f]", "", value).lower())
        if scheme and scheme[1] not in SCHEMES:
            self._fault(f"<{tag}> with the address {value[:60]!r}")

    def _begin_script(self, attributes: dict[str, str]) -> None:
        if "src" not in attributes and attributes.get("type") != DATA:
            self._script = []
        if attributes.keys() & {"href", "xlink:href"}:
            self._fault("<script> of SVG")

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self._script.append(data)
        elif self._style:
            self._inside(data)  # in SVG, what stands in a <style> are elements
        elif self._math and LINKING.search(data):
            self._fault(f"a formula with a link: {data[:60]!r}")

    def handle_endtag(self, tag: str) -> None:
        self._style = self._math = False
        self._raw -= self._raw > 0 and tag in RAW
        if tag == "script":
            self._end_script()

    def _end_script(self) -> None:
        if self._script is not None and not is_known("".join(self._script), self.name):
            self._fault(f"<script> that is neither ours nor the theme's: {''.join(self._script).strip()[:60]!r}")
        self._script = None

    def _inside(self, data: str) -> None:
        """Walk what this parser takes for no markup, and a browser might."""
        if "<" in data:
            inner = Walk(self.name)
            inner.run(data)
            self.faults += inner.faults
            self.files += inner.files

    handle_comment = handle_decl = handle_pi = unknown_decl = _inside

    def _fault(self, what: str) -> None:
        self.faults.append(f"{self.name}: line {self.getpos()[0]}: {what}")

    def run(self, text: str) -> None:
        """Walk a text to its end, where an open script ends too."""
        self.feed(text)
        self.close()
        self._end_script()


def is_known(script: str, page: str) -> bool:
    """Whether an inline script is the theme's, this page's settings, or an explorer of ours made of our modules."""
    text = " ".join(script.split())
    if text in INLINE or text == f"DOCUMENTATION_OPTIONS.pagename = '{page}';":
        return True
    if text.startswith("window.MathJax = "):
        return _is_our_mathjax(text.removeprefix("window.MathJax = "))
    rest = next((script.removesuffix(end) for end in _explorers() if script.endswith(end)), None)
    while rest and rest.strip():
        module = next((m for m in _modules() if rest.lstrip().startswith(m)), None)
        rest = None if module is None else rest.lstrip().removeprefix(module)
    return rest is not None


@cache
def _modules() -> list[str]:
    """Those that explorers import, as they stand in a page."""
    return [inlined(path.name).strip() for path in FOLDER.glob("*.js")]


@cache
def _explorers() -> list[str]:
    """The end of each explorer's script: its own module, and what starts it."""
    names = sorted(path.stem for path in FOLDER.glob("*_explorer.js"))
    pages = [Explorer(name, {})._repr_html_() for name in names]
    return [re.split(r'<script type="module">\s*', page)[1].removesuffix("</script>") for page in pages]


def _is_our_mathjax(text: str) -> bool:
    """Whether settings are the configuration's: others could have MathJax load a script."""
    config = yaml.safe_load((notebooks.ROOT / "_config.yml").read_text(encoding="utf-8"))
    ours = config["sphinx"]["config"]["mathjax3_config"]
    try:
        found = json.loads(text)
        found["options"].pop("processHtmlClass", None)  # MyST's, a list of classes
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    return bool(found == ours)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@cache
def _theme() -> dict[str, list[Path]]:
    """The installed files of the theme by name."""
    found: dict[str, list[Path]] = {}
    for package in THEME:
        try:
            files = distribution(package).files or ()
        except PackageNotFoundError:
            continue
        for file in files:
            found.setdefault(file.name, []).append(Path(str(file.locate())))
    return found


def is_ours_or_the_themes(file: Path, site: Path) -> bool:
    """Whether a file of the site is one that the book or the theme brings along, unchanged."""
    content = file.read_bytes()
    if file == site / "searchindex.js":
        return _is_json(content.decode().removeprefix("Search.setIndex(").removesuffix(")"))
    if file.parent == site / "_static" and file.name in CONFIGURED:
        return True
    originals = [notebooks.ROOT / "book" / "_static" / file.name, *_theme().get(file.name, ())]
    return any(path.is_file() and path.read_bytes() == content for path in originals)


def in_site(site: Path) -> list[str]:
    """What could run in a built site and is neither ours nor the theme's, a line for each."""
    faults = []
    for path in sorted(p for p in site.rglob("*") if p.suffix in PAGES and p.is_file()):
        if is_ours_or_the_themes(path, site):
            continue  # the theme leaves templates of its own among the pages
        walk = Walk(path.relative_to(site).with_suffix("").as_posix())
        walk.run(path.read_text(encoding="utf-8"))
        faults += walk.faults
        faults += [f"{walk.name}: <script> from {src}" for src in walk.files if not _resolves(src, path, site)]
    for path in sorted([*site.rglob("*.js"), *site.rglob("*.mjs")]):
        if not is_ours_or_the_themes(path, site):
            faults.append(f"{path.relative_to(site)}: neither ours nor the theme's")
    return faults


def _resolves(src: str, page: Path, site: Path) -> bool:
    """Whether a script's address leads to a file of the site, which is looked at by itself."""
    address = urlsplit(src)
    target = (page.parent / unquote(address.path)).resolve()
    return not address.scheme and not address.netloc and target.is_relative_to(site.resolve()) and target.is_file()


def in_chapters(root: Path) -> list[str]:
    """The same of what the chapters show, before a site is built: their texts, and the outputs of their cells."""
    faults = []
    for path in sorted((root / "chapters").glob("*.ipynb")):
        walk = Walk(f"chapters/{path.stem}")
        for html in _shown(path):
            walk.run(html)
        faults += walk.faults + [f"{walk.name}: <script> from {src}" for src in walk.files]
    return faults


def _shown(path: Path) -> Iterator[str]:
    render = MarkdownIt("commonmark").render
    for cell in notebooks.read_executed(path).cells:
        if cell.cell_type == "markdown":
            yield render(cell.source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            yield from (text for kind in ("text/html", "image/svg+xml") if (text := data.get(kind)))
            if "text/markdown" in data:
                yield render(data["text/markdown"])
            if "text/latex" in data:
                yield f'<div class="math">{escape(data["text/latex"])}</div>'
            yield from (f"<script>{text}</script>" for kind, text in data.items() if kind.endswith("javascript"))
