"""What has to be true of the book before its numbers mean anything.

nbval compares only what a notebook holds: it passes over a cell that was never executed, never reads the .md and
does not see a figure. Each gate here closes one such hole. A gate takes the root of a checkout and returns what
it found, one line per fault, so that the tests can show it a planted fault and see it turn red.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import yaml
from nbformat import NotebookNode

from book._tools import claimed, notebooks, scripts

BUILD = ("jupyter-book", "build", ".", "--all", "-W", "-n", "--keep-going")
INDEX = Path("_build", "html", "index.html")
MAX_CELL_LINES = 20
MAX_MEDIAN_LINES = 5
MIN_COMPARED = 0.5  # of a chapter's code cells; the rest may be tagged nbval-ignore-output


def tool(name: str) -> str:
    """The path of a command of this environment, whether or not the environment is activated."""
    return str(Path(sys.executable).with_name(name))


def build_book(root: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Build the book under `root` with every warning an error; `options` go to `subprocess.run`."""
    return subprocess.run([tool(BUILD[0]), *BUILD[1:]], cwd=root, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def run_nbval(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `pytest --nbval` on a notebook or a folder of them."""
    command = [tool("pytest"), "--nbval", str(path), "-o", "addopts=", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=path.parent, text=True, capture_output=True, check=False)


def pairs_agree(root: Path) -> list[str]:
    """Each .md has its .ipynb, and both hold the same cells; no .ipynb stands alone."""
    faults = []
    texts = notebooks.chapters(root)
    for path in sorted((root / "chapters").glob("*.ipynb")):
        if path.with_suffix(".md") not in texts:
            faults.append(f"{path.name}: no .md beside it")
    for chapter in texts:
        path = chapter.with_suffix(".ipynb")
        if not path.exists():
            faults.append(f"{chapter.name}: no .ipynb beside it; make run")
            continue
        text = [notebooks.cell_key(cell) for cell in notebooks.read_text(chapter).cells]
        executed = [notebooks.cell_key(cell) for cell in notebooks.read_executed(path).cells]
        if text != executed:
            first = next((i for i, (a, b) in enumerate(zip(text, executed, strict=False)) if a != b), None)
            where = "another number of cells" if first is None else f"cell {first + 1} differs"
            faults.append(f"{chapter.name} and {path.name} have drifted apart ({where}); make sync")
    return faults


def cells_are_executed(root: Path) -> list[str]:
    """Every code cell has a count (nbval compares no other), counts rise by one, and what prints has its output."""
    faults = []
    for name, notebook in _executed(root):
        cells = notebooks.code_cells(notebook)
        counts = [cell.execution_count for cell in cells]
        if None in counts:
            faults.append(f"{name}: code cell {counts.index(None) + 1} was never executed; make run")
        elif counts != list(range(1, len(counts) + 1)):
            faults.append(f"{name}: cells were executed out of order: {counts}; make run")
        for number, cell in enumerate(cells, 1):
            if not cell.outputs and _must_print(cell.source):
                faults.append(f"{name}: code cell {number} prints or shows, but its output is missing")
    return faults


def outputs_are_clean(root: Path) -> list[str]:
    """No output on stderr, no error, no path of the machine that executed the notebook."""
    faults = []
    private = (str(Path.home()), str(notebooks.ROOT), str(root), "/site-packages/")
    for name, notebook in _executed(root):
        for number, cell in enumerate(notebooks.code_cells(notebook), 1):
            place = f"{name}: code cell {number}"
            for output in cell.outputs:
                if output.output_type == "error":
                    faults.append(f"{place} raised {output.ename}")
                if output.get("name") == "stderr":
                    faults.append(f"{place} wrote to stderr: {output.text.strip().splitlines()[0]}")
                faults += [f"{place} shows a path of this machine" for p in private if p in _text_of(output)]
    return faults


def figures_have_alt_text(root: Path) -> list[str]:
    """Every image, from a cell or in the text, is described in words for those who don't see it."""
    faults = []
    for name, notebook in _executed(root):
        for number, cell in enumerate(notebooks.code_cells(notebook), 1):
            shown = any(key.startswith("image/") for out in cell.outputs for key in out.get("data", {}))
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if shown and not str(alt).strip():
                faults.append(f"{name}: code cell {number} shows an image without mystnb.image.alt")
            html = "".join("".join(out.get("data", {}).get("text/html", "")) for out in cell.outputs)
            if _images_without_alt(html):
                faults.append(f"{name}: code cell {number} shows an <img> without alt")
    for path in [*notebooks.chapters(root), *sorted((root / "book").glob("*.md"))]:
        faults += [f"{path.name}: {fault}" for fault in _text_images_without_alt(path.read_text("utf-8"))]
    return faults


def cells_are_short(root: Path) -> list[str]:
    """No code cell over 20 lines, and at most 5 in the median; blank lines don't count."""
    faults = []
    for chapter in notebooks.chapters(root):
        cells = notebooks.code_cells(notebooks.read_text(chapter))
        lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in cells]
        faults += [
            f"{chapter.name}: code cell {number} has {length} lines, over {MAX_CELL_LINES}"
            for number, length in enumerate(lengths, 1)
            if length > MAX_CELL_LINES
        ]
        if lengths and (median := statistics.median(lengths)) > MAX_MEDIAN_LINES:
            faults.append(f"{chapter.name}: the median code cell has {median:g} lines, over {MAX_MEDIAN_LINES}")
    return faults


def nbval_compares(root: Path) -> list[str]:
    """nbval collects every code cell of every chapter and compares the outputs of at least half of them."""
    found = run_nbval(root / "chapters", "--collect-only", "-q")
    collected = re.findall(r"^(?:.*/)?([^/\s]+)\.ipynb::", found.stdout, re.MULTILINE)
    faults = []
    for chapter in notebooks.chapters(root):
        cells = notebooks.code_cells(notebooks.read_text(chapter))
        ignored = [c for c in cells if "nbval-ignore-output" in c.metadata.get("tags", ())]
        if not cells or collected.count(chapter.stem) < len(cells):
            faults.append(f"{chapter.name}: nbval collects {collected.count(chapter.stem)} of {len(cells)} cells")
        if len(cells) - len(ignored) < MIN_COMPARED * len(cells):
            faults.append(f"{chapter.name}: nbval ignores the output of {len(ignored)} of {len(cells)} cells")
    return faults


def chapters_are_in_toc(root: Path) -> list[str]:
    """Every chapter is in ``_toc.yml``, in order, and every file named there exists."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    listed = [str(entry["file"]) for part in toc.get("parts", ()) for entry in part["chapters"]]
    files = [toc["root"], *listed]
    faults = [f"_toc.yml names {f}, which does not exist" for f in files if not any(root.glob(f"{f}.*"))]
    ours = [f"chapters/{chapter.stem}" for chapter in notebooks.chapters(root)]
    faults += [f"{chapter} is not in _toc.yml" for chapter in ours if chapter not in listed]
    in_toc = [f for f in listed if f.startswith("chapters/")]
    if in_toc != sorted(in_toc):
        faults.append("_toc.yml lists the chapters out of order")
    return faults


def install_cells_are_current(root: Path) -> list[str]:
    """Each notebook's first code cell installs `repro` from the address in ``_config.yml``."""
    expected = notebooks.install_cell(notebooks.public_address(root))
    faults = []
    for name, notebook in _executed(root):
        cells = notebooks.code_cells(notebook)
        if not cells or cells[0].source.strip() != expected:
            faults.append(f"{name}: the first code cell is not the install cell for this address; make sync")
    return faults


GATES: tuple[Callable[[Path], list[str]], ...] = (
    pairs_agree,
    cells_are_executed,
    outputs_are_clean,
    figures_have_alt_text,
    cells_are_short,
    nbval_compares,
    chapters_are_in_toc,
    install_cells_are_current,
    scripts.in_chapters,
    claimed.chapters_show_their_claims,
    claimed.numbers_have_claims,
)


def _executed(root: Path) -> Iterator[tuple[str, NotebookNode]]:
    for path in sorted((root / "chapters").glob("*.ipynb")):
        yield path.name, notebooks.read_executed(path)


def _must_print(source: str) -> bool:
    """Whether a cell calls print(…), display(…) or plt.show() outside any function or branch."""
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return False  # an indented magic, say; nbval executes the cell anyway
    calls = [n.value.func for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return any(ast.unparse(call) in ("print", "display", "plt.show") for call in calls)


def _text_of(output: NotebookNode) -> str:
    data = output.get("data", {})
    texts = [v for key, v in data.items() if key.startswith("text/")]
    return "".join([output.get("text", ""), *map("".join, texts), *output.get("traceback", ())])


class _ImgParser(HTMLParser):
    """Counts the <img> elements that have no alt attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.missing = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.missing += tag == "img" and "alt" not in dict(attrs)


def _images_without_alt(html: str) -> int:
    parser = _ImgParser()
    parser.feed(html)
    return parser.missing


def _text_images_without_alt(text: str) -> Iterator[str]:
    for match in re.finditer(r"!\[\s*\]\(([^)]*)\)", text):
        yield f"image {match[1]} without alt text"
    for match in re.finditer(r"^(:{3,}|`{3,})\{(?:figure|image)\}\s*(\S*)(.*?)^\1\s*$", text, re.M | re.S):
        if not re.search(r"^\s*:?alt:\s*\S", match[3], re.M):
            yield f"figure {match[2]} without :alt:"
    if _images_without_alt(re.sub(r"```.*?```", "", text, flags=re.S)):
        yield "<img> without alt"
