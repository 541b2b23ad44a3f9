"""Checks of the ledger for the code of 2012, against examples worked by hand."""

from repro.claims.checks import find


def test_rounding() -> None:
    """Catches halves that go to the even digit, as Python's `round` has them, and halves lost to binary fractions."""
    assert find("rounded")([0.25, 1.15, 2.675, 40.664], 1) == [0.3, 1.2, 2.7, 40.7]
    assert find("rounded")([2.675], 2) == [2.68]


def test_differences() -> None:
    """19.36 − 18.21 is 1.15 on paper and less in binary. Catches a difference in binary, and one turned round."""
    assert find("rounded_differences")([19.36, 3.0], [18.21, 4.0], 1) == [1.2, -1.0]


def test_stages() -> None:
    """From the file of layers. Catches a stage read off the wrong layer, and one out of order."""
    assert find("stage")("alexnet_2012_code", "features.conv1") == ["LRN", "max-pooling", "ReLU"]
    assert find("stage")("alexnet_2012_code", "features.conv2") == ["ReLU", "LRN", "within-map LRN", "max-pooling"]


def test_momenta() -> None:
    """Catches two optimizers that are one, and a drop that never comes."""
    assert find("same_steps_after_drop")(1.0)
    assert not find("same_steps_after_drop")(0.1)
