"""How a command ends when something is wrong: one line on stderr, and the exit code of the error."""

import contextlib
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, TextIO

from repro.errors import RecipeError, ReproError
from repro.refusals import refusals_named


def told(command: Callable[[], Any]) -> None:
    """Run a command and exit as it does; an error of ours, or what the machine refuses, becomes a line and its code.

    With `--debug` among the arguments, wherever it stands, the error is raised.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)  # the name of a file need not be UTF-8
    try:
        with refusals_named():
            try:
                command()
            finally:
                sys.stdout.flush()  # a full disk is told here or not at all
    except ReproError as e:
        if debug:
            raise
        tell(e)
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritten(stream)
        sys.exit(e.exit_code)


def tell(error: ReproError) -> None:
    """Say on stderr what went wrong, unless this process or another one of the same run has said it."""
    if not error.told:
        with contextlib.suppress(OSError):
            print(f"repro: {_rank()}{_in_lines(error)}", file=sys.stderr)
    error.told = True


def _in_lines(error: ReproError) -> str:
    """A message on one line, whatever is in a path or in another library's words, or one for each fault of a recipe."""
    return str(error) if isinstance(error, RecipeError) else " ".join(line.strip() for line in str(error).split("\n"))


def _drop_unwritten(stream: TextIO) -> None:
    """Give up what a full disk did not take: at its exit Python would try again, and end with a code of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _rank() -> str:
    """Which of the processes that torchrun started this is, for its message; nothing where it is alone."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
