"""A check of the first filters of a net in two columns."""

import torch

from repro import weights
from repro.claims.checks.registry import check
from repro.visualization.filters import filters

DIVISIONS = 2000


@check
def columns_differ_in_colour(net: str, layer: str, chance: float) -> bool:
    """Whether the two columns' filters differ in their share of colour more than random halves of them do.

    `chance` is the share of random divisions that may differ more.
    """
    colour = filters(weights.load(net).model, layer).structure.colour
    generator = torch.Generator().manual_seed(0)
    halves = torch.stack([colour[torch.randperm(len(colour), generator=generator)] for _ in range(DIVISIONS)])
    return bool((_gap(halves) >= _gap(colour[None])).double().mean() < chance)


def _gap(colour: torch.Tensor) -> torch.Tensor:
    """How far the means of the two halves of (N, filters) are apart: (N,)."""
    return colour.unflatten(1, (2, -1)).mean(2).diff(dim=1).abs().flatten()
