"""Checks of the ledger for effective receptive fields, against what follows by hand."""

import torch

from repro.claims.checks import find, luo2016


def test_equal_weights_by_hand() -> None:
    """One layer of 3 steps by -1, 0 or 1 of equal weight: a variance of 2/3; one of 5 steps: 2. Catches a variance
    taken over both axes, and kernels of the wrong size."""
    assert find("spreads_like_steps")([1, 2], 3)
    assert find("spreads_like_steps")([1], 5)


def test_a_gaussian_has_no_corners() -> None:
    """Catches an overlap that any map passes: none lies wholly under its Gaussian."""
    assert find("is_nearly_gaussian")([5], 0.5)
    assert not find("is_nearly_gaussian")([5], 1.0)


def test_growth_is_not_exact() -> None:
    """Sizes count whole pixels, so no exponent is one half exactly. Catches a tolerance that nothing fails."""
    assert find("grows_by_the_root")([5, 20], 0.1)
    assert not find("grows_by_the_root")([5, 20], 0.0)


def test_skips() -> None:
    """Where the layers give nothing, the path gives the input and its absence nothing. Catches pairs that are alike."""
    x = torch.ones(1, luo2016.WIDTH, 3, 3)
    for skip in (True, False):
        pair = luo2016.Pair(skip).requires_grad_(False)
        for weight in pair.parameters():
            weight.fill_(0)
        assert torch.equal(pair(x), x * skip)
    assert find("skips_narrow")(4)
