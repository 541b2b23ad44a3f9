"""Execute the chapters whose text or code changed, two at a time, and rewrite their notebooks.

    python -m book._tools.execute [--all] [CHAPTER ...]

A chapter's code is what its kernel really loaded: after the last cell it is asked for the modules that lie in the
repository and for the other files there (recipes, records, scripts of explorers) that it opened or listed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from book._tools import notebooks

AT_ONCE = 2
CELL_TIMEOUT = 600  # seconds

# Runs in the kernel before the first cell: remember every file of the repository that is opened or listed.
WATCH = """
import sys
def _watch(root):
    seen = sys._chapter_files = set()
    def hook(event, args):
        if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str) and args[0].startswith(root):
            seen.add(args[0])
    sys.addaudithook(hook)
_watch({root!r})
del _watch, sys
"""

# Runs in the kernel after the last cell, as that cell's continuation: its one line of output is taken off again.
PROBE = """
import json, resource, sys
print(json.dumps({
    "modules": [m.__file__ for m in list(sys.modules.values()) if isinstance(getattr(m, "__file__", None), str)],
    "opened": sorted(sys._chapter_files),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


class ChapterFailed(Exception):
    """A cell raised; the message names chapter, cell and error."""


@dataclass(frozen=True)
class Execution:
    """What one execution cost: wall seconds, and the kernel's peak resident memory in bytes."""

    chapter: Path
    seconds: float
    peak_bytes: int


def is_current(chapter: Path, root: Path = notebooks.ROOT) -> bool:
    """Whether the chapter's notebook was executed from the text and code as they are now."""
    path = chapter.with_suffix(".ipynb")
    if not path.exists():
        return False
    made_from = notebooks.read_executed(path).metadata.get("repro", {})
    text = notebooks.read_text(chapter)
    return made_from.get("digest") == notebooks.full_digest(text, made_from.get("files", ()), root)


def execute(chapter: Path, root: Path = notebooks.ROOT, threads: int | None = None) -> Execution:
    """Execute a chapter from its .md and write its .ipynb; raises ChapterFailed and leaves the old file alone."""
    start = time.monotonic()
    notebook = notebooks.read_text(chapter)
    report = _run_cells(notebook, chapter, root, threads)
    files = _files_of_chapter(report, root)
    notebook.metadata["repro"] = {
        "text": notebooks.text_digest(notebook),
        "files": files,
        "digest": notebooks.full_digest(notebook, files, root),
    }
    notebooks.write_executed(notebook, chapter.with_suffix(".ipynb"))
    return Execution(chapter, time.monotonic() - start, report["peak"])


def _run_cells(notebook: NotebookNode, chapter: Path, root: Path, threads: int | None) -> dict[str, Any]:
    """Run all cells in place, in the chapter's folder, and return the kernel's answer to PROBE."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    extra = [nbformat.v4.new_code_cell(WATCH.format(root=f"{root}{os.sep}")), nbformat.v4.new_code_cell(PROBE)]
    cells = [extra[0], *notebook.cells, extra[1]]  # the same cell objects: outputs land in `notebook`
    work = nbformat.v4.new_notebook(metadata=notebook.metadata, cells=cells)
    client = NotebookClient(
        work,
        timeout=CELL_TIMEOUT,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it talks over TCP, to this machine alone
        resources={"metadata": {"path": str(chapter.parent)}},
    )
    with client.setup_kernel(env=env):
        for index, cell in enumerate(work.cells):
            try:
                client.execute_cell(cell, index, store_history=cell not in extra)
            except CellExecutionError as error:
                raise ChapterFailed(f"{_place(work, index, chapter)}\n{error.ename}: {error.evalue}") from error
            except (CellTimeoutError, DeadKernelError) as error:
                raise ChapterFailed(f"{_place(work, index, chapter)}\n{type(error).__name__}: {error}") from error
    return json.loads("".join(output.text for output in extra[1].outputs if output.output_type == "stream"))


def _place(work: NotebookNode, index: int, chapter: Path) -> str:
    number = sum(cell.cell_type == "code" for cell in work.cells[1 : index + 1])
    source = "\n".join(f"    {line}" for line in work.cells[index].source.splitlines())
    return f"{chapter.name}, code cell {number} failed:\n{source}"


def _files_of_chapter(report: dict[str, Any], root: Path) -> list[str]:
    """The repository's files behind a chapter, relative to `root`, from what its kernel reported.

    Modules count by their source. Of the other files under repro/ and records/, those opened count, and all
    those in a folder that was listed: a record that appears later would have been read too.
    """
    found = {Path(name) for name in report["modules"]}
    for opened in map(Path, report["opened"]):
        found |= set(opened.iterdir()) if opened.is_dir() else {opened}
    data = (path for path in found if path.suffix not in (".py", ".pyc") and path.is_file())
    modules = (Path(name) for name in report["modules"] if name.endswith(".py"))
    inside = {p.relative_to(root).as_posix() for p in (*data, *modules) if p.is_relative_to(root)}
    return sorted(name for name in inside if name.startswith(("repro/", "records/")))


def main(arguments: list[str] | None = None) -> int:
    """Execute what is stale; print the time and memory of each chapter; return the exit status."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="execute every chapter, changed or not")
    parser.add_argument("chapters", nargs="*", type=Path, help="only these (default: all that changed)")
    options = parser.parse_args(arguments)
    chosen = [path.resolve().with_suffix(".md") for path in options.chapters] or notebooks.chapters()
    if missing := [path for path in chosen if not path.exists()]:
        parser.error(f"no such chapter: {', '.join(str(path) for path in missing)}")
    stale = [path for path in chosen if options.all or not is_current(path)]
    for path in chosen:
        if path not in stale:
            print(f"{path.name:28} unchanged", flush=True)
    return _execute_all(stale)


def _execute_all(stale: list[Path]) -> int:
    at_once = min(AT_ONCE, len(stale)) or 1
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 else None
    for path in stale:
        print(f"{path.name:28} waiting" if len(stale) > at_once else f"{path.name:28} running", flush=True)
    failures = 0
    with ThreadPoolExecutor(at_once) as pool:
        for future in as_completed([pool.submit(execute, path, threads=threads) for path in stale]):
            try:
                done = future.result()
            except ChapterFailed as failure:
                failures += 1
                print(f"{failure}\nIts notebook is as it was.", file=sys.stderr, flush=True)
            else:
                gigabytes = done.peak_bytes / 1e9
                print(f"{done.chapter.name:28} {done.seconds:6.1f} s  {gigabytes:5.2f} GB", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
