"""Progress for people: a bar in a terminal, plain lines in a log, silence in a notebook.

Nothing is shown for work that ends within two seconds. Everything goes to stderr, so that stdout stays
clean for results; a notebook kernel gets nothing, because what a chapter shows is compared to the letter.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from repro.terminal import PlainConsole, printable

T = TypeVar("T")

QUIET_S = 2.0  # work shorter than this shows nothing
LINE_EVERY_S = 10.0  # how often a log gets a line


def in_notebook() -> bool:
    """True inside a Jupyter kernel."""
    return "ipykernel" in sys.modules


def track(items: Iterable[T], total: int, what: str, weight: int = 1) -> Iterator[T]:
    """Yield `items`, reporting how many of `total` (counted `weight` at a time) are done."""
    if in_notebook():
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, total, what, weight)
    else:
        yield from _lines(items, total, what, weight)


def _bar(items: Iterable[T], total: int, what: str, weight: int) -> Iterator[T]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    bar = Progress(
        *columns,
        console=PlainConsole(stderr=True),
        transient=True,
        redirect_stdout=False,  # what is printed meanwhile keeps to its guarded way
        redirect_stderr=False,
    )
    with bar as progress:
        task = progress.add_task(printable(what), total=total, visible=False)
        for item in items:
            yield item
            progress.update(task, advance=weight, visible=time.perf_counter() - start > QUIET_S)


def _lines(items: Iterable[T], total: int, what: str, weight: int) -> Iterator[T]:
    start, next_line = time.perf_counter(), QUIET_S
    for done, item in enumerate(items, start=1):
        yield item
        elapsed = time.perf_counter() - start
        if elapsed > next_line:
            print(f"{what}: {min(done * weight, total):,} of {total:,} after {elapsed:.0f} s", file=sys.stderr)
            next_line = elapsed + LINE_EVERY_S
