"""The book's gates: green on the book, and red on each planted fault they exist for."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from book._tools import claimed, gates, notebooks, sync
from book._tools.notebooks import ROOT
from repro.claims.chapter import Chapter
from repro.cli import app as cli

CHAPTER = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

(small)=
# A small chapter

See {numref}`fig-dot`, {eq}`eq-sum` and {cite}`lecun1998`.
The paper has 340,908 connections {claim}`lenet-connections`.

```{math}
:label: eq-sum
1 + 1 = 2
```

```{code-cell} ipython3
print(1 + 1)
```

```{code-cell} ipython3
---
mystnb:
  image:
    alt: One black dot.
  figure:
    name: fig-dot
    caption: A dot.
---
from IPython.display import Image
import base64
Image(base64.b64decode("PIXEL"))
```

```{code-cell} ipython3
from repro.claims.chapter import Chapter
chapter = Chapter("01_small", {"small": ["lenet-connections"]})
chapter.claims()
```

```{code-cell} ipython3
chapter.verdicts({})
```
"""
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="  # the smallest PNG
)


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A checkout with the real configuration and one small chapter, executed by hand: no kernel is started."""
    root = tmp_path / "checkout"
    (root / "chapters").mkdir(parents=True)
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_tools", "__pycache__", "*.md"))
    shutil.copy(ROOT / "_config.yml", root)
    chapters = [{"file": "chapters/01_small"}]
    (root / "_toc.yml").write_text(
        yaml.safe_dump(
            {
                "format": "jb-book",
                "root": "book/preface",
                "parts": [{"caption": "One", "numbered": True, "chapters": chapters}],
            }
        )
    )
    (root / "book" / "preface.md").write_text(
        "# Preface\n\nSee {doc}`../chapters/01_small`.\n\n```{bibliography}\n```\n"
    )
    text = sync.set_install_cell(CHAPTER.replace("PIXEL", PIXEL), notebooks.public_address(root))
    (root / "chapters" / "01_small.md").write_text(text)
    notebook = notebooks.read_text(root / "chapters" / "01_small.md")
    claims = Chapter("01_small", {"small": ["lenet-connections"]})
    outputs = [
        [],
        [nbformat.v4.new_output("stream", name="stdout", text="2\n")],
        [
            nbformat.v4.new_output(
                "execute_result",
                {"image/png": PIXEL, "text/plain": "<IPython.core.display.Image object>"},
                execution_count=3,
            )
        ],
        *([shown(html.data, count)] for count, html in ((4, claims.claims()), (5, claims.verdicts({})))),
    ]
    for count, (cell, made) in enumerate(zip(notebooks.code_cells(notebook), outputs, strict=True), 1):
        cell.execution_count, cell.outputs = count, made
    notebooks.write_executed(notebook, root / "chapters" / "01_small.ipynb")
    return root


def shown(html: str, count: int) -> NotebookNode:
    """What a cell shows that ends in HTML."""
    data = {"text/html": html, "text/plain": "<IPython.core.display.HTML object>"}
    return nbformat.v4.new_output("execute_result", data, execution_count=count)


def edit_notebook(root: Path, change: Callable[[list[NotebookNode]], object]) -> None:
    """Plant a fault: apply `change` to the code cells of the small chapter's notebook."""
    path = root / "chapters" / "01_small.ipynb"
    notebook = notebooks.read_executed(path)
    change(notebooks.code_cells(notebook))
    notebooks.write_executed(notebook, path)


def edit_text(root: Path, old: str, new: str) -> None:
    """Plant a fault: replace a piece of the small chapter's .md."""
    path = root / "chapters" / "01_small.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("gate", gates.GATES, ids=lambda gate: gate.__name__)
def test_book_passes(gate: Callable[[Path], list[str]]) -> None:
    """The book as it is: catches whatever the gate's own docstring names."""
    assert notebooks.chapters(ROOT), "no chapters"
    assert gate(ROOT) == []


@pytest.mark.parametrize("gate", gates.GATES, ids=lambda gate: gate.__name__)
def test_small_book_passes(gate: Callable[[Path], list[str]], small_book: Path) -> None:
    """Catches a gate that is always red, which would make every test of a planted fault below empty."""
    assert gate(small_book) == []


