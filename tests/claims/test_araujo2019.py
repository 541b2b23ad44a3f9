"""Checks of the ledger for fields with stride and padding, against sums worked by hand."""

from repro.claims.checks import find


def test_field_facts_by_hand() -> None:
    """VGG-16: two layers of 3×3 and a pool of 2×2 see 1 + 2 + 2 + 1 pixels, every second one, from two outside on.
    Catches a padding that is counted in units, and a start with the wrong sign."""
    assert find("field_facts")("vgg16", "features.4") == [6, 2, 2]


def test_library_field_facts_by_hand() -> None:
    """ResNet's first layer, 7×7 at stride 2 with padding 3, and a pool of 3×3 at stride 2 with padding 1: 7 + 2·2
    pixels, every fourth, from 3 + 1·2 outside on. Catches pictures of another size, which would raise."""
    assert find("library_field_facts")("resnet18", "maxpool", 224) == [11, 4, 5]
