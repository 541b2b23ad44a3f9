"""The check behind what the long paper on dropout says of its two scales."""

import torch

from repro.claims.checks import find
from repro.claims.checks import srivastava2014 as checks


def test_only_matching_scales_train_alike() -> None:
    """Without a step the starts alone decide; with steps the rate has to match too.

    Catches nets that were never trained, and a rate or a start that is not used.
    """
    alike = find("inverted_trains_alike")
    assert alike(0.5, 0.25, 20)
    assert alike(0.5, 1.0, 0)
    assert not alike(1.0, 0.25, 0)
    assert not alike(0.5, 0.5, 20)
    assert not alike(0.5, 1.0, 20)


def test_the_weights_move() -> None:
    """Catches a rate of zero, with which any two nets of one start train alike."""
    with torch.random.fork_rng(devices=[]):
        before, after = (checks._trained(torch.nn.Dropout, 1.0, 1.0, steps) for steps in (0, 20))
    assert (after - before).abs().mean() > 0.01
