"""The table of checks, filled by `@check`."""

from collections.abc import Callable
from typing import Any, TypeVar

CHECKS: dict[str, Callable[..., Any]] = {}
F = TypeVar("F", bound=Callable[..., Any])


def check(function: F) -> F:
    """Enter a function under its own name; two of one name are an error."""
    if function.__name__ in CHECKS:
        raise ValueError(f"two checks are called {function.__name__!r}")
    CHECKS[function.__name__] = function
    return function
