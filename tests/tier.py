"""How much the torture does: the fast tier in CI, the full one by `make torture`, which sets REPRO_TORTURE=full."""

import os
from collections.abc import Callable
from typing import TypeVar

FULL = os.environ.get("REPRO_TORTURE") == "full"
Amount = TypeVar("Amount")
Finding = Callable[[str, str], None]


def amount(fast: Amount, full: Amount) -> Amount:
    """How much of it this tier does."""
    return full if FULL else fast
