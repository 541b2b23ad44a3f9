"""Everything that can go wrong on purpose, with the exit code that the command line gives it.

A message is one line: what it is about, what is wrong (expected and found), what to do next.
"""

import difflib
from collections.abc import Iterable


class ReproError(Exception):
    """Base of the errors this package raises by itself; `exit_code` is what the `repro` command returns."""

    exit_code = 1
    told = False
    """Whether it has been said, or another process of the same run says it."""


class RecipeError(ReproError):
    """A recipe, or an option given beside it, that says something impossible."""

    exit_code = 2


class UnknownName(ReproError, KeyError):
    """A model, data set, recipe or option that does not exist."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0])


class DataError(ReproError):
    """Data that is missing, damaged, or not what its label says."""

    exit_code = 3


class CheckpointError(ReproError):
    """A checkpoint or record that is damaged or belongs to another run."""

    exit_code = 4


class NumericsError(ReproError):
    """NaN or infinity where a finite number was due."""

    exit_code = 5


class ResourceError(ReproError):
    """The machine lacks something: disk space, a writable folder, a device."""

    exit_code = 6


class Preempted(ReproError):
    """The run was asked to stop, saved its state, and can be resumed."""

    exit_code = 75


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """The end of an error message: the known names closest to `name`, or all of them when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known) or 'none'}"