def test_small_book_builds_and_wrong_reference_does_not(small_book: Path) -> None:
    """Catches a build that lets a dangling reference pass, as Jupyter Book does by default."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    good = gates.build_book(small_book, **quiet)
    assert good.returncode == 0, good.stdout[-2000:]
    page = (small_book / "_build" / "html" / "chapters" / "01_small.html").read_text()
    assert 'href="../book/ledger.html#lenet-connections" title=' in page  # the mark in the text
    assert '<a href="#small">A small chapter</a>' in page  # a section, in what a cell shows
    edit_text(small_book, "{numref}`fig-dot`", "{numref}`fig-dash`")
    edit_text(small_book, "{claim}`lenet-connections`", "{claim}`lenet-conections`")
    (small_book / "chapters" / "01_small.ipynb").unlink()
    notebooks.write_executed(
        notebooks.read_text(small_book / "chapters" / "01_small.md"), small_book / "chapters" / "01_small.ipynb"
    )
    bad = gates.build_book(small_book, **quiet)
    assert bad.returncode != 0
    assert "fig-dash" in bad.stdout
    assert "lenet-connections" in bad.stdout  # the nearest claim to the one that is not there


def test_wrong_number_turns_nbval_red(small_book: Path) -> None:
    """Catches a comparison that is switched off: the same notebook passes with 2 and fails with 3."""
    path = small_book / "chapters" / "01_small.ipynb"
    right = gates.run_nbval(path)
    assert right.returncode == 0, right.stdout
    edit_notebook(small_book, lambda cells: cells[1].outputs[0].update(text="3\n"))
    wrong = gates.run_nbval(path)
    assert wrong.returncode == 1
    assert "1 failed" in wrong.stdout


def test_drifted_pair(small_book: Path) -> None:
    """Catches a gate that compares only the number of cells, or only code."""
    edit_text(small_book, "# A small chapter", "# A tiny chapter")
    assert "drifted" in gates.pairs_agree(small_book)[0]


def test_drifted_tags(small_book: Path) -> None:
    """Catches a gate blind to tags: an added nbval-ignore-output would switch a comparison off unseen."""
    edit_notebook(small_book, lambda cells: cells[1].metadata.update(tags=["nbval-ignore-output"]))
    assert "drifted" in gates.pairs_agree(small_book)[0]


@pytest.mark.parametrize("missing", [".md", ".ipynb"])
def test_half_a_pair(small_book: Path, missing: str) -> None:
    """Catches a gate that passes over a chapter of which only one half exists."""
    (small_book / "chapters" / f"01_small{missing}").unlink()
    assert f"no {missing} beside it" in gates.pairs_agree(small_book)[0]


def test_null_count(small_book: Path) -> None:
    """Catches a cell that nbval would not compare because it was never executed."""
    edit_notebook(small_book, lambda cells: cells[1].update(execution_count=None))
    assert "code cell 2 was never executed" in gates.cells_are_executed(small_book)[0]


def test_cells_out_of_order(small_book: Path) -> None:
    """Catches outputs that come from running cells in another order than the reader does."""
    edit_notebook(small_book, lambda cells: (cells[1].update(execution_count=3), cells[2].update(execution_count=2)))
    assert "out of order" in gates.cells_are_executed(small_book)[0]


def test_missing_output(small_book: Path) -> None:
    """Catches a cell that prints and whose output was stripped."""
    edit_notebook(small_book, lambda cells: cells[1].update(outputs=[]))
    assert "code cell 2 prints or shows" in gates.cells_are_executed(small_book)[0]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (nbformat.v4.new_output("stream", name="stderr", text="Warning: x\n"), "stderr: Warning: x"),
        (nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[]), "raised ValueError"),
        (nbformat.v4.new_output("stream", name="stdout", text=str(Path.home() / "x")), "path of this machine"),
    ],
    ids=["stderr", "error", "path"],
)
def test_unclean_output(small_book: Path, output: NotebookNode, found: str) -> None:
    """Catches warnings, tracebacks and private paths that would be printed in the book."""
    edit_notebook(small_book, lambda cells: cells[1].outputs.append(output))
    assert found in "\n".join(gates.outputs_are_clean(small_book))


def test_figure_of_a_cell_without_alt_text(small_book: Path) -> None:
    """Catches a figure that a blind reader is told nothing about."""
    edit_notebook(small_book, lambda cells: cells[2].metadata["mystnb"].pop("image"))
    assert "code cell 3 shows an image" in gates.figures_have_alt_text(small_book)[0]


@pytest.mark.parametrize(
    "image", ["![](x.png)", "```{figure} x.png\nA caption.\n```", ":::{image} x.png\n:::", '<img src="x.png">']
)
def test_image_in_the_text_without_alt_text(small_book: Path, image: str) -> None:
    """Catches the same in the four ways in which MyST text can show an image."""
    edit_text(small_book, "See {numref}", f"{image}\n\nSee {{numref}}")
    assert len(gates.figures_have_alt_text(small_book)) == 1


def test_long_cell(small_book: Path) -> None:
    """Catches a cell of 21 lines, and does not count blank ones."""
    edit_text(small_book, "print(1 + 1)", "\n\n".join(["x = 1"] * gates.MAX_CELL_LINES))
    assert gates.cells_are_short(small_book) == []
    edit_text(small_book, "x = 1\n```", "x = 1\nx = 2\n```")
    assert f"{gates.MAX_CELL_LINES + 1} lines" in gates.cells_are_short(small_book)[0]


def test_long_median(small_book: Path) -> None:
    """Catches a chapter whose cells are all of middling length."""
    edit_text(small_book, "print(1 + 1)", "\n".join(["x = 1"] * 6))
    edit_text(small_book, "import base64", "import base64\n" + "\n".join(["x = 1"] * 4))
    edit_text(small_book, "chapter.claims()", "chapter.claims()\n" + "\n".join(["x = 1"] * 4))
    assert "median" in gates.cells_are_short(small_book)[0]


def test_skipped_cells(small_book: Path) -> None:
    """Catches a chapter that tells nbval to pass over most of its outputs."""
    text = (small_book / "chapters" / "01_small.md").read_text()
    ignoring = text.replace("ipython3\nprint", "ipython3\n:tags: [nbval-ignore-output]\n\nprint")
    ignoring = ignoring.replace("---\nmystnb", "---\ntags: [nbval-ignore-output]\nmystnb")
    ignoring = ignoring.replace("ipython3\nchapter", "ipython3\n:tags: [nbval-ignore-output]\n\nchapter")
    (small_book / "chapters" / "01_small.md").write_text(ignoring)
    assert "ignores the output of 3 of 5" in gates.nbval_compares(small_book)[0]


def test_uncollected_cells(small_book: Path) -> None:
    """Catches a notebook that nbval does not see."""
    (small_book / "chapters" / "01_small.ipynb").unlink()
    assert "collects 0 of 5" in gates.nbval_compares(small_book)[0]


def test_toc(small_book: Path) -> None:
    """Catches a chapter that no page leads to, and an entry without a file."""
    shutil.copy(small_book / "chapters" / "01_small.md", small_book / "chapters" / "02_large.md")
    assert "chapters/02_large is not in _toc.yml" in gates.chapters_are_in_toc(small_book)
    (small_book / "book" / "preface.md").unlink()
    assert "_toc.yml names book/preface, which does not exist" in gates.chapters_are_in_toc(small_book)


def test_chapter_without_its_claims(small_book: Path) -> None:
    """Catches a chapter that never says what it checks, takes another's claims, or ends without verdicts."""
    edit_text(small_book, 'Chapter("01_small"', 'Chapter("02_large"')
    assert "Chapter('01_small', …)" in claimed.chapters_show_their_claims(small_book)[0]
    edit_text(small_book, "chapter.verdicts({})", "chapter.claims()")
    assert "no cell shows its verdicts" in claimed.chapters_show_their_claims(small_book)[1]


