"""Arithmetic from a file, against Python's own, and nothing but arithmetic."""

import math

import pytest

from repro.claims.expression import compute
from repro.errors import DataError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 * 3**2 / 7**2", 27 / 49),
        ("-2 + 7 // 2 * 3 % 5", -2 + 9 % 5),
        ("(224 - 11) / 4 + 1", 54.25),
        ("round(100 * (1 - 10 / 24))", 58),
        ("sqrt(2 / 27) < 0.3 < log(2)", True),
        ("max(comb(10, 3), 2**6)", 120),
        ("sum(0.1, 0.2, 0.3)", math.fsum([0.1, 0.2, 0.3])),
        ("1 != 1", False),
    ],
)
def test_values(text: str, value: object) -> None:
    """Catches operators applied from the right, and a chain of comparisons cut after the first."""
    found = compute(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "open",
        "().__class__",
        "2 ** 99999",
        "'a' * 3",
        "[1, 2]",
        "1 +",
        "1 / 0",
        "max(1, key=2)",
        "x",
    ],
)
def test_nothing_else_is_computed(text: str) -> None:
    """Catches `eval`, names, strings, and a power that fills the memory."""
    with pytest.raises(DataError, match="expression"):
        compute(text)
