"""What the AlexNet paper says of its units: ReLU, local response normalisation, dropout. Chapters 4, 5, 6 and 9."""

from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from repro import records
from repro.claims.checks.nets import _given, _net, _table
from repro.claims.checks.registry import check
from repro.models.layers import Dropout2012
from repro.models.normalization import LocalResponseNorm, LRNConstants

FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh}


# ReLU.


@check
def slopes(function: str, at: list[float]) -> list[float]:
    """The derivative of `relu` or `tanh` at some places, by automatic differentiation."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return list(torch.autograd.grad(FUNCTIONS[function](x).sum(), x)[0].tolist())


@check
def slope_ignores_scale(function: str, scales: list[float]) -> bool:
    """Whether the mean derivative over random sums stays the same when the sums are multiplied by these factors."""
    sums = torch.randn(4096, generator=torch.Generator().manual_seed(0)).tolist()
    means = [sum(slopes(function, [s * x for x in sums])) / len(sums) for s in scales]
    return len(set(means)) == 1


@check
def learns_where_positive() -> bool:
    """Whether just those of a hundred ReLUs, biased ever further down, get a gradient that have a positive input."""
    made = torch.Generator().manual_seed(1)
    inputs, weight = torch.randn(64, 20, generator=made), torch.randn(100, 20, generator=made).requires_grad_()
    sums = inputs @ weight.T - torch.linspace(0, 25, 100)  # (64, 100)
    (gradient,) = torch.autograd.grad(torch.relu(sums).sum(), weight)
    return torch.equal((sums > 0).any(0), gradient.abs().sum(1) > 0)


@check
def epochs_ratio(slow: str, fast: str) -> records.Spread | None:
    """How many times as many epochs one recipe's runs took as another's, over the seeds that both were run with."""
    taken = [{run.seed: run.last.epoch for run in records.load(name)} for name in (slow, fast)]
    ratios = [taken[0][seed] / taken[1][seed] for seed in sorted(taken[0].keys() & taken[1].keys())]
    return records.spread(ratios) if ratios else None


@check
def at_their_best_rates(recipes: list[str]) -> bool:
    """Whether each recipe has the rate of least training error in its sweep, with worse ones on either side."""
    from repro.training import load_recipe

    for name in recipes:
        start = f"{name}+epochs=4+optimizer.learning_rate="
        swept = {
            float(run.recipe.removeprefix(start)): run.last.train_error
            for run in records.load_all()
            if run.recipe.startswith(start)
        }
        best = min(swept, key=lambda rate: swept[rate])
        if not min(swept) < best < max(swept) or best != load_recipe(name).optimizer.learning_rate:
            return False
    return True


# Local response normalisation.


@cache
def _loud(places: int, maps: int = 24, level: float = 100.0) -> Tensor:
    """Activities (places, maps): rectified, some silent, one place in fifty louder than 255."""
    made = torch.Generator().manual_seed(0)
    return level * torch.randn(places, maps, dtype=torch.float64, generator=made).relu()


def _norm_of(model: str) -> nn.Module:
    """The first response normalisation across maps that a net has."""
    kinds = (LocalResponseNorm, nn.LocalResponseNorm)
    return next(m for m in _net(model, ()).modules() if isinstance(m, kinds))


@check
def lrn_constants(model: str) -> list[float]:
    """n, k, α and β of a net's first response normalisation, as the paper's formula prints them."""
    layer: Any = _norm_of(model)
    if getattr(layer, "convention", "code") == "paper":
        found = LRNConstants.from_paper(layer.size, layer.k, layer.alpha, layer.beta)
    else:
        found = LRNConstants.from_pytorch(layer.size, layer.alpha, layer.beta, layer.k)
    return [found.as_paper()[letter] for letter in ("n", "k", "alpha", "beta")]


@check
def maps_at_border(model: str) -> int:
    """How many of a net's first maps would be normalised otherwise if the sums crossed the columns' border."""
    layer: Any = _norm_of(model)
    maps = _loud(50, 96)
    whole = LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k, convention=layer.convention)
    return int((layer(maps) != whole(maps)).any(0).sum())


@check
def lrn_apart(model: str, other: str, level: float) -> float:
    """How far the first normalisations of two nets are apart in per cent, on activities of about this level.

    A factor that is the same for all units, as k to the power of −β, counts.
    """
    maps = _loud(50, 96, level)
    a, b = (_norm_of(name)(maps) for name in (model, other))
    return 100 * ((a - b).norm() / b.norm()).item()


@check
def only_inhibits() -> bool:
    """Whether no map's normalised activity rises when another map gets louder."""
    place = _loud(1)[0] + 1.0
    jacobian = torch.autograd.functional.jacobian(lambda a: LocalResponseNorm()(a[None])[0], place)
    beside = jacobian[~torch.eye(len(place), dtype=torch.bool)]
    return bool((beside <= 0).all() and (beside < 0).any())


