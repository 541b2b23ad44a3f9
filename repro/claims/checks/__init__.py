"""The functions that compute what claims speak of, by name; a module for each subject, `@check` above each function.

A check takes the arguments that its claim gives, and returns the right value: a number, several, text, whether a
comparison holds, or a quantity's `records.spread` over seeds. It must not know what the source says.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from repro.claims.checks.registry import CHECKS
from repro.errors import UnknownName, nearest


@cache
def find(name: str) -> Callable[..., Any]:
    """The check of that name; raises UnknownName with the nearest."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    if name not in CHECKS:
        raise UnknownName(f"check {name!r}: {nearest(name, CHECKS)}")
    return CHECKS[name]
