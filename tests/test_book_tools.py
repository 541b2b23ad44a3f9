"""The book's tools: `make run`, `make sync` and the summary of `make test`, on small chapters in a scratch checkout."""

import sys
from pathlib import Path

import pytest

from book._tools import check, execute, gates, notebooks, sync

TEXT = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# One

```{code-cell} ipython3
import repro
print(repro.answer())
```

```{code-cell} ipython3
1 + 1
```
"""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    """A checkout with a package `repro` of two modules, a record that it reads, and one chapter."""
    (tmp_path / "repro").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "chapters").mkdir()
    (tmp_path / "records" / "a-0.json").write_text("41")
    (tmp_path / "repro" / "unused.py").write_text("")
    (tmp_path / "repro" / "__init__.py").write_text(
        "from pathlib import Path\n\n\ndef answer():\n"
        "    folder = Path(__file__).parents[1] / 'records'\n"
        "    return 1 + sum(int(path.read_text()) for path in folder.glob('*.json'))\n"
    )
    path = tmp_path / "chapters" / "01_one.md"
    path.write_text(TEXT)
    return path


def outputs(chapter: Path) -> list[str]:
    cells = notebooks.code_cells(notebooks.read_executed(chapter.with_suffix(".ipynb")))
    return [gates._text_of(cell.outputs[0]) if cell.outputs else "" for cell in cells]


def test_execution_is_deterministic_and_knows_its_code(chapter: Path) -> None:
    """Catches times, random cell ids or versions in a notebook, and a chapter that misses or overstates its code."""
    root = chapter.parents[1]
    assert not execute.is_current(chapter, root)
    done = execute.execute(chapter, root)
    assert outputs(chapter) == ["42\n", "2"]
    assert done.peak_bytes > 1e6
    first = chapter.with_suffix(".ipynb").read_bytes()
    execute.execute(chapter, root)
    assert chapter.with_suffix(".ipynb").read_bytes() == first
    made_from = notebooks.read_executed(chapter.with_suffix(".ipynb")).metadata.repro
    assert made_from.files == ["records/a-0.json", "repro/__init__.py"]


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (lambda root: (root / "chapters" / "01_one.md").write_text(TEXT.replace("# One", "# Two")), True),
        (lambda root: (root / "repro" / "__init__.py").open("a").write("x = 1\n"), True),
        (lambda root: (root / "records" / "a-0.json").write_text("40"), True),
        (lambda root: (root / "records" / "a-0.json").unlink(), True),
        (lambda root: (root / "repro" / "unused.py").write_text("x = 1\n"), False),
    ],
    ids=["text", "code", "record", "record gone", "other code"],
)
def test_what_makes_a_chapter_stale(chapter: Path, change, stale: bool) -> None:
    """Catches a `make run` that keeps outputs of old code, and one that executes everything at each edit."""
    root = chapter.parents[1]
    notebook = notebooks.read_text(chapter)
    files = ["records/a-0.json", "repro/__init__.py"]
    notebook.metadata["repro"] = {"files": files, "digest": notebooks.full_digest(notebook, files, root)}
    notebooks.write_executed(notebook, chapter.with_suffix(".ipynb"))
    assert execute.is_current(chapter, root)
    change(root)
    assert execute.is_current(chapter, root) is not stale


def test_failing_cell_is_named_and_old_notebook_stays(chapter: Path) -> None:
    """Catches a failed run that leaves a half executed notebook, or says only that something failed."""
    chapter.with_suffix(".ipynb").write_text("as it was")
    chapter.write_text(TEXT.replace("1 + 1", "1 / 0"))
    with pytest.raises(execute.ChapterFailed) as failure:
        execute.execute(chapter, chapter.parents[1])
    assert str(failure.value).splitlines() == [
        "01_one.md, code cell 2 failed:",
        "    1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert chapter.with_suffix(".ipynb").read_text() == "as it was"


@pytest.fixture
def executed(chapter: Path) -> Path:
    """The chapter in step with a notebook that was executed by hand."""
    chapter.write_text(sync.set_install_cell(TEXT, ""))
    notebook = notebooks.read_text(chapter)
    notebook.metadata["repro"] = {"text": notebooks.text_digest(notebook)}
    for count, cell in enumerate(notebooks.code_cells(notebook), 1):
        cell.execution_count = count
        cell.outputs = [notebooks.nbformat.v4.new_output("stream", name="stdout", text=f"output {count}")]
    notebooks.write_executed(notebook, chapter.with_suffix(".ipynb"))
    return chapter


def test_sync_keeps_outputs_of_unchanged_cells(executed: Path) -> None:
    """Catches a sync that drops all outputs, and one that leaves an old output under a changed cell."""
    executed.write_text(executed.read_text().replace("# One", "# Two").replace("1 + 1", "1 + 2"))
    assert sync.sync(executed, "") == "brought into step; 1 cells to execute: make run"
    assert outputs(executed) == ["output 1", "output 2", ""]
    assert gates.pairs_agree(executed.parents[1]) == []
    assert sync.sync(executed, "") == "in step"


def test_sync_takes_an_edit_from_jupyter(executed: Path) -> None:
    """Catches a sync that overwrites what was edited in Jupyter, whatever the times of the files."""
    path = executed.with_suffix(".ipynb")
    notebook = notebooks.read_executed(path)
    notebooks.code_cells(notebook)[2].source = "1 + 3"
    notebooks.write_executed(notebook, path)
    executed.touch()
    assert sync.sync(executed, "") == "brought into step"
    assert "1 + 3" in executed.read_text()
    assert "jupytext_version" not in executed.read_text()
    assert outputs(executed) == ["output 1", "output 2", "output 3"]


def test_sync_refuses_to_choose(executed: Path) -> None:
    """Catches a sync that silently throws away one of two edits."""
    path = executed.with_suffix(".ipynb")
    notebook = notebooks.read_executed(path)
    notebooks.code_cells(notebook)[2].source = "1 + 3"
    notebooks.write_executed(notebook, path)
    executed.write_text(executed.read_text().replace("# One", "# Two"))
    before = executed.read_bytes(), path.read_bytes()
    with pytest.raises(sync.Conflict, match="both edited"):
        sync.sync(executed, "")
    assert (executed.read_bytes(), path.read_bytes()) == before


def test_sync_writes_the_install_cell(executed: Path) -> None:
    """Catches an address that does not reach the chapters, or costs them their outputs."""
    sync.sync(executed, "https://github.com/someone/convnets")
    first = notebooks.code_cells(notebooks.read_executed(executed.with_suffix(".ipynb")))[0]
    assert first.source.endswith('%pip install -q "convnets-reproduced @ git+https://github.com/someone/convnets"')
    assert first.metadata.tags == ["hide-input"]
    assert outputs(executed) == ["output 1", "output 2", "output 3"]
    once = executed.read_text()
    sync.sync(executed, "https://github.com/someone/convnets")
    assert executed.read_text() == once


def test_summary_runs_every_part_and_ends_with_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a run that stops at the first red part, a green exit after a red part, and a sum that misses one."""
    parts = {"a": check.Result(3, 1), "b": check.Result(4, 0, 2)}
    monkeypatch.setattr(check, "PARTS", {name: lambda r=result: r for name, result in parts.items()})
    assert check.main(["a", "b"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "7 passed, 1 failed"
    assert check.main(["b"]) == 0


def test_counts_come_from_the_report(tmp_path: Path) -> None:
    """Catches errors counted as passes, and a pytest that never ran counted as green."""
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite><testcase/><testcase><failure/></testcase><testcase><error/></testcase>"
        "<testcase><skipped/></testcase></testsuite></testsuites>"
    )
    counted = check.count(tmp_path / "report.xml")
    assert (counted.passed, counted.failed, counted.skipped) == (1, 2, 1)
    assert check.count(tmp_path / "none.xml") == check.Result()
    assert check.pytest(str(tmp_path / "no_such_folder")).failed == 1


def test_tools_come_from_this_environment() -> None:
    """Catches a check that runs another Python's pytest or jupyter-book because it stands first on the path."""
    assert Path(gates.tool("pytest")).parent == Path(sys.executable).parent
