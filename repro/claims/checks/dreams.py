"""Checks of images that are changed until a net answers, and of the statistics that natural ones have."""

from functools import cache

import torch
from torch import nn

from repro import weights
from repro.claims.checks.photographs import photographs
from repro.claims.checks.registry import check
from repro.visualization.dream import dream
from repro.visualization.natural import spectral_slope

STEPS = 8  # half of what the chapter takes


@cache
def _climbed(net: str, prior: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean scores of the dreamt class and of the strongest other one: climbing the score, and the probability."""
    trained = weights.load(net)
    classes, bounds = list(range(len(trained.classes))), trained.prepare.bounds
    found = []
    for model in (trained.model, nn.Sequential(trained.model, nn.LogSoftmax(1))):
        dreams = dream(model, classes, steps=STEPS, prior=prior, bounds=bounds, input_size=(3, 32, 32))
        with torch.no_grad():
            scores = trained.model(dreams.images)
        own = float(scores.diagonal().mean())
        found.append((own, float(scores.fill_diagonal_(-torch.inf).amax(1).mean())))
    return found[0], found[1]


@check
def score_takes_class_higher(net: str, prior: str, by: float) -> bool:
    """Whether climbing the score lifts the dreamt class's own score higher, by so much, than climbing probability."""
    of_score, of_probability = _climbed(net, prior)
    return of_score[0] > of_probability[0] + by


@check
def probability_holds_rivals_down(net: str, prior: str, by: float) -> bool:
    """Whether climbing the probability leaves the strongest other class lower, by so much, than climbing the score."""
    of_score, of_probability = _climbed(net, prior)
    return of_score[1] > of_probability[1] + by


@check
def slope_of_photographs() -> float:
    """How fast amplitudes fall with frequency in photographs, as a power of it: the mean of four squares of two."""
    x = photographs().permute(0, 3, 1, 2) / 255
    side = x.shape[2]
    return spectral_slope(torch.cat([x[..., :side], x[..., -side:]])).mean().item()