@pytest.mark.parametrize(
    "line",
    [
        "The paper trains for 90 passes.",
        "Six days were enough, 18 % {cite}`krizhevsky2012`.",
        'It says "about 40 of them".',
        "There are 340,908 of them.",
        "The net errs on 37.5 %.",
    ],
)
def test_number_without_a_claim(line: str) -> None:
    """Catches a source's number without a mark: beside the source's name, in quotation marks, or as the ledger has it.

    The last two name no source; the numbers are in the ledger. With a mark behind the number nothing is amiss.
    """
    assert len(list(claimed.unclaimed(f"# A page\n\n{line}\n"))) == 1
    assert not list(claimed.unclaimed(f"# A page\n\n{line} {{claim}}`lenet-connections`\n"))


@pytest.mark.parametrize(
    "line",
    [
        "The paper's section 4.1 and its figure 3 are of 2012 {cite}`krizhevsky2012`.",
        "The report prints a 3×3 kernel, as {numref}`fig-90` shows.",
        "Ours, `--seed 5`, is the paper's net.",
        "| 340,908 | in a table |",
        "```{math}\nx = 61.1 \\text{ of the paper}\n```",
    ],
)
def test_number_that_is_no_statement(line: str) -> None:
    """Catches a gate that asks for claims behind places, years, kernels, code, formulas and tables of our own."""
    assert not list(claimed.unclaimed(f"# A page\n\n{line}\n"))


