"""The checks behind the claims of the paper that introduced dropout, against products over all nets written out."""

from itertools import product

import pytest
import torch

from repro.claims.checks import hinton2012 as checks


def test_all_nets_against_a_loop() -> None:
    """Two hidden units have four nets. Catches masks left out or met twice, and a half in the thinned nets."""
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, dtype=torch.float64, generator=made)
    out = torch.randn(4, 2, dtype=torch.float64, generator=made)
    nets, halved = checks.all_nets(2)
    by_hand = [(out @ (hidden * torch.tensor(m))).softmax(0).log() for m in product((0.0, 1.0), repeat=2)]
    assert torch.allclose(nets, torch.stack(by_hand))
    assert torch.allclose(halved.exp(), (out @ (hidden / 2)).softmax(0))
    assert checks.half_is_geometric_mean(2)
    assert checks.half_is_surer_than_nets(2)


@pytest.mark.parametrize(("halved", "same", "surer"), [((0.5, 0.5), True, True), ((0.8, 0.2), False, False)])
def test_geometric_mean_by_hand(monkeypatch, halved, same, surer) -> None:
    """Of (0.8, 0.2) and (0.2, 0.8) it is (0.4, 0.4), which sums to 0.8, and so (½, ½).

    Catches the sum left as it is, and one class taken for all: 0.2 is less than 0.4.
    """
    nets = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).log()
    monkeypatch.setattr(checks, "all_nets", lambda _: (nets, torch.tensor(halved, dtype=torch.float64).log()))
    assert checks.half_is_geometric_mean(2) is same
    assert checks.half_is_surer_than_nets(2) is surer


def test_arithmetic_mean_is_another(monkeypatch) -> None:
    """Of (0.9, 0.1) and (0.5, 0.5) the arithmetic mean is (0.7, 0.3), the geometric one (0.75, 0.25).

    Catches one taken for the other: √(0.9 · 0.5) is three times √(0.1 · 0.5).
    """
    nets = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
    for halved, same in (([0.7, 0.3], False), ([0.75, 0.25], True)):
        halved = torch.tensor(halved, dtype=torch.float64).log()
        monkeypatch.setattr(checks, "all_nets", lambda _, halved=halved: (nets, halved))
        assert checks.half_is_geometric_mean(2) is same
