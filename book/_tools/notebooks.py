"""A chapter is a pair: NN_name.md (MyST, what people edit) and NN_name.ipynb (the same, executed).

This module reads and writes both so that equal input gives equal bytes: cell ids follow from the cells, no times
and no versions are kept, and outputs are stored in one normal form. What a notebook was made from lies in its
metadata under ``repro``: ``text``, the digest of the text both halves shared when they were last in step, and,
after an execution, ``files`` and ``digest``, the code that it ran and the digest of text and code together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
INSTALL_MARK = 'find_spec("repro")'
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}  # without the version, which would differ by reader
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def chapters(root: Path = ROOT) -> list[Path]:
    """The .md of every chapter, in the book's order."""
    return sorted((root / "chapters").glob("[0-9][0-9]_*.md"))


def public_address(root: Path = ROOT) -> str:
    """The repository's public address from ``_config.yml``; empty as long as it has none."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return str((config.get("repository") or {}).get("url") or "").rstrip("/")


def install_cell(address: str) -> str:
    """The source of a chapter's first code cell: install the package where it is missing."""
    what = f'"convnets-reproduced @ git+{address}"' if address else ".."
    return (
        "# Colab and Binder start without the package: install it there.\n"
        "import importlib.util\n"
        f"if importlib.util.{INSTALL_MARK} is None:\n"
        f"    %pip install -q {what}"
    )


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def read_text(path: Path) -> NotebookNode:
    """Read a chapter's .md as a notebook without outputs."""
    return _normalise(jupytext.read(path, fmt="md:myst"))


def read_executed(path: Path) -> NotebookNode:
    """Read a chapter's .ipynb."""
    return nbformat.read(path, as_version=4)


def write_executed(notebook: NotebookNode, path: Path) -> None:
    """Write an .ipynb whose bytes follow from its content alone; the old file stays until the new one is whole."""
    partial = path.with_suffix(".ipynb.partial")
    nbformat.write(_normalise(notebook), partial)
    partial.replace(path)


def write_text(notebook: NotebookNode, path: Path) -> None:
    """Write a chapter's .md from a notebook."""
    text = jupytext.writes(notebook, fmt="md:myst")
    path.write_text(re.sub(r"\n *jupytext_version: .*", "", text), encoding="utf-8")


def cell_key(cell: NotebookNode) -> str:
    """What makes two cells the same cell: kind, source and metadata, not outputs."""
    meta = {k: v for k, v in cell.metadata.items() if k not in ("execution", "trusted", "collapsed", "scrolled")}
    return json.dumps([cell.cell_type, cell.source.strip(), meta], sort_keys=True)


def text_digest(notebook: NotebookNode) -> str:
    """A digest of everything an author wrote in a chapter."""
    return _digest(cell_key(cell) for cell in notebook.cells)


def full_digest(notebook: NotebookNode, files: Iterable[str], root: Path = ROOT) -> str:
    """A digest of a chapter's text and of the files (relative to `root`) that it ran or read."""
    contents = ((root / name).read_bytes() if (root / name).is_file() else b"" for name in files)
    return _digest([text_digest(notebook), *files, *(hashlib.sha256(c).hexdigest() for c in contents)])


def carry_outputs(old: NotebookNode, new: NotebookNode) -> NotebookNode:
    """Give each code cell of `new` the outputs of the same cell in `old`; a changed cell gets none.

    The install cell prints nothing, so it keeps its count whatever its text: setting the address needs no new run.
    """
    known: dict[str, list[NotebookNode]] = {}
    for cell in code_cells(old):
        known.setdefault(_output_key(cell), []).append(cell)
    for cell in code_cells(new):
        if same := known.get(_output_key(cell)):
            match = same.pop(0)
            cell.outputs, cell.execution_count = match.outputs, match.execution_count
    return new


def _output_key(cell: NotebookNode) -> str:
    return "install" if INSTALL_MARK in cell.source else cell.source.strip()


def _normalise(notebook: NotebookNode) -> NotebookNode:
    repro = notebook.metadata.get("repro")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    if repro:
        notebook.metadata["repro"] = repro
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        name = _digest([cell.cell_type, cell.source])[:12]
        seen[name] += 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
    return notebook


def _merge_streams(outputs: list[Any]) -> list[Any]:
    """Join neighbouring pieces of the same stream: how a kernel cuts its text is chance."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _digest(parts: Iterable[str]) -> str:
    joined = hashlib.sha256()
    for part in parts:
        joined.update(f"{len(part)}:{part}".encode())
    return joined.hexdigest()
