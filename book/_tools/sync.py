"""Bring each chapter's .md and .ipynb into step, keeping the outputs of unchanged cells.

    python -m book._tools.sync

The notebook remembers the text that both had when they last agreed, so it is known which of the two was edited
since; a file's time, which a fresh clone makes up, decides nothing. If both were edited, neither is touched.
The install cell of each chapter is written anew from the public address in ``_config.yml``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from book._tools import notebooks

FIRST_CODE_CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)


class Conflict(Exception):
    """Both halves of a chapter were edited since they last agreed."""


def set_install_cell(text: str, address: str) -> str:
    """Return a chapter's MyST text with its install cell written, or put first if it had none."""
    block = f"```{{code-cell}} ipython3\n:tags: [hide-input]\n\n{notebooks.install_cell(address)}\n```"
    first = FIRST_CODE_CELL.search(text)
    if first is None:
        return text
    if notebooks.INSTALL_MARK in first.group():
        return text[: first.start()] + block + text[first.end() :]
    return text[: first.start()] + block + "\n\n" + text[first.start() :]


def sync(chapter: Path, address: str) -> str:
    """Bring one chapter into step and say what was done; raises Conflict when both halves were edited."""
    path = chapter.with_suffix(".ipynb")
    if path.exists():
        _take_edits_of_notebook(chapter, path)
    before = chapter.read_text(encoding="utf-8")
    after = set_install_cell(before, address)
    if after != before:
        chapter.write_text(after, encoding="utf-8")
    text = notebooks.read_text(chapter)
    digest = notebooks.text_digest(text)
    if not path.exists():
        text.metadata["repro"] = {"text": digest}
        notebooks.write_executed(text, path)
        return "new, not executed yet: make run"
    executed = notebooks.read_executed(path)
    in_step = notebooks.text_digest(executed) == digest
    if in_step and executed.metadata.get("repro", {}).get("text") == digest:
        return "in step"
    text.metadata["repro"] = executed.metadata.get("repro", {}) | {"text": digest}
    notebooks.write_executed(notebooks.carry_outputs(executed, text), path)
    empty = sum(cell.execution_count is None for cell in notebooks.code_cells(text))
    return f"brought into step; {empty} cells to execute: make run" if empty else "brought into step"


def _take_edits_of_notebook(chapter: Path, path: Path) -> None:
    """Write the .md anew if the .ipynb was edited (in Jupyter) and the .md was not."""
    executed = notebooks.read_executed(path)
    agreed = executed.metadata.get("repro", {}).get("text")
    theirs = notebooks.text_digest(executed)
    ours = notebooks.text_digest(notebooks.read_text(chapter))
    if agreed is None or theirs in (agreed, ours):
        return
    if ours != agreed:
        raise Conflict(
            f"{chapter.name} and {path.name} were both edited. Keep one: delete {path.name} to keep the text, "
            f"or `jupytext --to md:myst {path.name}` to keep the notebook, then make sync"
        )
    notebooks.write_text(executed, chapter)


def main() -> int:
    """Bring all chapters into step; print one line for each; return the exit status."""
    conflicts = 0
    address = notebooks.public_address()
    for chapter in notebooks.chapters():
        try:
            print(f"{chapter.name:28} {sync(chapter, address)}")
        except Conflict as conflict:
            conflicts += 1
            print(conflict, file=sys.stderr)
    return 1 if conflicts else 0


if __name__ == "__main__":
    sys.exit(main())
