"""The check of the ledger for coarse maps, against cases without any doubt."""

import pytest

from repro.claims.checks import find
from repro.claims.checks.long2015 import overlap_of_coarse


def test_every_pixel_tells_all() -> None:
    """Catches a disc that is shifted by the way down and up."""
    assert overlap_of_coarse(100, 1) == pytest.approx(1)


def test_order_counts() -> None:
    """Catches strides that are sorted first, and a bound that is not looked at."""
    assert find("coarse_answers_limit")(100, [32, 16, 8], 0.9)
    assert not find("coarse_answers_limit")(100, [8, 16, 32], 0.99)
    assert not find("coarse_answers_limit")(100, [32, 16, 8], 0.1)
