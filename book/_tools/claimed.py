"""Gates on the ledger in the book: each chapter shows its claims, and no source's number stands without a claim.

A mark `{claim}`vgg-epochs`` ties a number in the text to the ledger, and so to a verdict. It is due in each line (the
text has one sentence a line) that speaks of a source and has a number, or that quotes one; and in each paragraph with
a number that is the ledger's own beyond chance: of four significant digits, or of three with a decimal point.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from book._tools import notebooks
from repro.claims.ledger import claims

SOURCES = (
    r"papers?|reports?|stud(?:y|ies)|lectures?|slides?|notes|reviews?|tutorials?|authors?|printed|prints|published"
)
SPEAKS_OF_A_SOURCE = re.compile(rf"\{{cite|\b(?:{SOURCES})\b", re.IGNORECASE)
QUOTED_NUMBER = re.compile(r"[\"“][^\"”]*\d[^\"”]*[\"”]")
NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?![\w])")
MARK = re.compile(r"\{claim\}`([^`]+)`")

# What has digits and states nothing: roles, code, addresses, years, kernels' sizes, runs' numbers, versions, places.
NO_STATEMENT = re.compile(
    r"\{\w[\w:-]*\}`[^`]*`|`[^`]*`|\]\([^)]*\)|\b(?:19\d|20[0-3])\d\b|\b\d+(?:×\d+)+|#\d+"
    r"|\b(?:Keras|TensorFlow|PyTorch|CUDA) \d[\d.]*"
    r"|\b(?:section|table|figure|chapter|equation|page|slide|layer|column)s? \d[\d.]*(?:(?:,| and| to) \d[\d.]*)*",
    re.IGNORECASE,
)
FENCED = re.compile(
    r"^(`{3,}|:{3,})\{(?:code-cell|math|figure|image|bibliography)\}.*?^\1\s*$", re.MULTILINE | re.DOTALL
)
PLAIN_CODE = re.compile(r"^(`{3,})[a-z]+\n.*?^\1\s*$", re.MULTILINE | re.DOTALL)
NO_PROSE = re.compile(r"^(?:\||:\w|\(|#|[-`:]{3})")  # tables, options, anchors, headings, fences


def chapters_show_their_claims(root: Path) -> list[str]:
    """Each chapter opens with the claims that it takes up and closes with their verdicts, both out of the ledger."""
    faults = []
    for chapter in notebooks.chapters(root):
        calls = {call for cell in notebooks.code_cells(notebooks.read_text(chapter)) for call in _calls(cell.source)}
        made = {arguments[0] for name, arguments in calls if name == "Chapter" and arguments}
        if made != {chapter.stem}:
            faults.append(f"{chapter.name}: no cell names its claims by Chapter({chapter.stem!r}, …)")
        shown = {name for name, _ in calls}
        faults += [f"{chapter.name}: no cell shows its {name}" for name in ("claims", "verdicts") if name not in shown]
    return faults


def numbers_have_claims(root: Path) -> list[str]:
    """Each number in the text that a source states has a mark, and each mark names a claim of the ledger."""
    faults = []
    known = {claim.id for claim in claims()}
    for path in [*notebooks.chapters(root), *sorted((root / "book").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        faults += [f"{path.name}: {fault}" for fault in unclaimed(text)]
        faults += [f"{path.name}: no claim is called {name}" for name in MARK.findall(text) if name not in known]
    return faults


def unclaimed(text: str) -> Iterator[str]:
    """The lines of a page's prose whose numbers want a claim, each with the reason."""
    for paragraph in _paragraphs(text):
        marked = any(MARK.search(line) for line in paragraph)
        for line in paragraph:
            bare = NO_STATEMENT.sub(" ", line)
            numbers = NUMBER.findall(bare)
            if (SPEAKS_OF_A_SOURCE.search(line) and numbers) or QUOTED_NUMBER.search(bare):
                if not MARK.search(line):
                    yield f"speaks of a source's numbers without a claim: {line}"
            elif not marked and (said := [n for n in numbers if n in _said()]):
                yield f"{said[0]} stands in the ledger, but no claim here: {line}"


def _paragraphs(text: str) -> Iterator[list[str]]:
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = PLAIN_CODE.sub("", FENCED.sub("", text))
    for block in re.split(r"\n\s*\n", text):
        if lines := [line for line in block.splitlines() if not NO_PROSE.match(line)]:
            yield lines


@cache
def _said() -> frozenset[str]:
    """The numbers that sources state, as text, where they are too particular to come about by chance."""
    found: set[str] = set()
    for claim in claims():
        found |= {n for n in NUMBER.findall(NO_STATEMENT.sub(" ", claim.statement)) if _particular(n)}
        values: Iterable[object] = claim.value if isinstance(claim.value, list) else [claim.value]
        for value in values:
            if isinstance(value, int | float) and not isinstance(value, bool):
                found |= {n for n in (f"{value:,}", str(value)) if NUMBER.fullmatch(n) and _particular(n)}
    return frozenset(found)


def _particular(number: str) -> bool:
    """Four significant digits, or three with a decimal point; powers of two are everybody's."""
    plain = number.replace(",", "")
    if "." not in plain:
        return len(plain.rstrip("0")) >= 4 and int(plain).bit_count() > 1
    return len(plain.replace(".", "").lstrip("0")) >= 3


def _calls(source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name and the constant arguments of each call in a cell."""
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return  # an indented magic, which calls nothing of ours
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            yield name, tuple(str(a.value) for a in node.args if isinstance(a, ast.Constant))
