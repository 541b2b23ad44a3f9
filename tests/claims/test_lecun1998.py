"""Checks of the ledger for the paper of 1998, against examples worked by hand."""

import math

import pytest

from repro.claims.checks import find


def test_connections() -> None:
    """C1 by hand: 6·28·28 units, each with 25 pixels and a bias; C3: sixty kernels and sixteen biases at 100 places.
    Catches biases that are not counted, and maps of C3 that read all of S2."""
    assert find("connections")("lenet5", "c1") == 6 * 28 * 28 * (25 + 1)
    assert find("connections")("lenet5", "c3") == 100 * (60 * 25 + 16)
    assert find("connections")("lenet5", "output") == 84 * 10


def test_several() -> None:
    """Catches results in another order than the values, and an argument that does not arrive."""
    found = find("several")(of="parameters", over="part", values=["s4", "c1"], model="lenet5")
    assert found == [16 * 2, 6 * 26]


def test_places_of_fields() -> None:
    """By hand: S2's units are 14 at a stride of 2, C5's single one at 4. Catches the map's side taken for pixels."""
    assert find("side")("lenet5", "s4") == 5
    assert find("span_of_fields")("lenet5", "s2") == 28
    assert find("span_of_fields")("lenet5", "c5") == 4


def test_table_of_c3() -> None:
    """Catches a map counted for every kernel it has: the four answers are of sixteen maps and sixty kernels."""
    maps = [find("maps_of_c3_that_read")(n) for n in range(7)]
    assert sum(maps) == 16
    assert sum(n * count for n, count in enumerate(maps)) == 60


def test_squashing() -> None:
    """Catches a slope of 1, and one in single precision."""
    assert find("squashed")(3) == pytest.approx(1.7159 * math.tanh(2), abs=1e-12)


def test_losses() -> None:
    """By hand: with all penalties 0 equation 9 is log(e^−0.1 + 10), with the right ones 0 and the others far it is
    log(e^−0.1 + 1). Catches the sign turned round, and a tie called a preference."""
    assert find("loss_prefers")("lenet5_map") == "right drawings"
    assert find("loss_prefers")("lenet5_mse") == "neither"


def test_pictures_of_a_record() -> None:
    """The flower report's 3,670 photographs. Catches the two splits exchanged, and the count of another recipe."""
    assert find("pictures_read")("flowers-report") == [3_306, 364]