@check
def only_the_loud_lose(quiet: float, loud: float, active: int) -> bool:
    """Whether LRN leaves units among so many of a quiet level 99 % of theirs, and among loud ones less than half.

    The factor k^−β, which all units share, is left out.
    """
    layer = LocalResponseNorm()
    maps = torch.tensor([[quiet], [loud]], dtype=torch.float64).expand(2, active)
    left = (layer(maps) / maps)[:, active // 2] * layer.k**layer.beta
    return bool(left[0] > 0.99 and left[1] < 0.5)


@check
def loudest_gains() -> bool:
    """Whether normalisation raises the mean share that the loudest map has of a place's activity."""
    before = _loud(1000)
    after = LocalResponseNorm()(before)
    shares = [(a.amax(1) / a.sum(1)).mean().item() for a in (before, after)]
    return shares[1] > shares[0]


def growth_under_lrn(factor: float, level: float) -> float:
    """By how much the normalised output grows when activities of about this level are multiplied by `factor`."""
    maps, layer = _loud(200, level=level), LocalResponseNorm()
    return (layer(factor * maps).norm() / layer(maps).norm()).item()


@check
def lrn_lessens(factor: float, level: float, than: float) -> bool:
    """Whether the normalised output grows less than so many times when activities are multiplied by `factor`."""
    return growth_under_lrn(factor, level) < than


@check
def points_taken_off(without: str, having: str) -> records.Spread | None:
    """The points of test error by which one recipe's runs are below another's, over the seeds that both have."""
    errors = [{run.seed: run.last.test_error for run in records.load(name)} for name in (without, having)]
    points = [100 * (errors[0][seed] - errors[1][seed]) for seed in sorted(errors[0].keys() & errors[1].keys())]
    return records.spread(points) if points else None


# Dropout.


@check
def dropped_units(model: str, **options: Any) -> list[int]:
    """How many units each dropout layer of a net masks."""
    return [prod(row.output_shape) for row in _table(model, _given(options)) if "Dropout" in row.kind]


@check
def dropped_gradient() -> float:
    """The largest gradient of a weight into or out of a dropped unit."""
    made = torch.Generator().manual_seed(0)
    into, out_of = (torch.randn(shape, generator=made, requires_grad=True) for shape in ((64, 5), (3, 64)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        hidden = Dropout2012(0.5)(into @ torch.rand(5, generator=made))
    gradients = torch.autograd.grad((out_of @ hidden).square().sum(), (into, out_of))
    off = hidden == 0
    assert 0 < off.sum() < len(off)
    return max(gradients[0][off].abs().max().item(), gradients[1][:, off].abs().max().item())


@check
def different_masks(batch: int, units: int) -> int:
    """How many masks of so many units differ within a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return len(Dropout2012(0.5)(torch.ones(batch, units)).unique(dim=0))


def half_against_all_nets(units: int) -> float:
    """How far a net with halved outputs is from the geometric mean of all its thinned nets: the largest probability.

    Two hidden layers of so many units, random weights, four classes; every pair of masks is counted.
    """
    made = torch.Generator().manual_seed(0)
    x = torch.randn(units, dtype=torch.float64, generator=made)
    second, out = (torch.randn(rows, units, dtype=torch.float64, generator=made) for rows in (units, 4))
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * units)
    second, out = second / units**0.5, out / units**0.5
    inner = ((masks * x.abs()) @ second.T).relu()  # (nets, units)
    votes = (inner[:, None] * masks).flatten(0, 1) @ out.T
    halved = (second @ (0.5 * x.abs())).relu() * 0.5 @ out.T
    return (votes.log_softmax(1).mean(0).softmax(0) - halved.softmax(0)).abs().max().item()


@check
def half_is_near_all_nets(units: int, within: float) -> bool:
    """Whether, with two hidden layers, halved outputs come so near to the geometric mean, in every probability."""
    return half_against_all_nets(units) < within
