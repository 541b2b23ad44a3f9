"""What a coarse map of answers can tell of an outline."""

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from repro.claims.checks.registry import check


def overlap_of_coarse(diameter: int, stride: int) -> float:
    """Intersection over union of a disc and what the right answers at every `stride`-th pixel, enlarged, tell of it."""
    pixel = torch.arange(256.0)
    disc = ((pixel[:, None] - 120) ** 2 + (pixel - 131) ** 2 < (diameter / 2) ** 2).float()
    places = slice(stride // 2, None, stride)
    back = F.interpolate(disc[None, None, places, places], disc.shape, mode="bilinear")[0, 0] > 0.5
    return ((back & (disc > 0)).sum() / (back | (disc > 0)).sum()).item()


@check
def coarse_answers_limit(diameter: int, strides: Sequence[int], most: float) -> bool:
    """Whether a disc's overlap grows with each finer stride in turn, and is below `most` at the first."""
    overlaps = [overlap_of_coarse(diameter, stride) for stride in strides]
    return overlaps[0] < most and all(a < b for a, b in itertools.pairwise(overlaps))