def test_mark_of_a_claim_that_there_is_not(small_book: Path) -> None:
    """Catches a mark whose claim was renamed."""
    edit_text(small_book, "{claim}`lenet-connections`", "{claim}`lenet-conections`")
    assert claimed.numbers_have_claims(small_book) == ["01_small.md: no claim is called lenet-conections"]


def test_stale_install_cell(small_book: Path) -> None:
    """Catches an install cell that was not rewritten after the address was set."""
    set_address(small_book, "https://github.com/someone/convnets")
    assert "make sync" in gates.install_cells_are_current(small_book)[0]


def set_address(root: Path, address: str) -> None:
    """Set the public address in a scratch copy, in the one place where it stands, and bring the chapters into step."""
    config = root / "_config.yml"
    text, changed = re.subn(r"^(  url:) .*$", rf'\1 "{address}"', config.read_text(), flags=re.MULTILINE)
    assert changed == 1
    config.write_text(text)


def test_commands_in_the_pages_exist() -> None:
    """Catches a page that tells the reader to type a command which was renamed or never written."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    told = set(re.findall(r"(?:^\$ |`)make (\w+)", pages, re.MULTILINE))
    assert told
    assert told <= targets
    commands = {c.name or c.callback.__name__ for c in cli.registered_commands if c.callback}
    commands |= {group.name for group in cli.registered_groups}
    told = set(re.findall(r"(?:^\$ |`)repro (\w+)", pages, re.MULTILINE))
    assert told
    assert told <= commands


def test_no_buttons_without_an_address(small_book: Path) -> None:
    """Catches launch and repository buttons that would lead nowhere."""
    set_address(small_book, "")
    assert gates.build_book(small_book, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    html = (small_book / "_build" / "html" / "chapters" / "01_small.html").read_text()
    assert not re.search(r"colab|mybinder|source-repository-button", html)


def test_buttons_lead_to_tracked_notebooks_that_install_the_package(tmp_path: Path) -> None:
    """Catches a button that opens a file which is not in the repository, or a notebook that cannot import `repro`."""
    address = "https://github.com/someone/convnets"
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("book", "chapters", "records/torture"):  # the last for the table that a page includes
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    set_address(tmp_path, address)
    for chapter in notebooks.chapters(tmp_path):
        sync.sync(chapter, notebooks.public_address(tmp_path))
    assert gates.pairs_agree(tmp_path) + gates.cells_are_executed(tmp_path) == []
    built = gates.build_book(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert built.returncode == 0, built.stdout[-2000:]
    git = ["git", "ls-files", "chapters"]
    tracked = set(subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    for chapter in notebooks.chapters(tmp_path):
        target = f"chapters/{chapter.stem}.ipynb"
        html = (tmp_path / "_build" / "html" / "chapters" / f"{chapter.stem}.html").read_text()
        links = re.findall(r'href="(https://(?:colab\.research\.google\.com|mybinder\.org)/[^"]*)"', html)
        assert links == [
            f"https://mybinder.org/v2/gh/someone/convnets/main?urlpath=lab/tree/{target}",
            f"https://colab.research.google.com/github/someone/convnets/blob/main/{target}",
        ]
        assert target in tracked, f"{target} is not in git: git add it"
        first = notebooks.code_cells(notebooks.read_executed(tmp_path / target))[0].source
        assert f'%pip install -q "convnets-reproduced @ git+{address}"' in first
        assert 'if importlib.util.find_spec("repro") is None:' in first
