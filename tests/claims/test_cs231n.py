"""The check behind the claims of the course notes, against a sum worked by hand."""

from repro.claims.checks import cs231n


def test_listed_outputs_by_hand() -> None:
    """Catches ReLUs counted beside their inputs, pools or the picture left out.

    Today's LeNet: a picture of 28×28, 6 maps of 24×24, their pools, 16 maps of 8×8, theirs, and three linear layers.
    """
    by_hand = 28 * 28 + 6 * 24**2 + 6 * 12**2 + 16 * 8**2 + 16 * 4**2 + 120 + 84 + 10
    assert cs231n.listed_outputs("lenet5_modern") == by_hand
