"""The checks of the review's claims: each against an example worked by hand, or a case that has to fail."""

import math

import pytest
import torch

from repro.claims.checks import alexnetreview


def test_the_printed_normalisation_is_the_papers_and_not_the_codes() -> None:
    """Catches constants for which α and α/n cannot be told apart."""
    assert alexnetreview.lrn_as_printed("paper")
    assert not alexnetreview.lrn_as_printed("code")


def test_another_rectifier_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a range without negative inputs."""
    assert alexnetreview.relu_is_maximum()
    monkeypatch.setattr(alexnetreview.nn, "ReLU", lambda: torch.nn.LeakyReLU(0.1))
    assert not alexnetreview.relu_is_maximum()


def test_a_sum_in_place_of_the_mean_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lost 1/N; and by hand, two equal scores cost log 2."""
    assert alexnetreview.softmax_loss_as_printed()
    loss = torch.nn.functional.cross_entropy
    assert loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)).item() == pytest.approx(math.log(2))
    monkeypatch.setattr(alexnetreview.F, "cross_entropy", lambda f, y: loss(f, y, reduction="sum"))
    assert not alexnetreview.softmax_loss_as_printed()


def test_windows_overlap_in_alexnet_and_not_in_lenet() -> None:
    """Catches a window as large as its stride that passes, and a net without pools that does."""
    assert alexnetreview.pools_overlap("alexnet_2012")
    assert not alexnetreview.pools_overlap("lenet5_modern")
    assert not alexnetreview.pools_overlap("lenet5")  # subsampling, and no max-pooling


def test_pools_behind_a_normalisation() -> None:
    """Catches a normalisation that stands behind the pool, as in the flower net, and pools counted from 0."""
    assert alexnetreview.pools_behind_norm("alexnet_2012") == [1, 2]
    assert alexnetreview.pools_behind_norm("alexnet_flowers") == []
    assert alexnetreview.pools_behind_norm("vgg11_lrn") == [1]
