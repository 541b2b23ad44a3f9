"""OverFeat's accurate net, run densely, and its offsets in one dimension."""

import torch
from torch import nn
from torch.nn import functional as F

from repro import dense
from repro.claims.checks.registry import check

# Its table 3: maps, side of the kernel, stride, padding of each convolution, and the pool behind it (0: none).
LAYERS = (
    (96, 7, 2, 0, 3),
    (256, 7, 1, 0, 2),
    (512, 3, 1, 1, 0),
    (512, 3, 1, 1, 0),
    (1024, 3, 1, 1, 0),
    (1024, 3, 1, 1, 3),
)


def _maps() -> list[nn.Module]:
    found: list[nn.Module] = []
    inputs = 3
    for outputs, kernel_size, stride, padding, pool in LAYERS:
        found.append(nn.Conv2d(inputs, outputs, kernel_size, stride, padding, device="meta"))
        if pool:
            found.append(nn.MaxPool2d(pool))
        inputs = outputs
    return found


@check
def overfeat_map_side(crop: int) -> int:
    """The side of the maps that the first linear layer reads of a crop of so many pixels."""
    return nn.Sequential(*_maps())(torch.empty(1, 3, crop, crop, device="meta")).shape[-1]


@check
def overfeat_steps(crop: int) -> list[int]:
    """Pixels from one answer to the next, without and with the offsets of the last pool."""
    linear = nn.Linear(LAYERS[-1][0] * overfeat_map_side(crop) ** 2, 1, device="meta")
    net = dense.convolutionize(nn.Sequential(*_maps(), nn.Flatten(), linear), crop)
    return [sliding.grid(2 * crop, 2 * crop).stride[0] for sliding in (net, dense.overfeat(net))]


@check
def counts_by_offset(units: int, pool: int, reads: int) -> list[int]:
    """Pooled units, answers of a classifier that reads so many of them, and answers of all offsets; in one dimension.

    The first two are those of each offset; offsets that differ in them are an error.
    """
    row, classifier = torch.zeros(1, 1, units), torch.zeros(1, 1, reads)
    pooled = [F.max_pool1d(row[..., offset:], pool) for offset in range(pool)]
    answers = [F.conv1d(part, classifier).shape[-1] for part in pooled]
    (of_each,) = {(part.shape[-1], count) for part, count in zip(pooled, answers, strict=True)}
    return [*of_each, sum(answers)]
