"""How the effective receptive fields of plain stacks of convolutions look and grow."""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from repro.claims.checks.registry import check
from repro.receptive_field import EffectiveField, effective_receptive_field

SEED = 0
WIDTH = 8  # maps in each layer of a random stack
SEEDS = 3  # pairs of nets, with and without skips


class Pair(nn.Module):
    """Two layers, with or without a path around them."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(_layer(WIDTH), nn.ReLU(), _layer(WIDTH))
        self.skip, self.relu = skip, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        output: Tensor = self.relu(y + x if self.skip else y)
        return output


def _layer(inputs: int, kernel_size: int = 3, outputs: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, padding="same", bias=False)


def _with_he_start(net: nn.Module, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return net


@cache
def _equal(depth: int, kernel_size: int) -> EffectiveField:
    """The field of a stack of one map whose weights are all equal; the picture is as large as the theoretical field."""
    net = nn.Sequential(*(_layer(1, kernel_size, 1) for _ in range(depth))).requires_grad_(False)
    for layer in net:
        assert isinstance(layer, nn.Conv2d)
        layer.weight.fill_(kernel_size**-2)
    side = depth * (kernel_size - 1) + 1
    return effective_receptive_field(net, str(depth - 1), input_size=(1, side, side), draws=1)


@cache
def _random(depth: int) -> EffectiveField:
    """The same with random weights and ReLUs, 3×3."""
    layers = itertools.chain.from_iterable((_layer(WIDTH if i else 1), nn.ReLU()) for i in range(depth))
    net = _with_he_start(nn.Sequential(*layers), SEED)
    side = 2 * depth + 1
    return effective_receptive_field(net, str(2 * depth - 1), input_size=(1, side, side), seed=SEED)


@check
def spreads_like_steps(depths: Sequence[int], kernel_size: int) -> bool:
    """Whether layers of equal weights spread the gradient like independent uniform steps: variance n (k² - 1) / 12."""
    step = (kernel_size**2 - 1) / 12
    return all(
        math.isclose(sigma**2, depth * step, rel_tol=1e-4)
        for depth in depths
        for sigma in _equal(depth, kernel_size).sigma
    )


@check
def is_nearly_gaussian(depths: Sequence[int], above: float) -> bool:
    """Whether more than `above` of the field of random stacks of each depth lies under the Gaussian of its moments."""
    return all(_random(depth).overlap > above for depth in depths)


@check
def grows_by_the_root(depths: Sequence[int], within: float) -> bool:
    """Whether, from the first depth to the last, effective size grows with its root and its share always shrinks.

    The exponent may be `within` of a half, for equal weights and for random ones with ReLUs.
    """
    kinds = [[_equal(depth, 3) for depth in depths], [_random(depth) for depth in depths]]
    times = depths[-1] / depths[0]
    exponents = (math.log(fields[-1].size / fields[0].size, times) for fields in kinds)
    shrinks = (a.ratio > b.ratio for fields in kinds for a, b in itertools.pairwise(fields))
    return all(abs(exponent - 0.5) < within for exponent in exponents) and all(shrinks)


@check
def skips_narrow(pairs: int) -> bool:
    """Whether a path around every two layers makes the effective field smaller, before training, for several starts."""
    side = 2 * (2 * pairs + 1) + 1

    def size(skip: bool, seed: int) -> float:
        net = _with_he_start(nn.Sequential(_layer(1), nn.ReLU(), *(Pair(skip) for _ in range(pairs))), seed)
        return effective_receptive_field(net, f"{pairs + 1}.relu", input_size=(1, side, side), seed=seed).size

    return all(size(True, seed) < size(False, seed) for seed in range(SEEDS))
