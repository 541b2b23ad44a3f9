"""What the paper that introduced dropout says of averaging: with one hidden layer all thinned nets can be asked."""

import torch
from torch import Tensor

from repro.claims.checks.registry import check

CLOSE = 1e-12  # of probabilities in double precision


def all_nets(units: int) -> tuple[Tensor, Tensor]:
    """Log probabilities of four classes: those of every thinned net (2^units, 4), and those with halved outputs (4).

    One hidden layer of so many units, random activities and weights.
    """
    made = torch.Generator().manual_seed(0)
    hidden, out = (torch.randn(*shape, dtype=torch.float64, generator=made) for shape in ((units,), (4, units)))
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * units).view(-1, units)
    return ((masks * hidden) @ out.T).log_softmax(1), (0.5 * hidden @ out.T).log_softmax(0)


@check
def half_is_geometric_mean(units: int) -> bool:
    """Whether halved outputs give the geometric mean of all thinned nets' probabilities, brought to a sum of 1."""
    nets, halved = all_nets(units)
    mean = nets.mean(0).exp()
    return torch.allclose(mean / mean.sum(), halved.exp(), rtol=0, atol=CLOSE)


@check
def half_is_surer_than_nets(units: int) -> bool:
    """Whether halved outputs give every class a log probability above the thinned nets' mean log probability."""
    nets, halved = all_nets(units)
    return bool((halved > nets.mean(0)).all())
