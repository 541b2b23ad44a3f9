"""Checks of maps that say which pixels a score depends on: gradients and what is made of them."""

from collections.abc import Sequence
from functools import cache

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from repro import data, weights
from repro.claims.checks.photographs import squares
from repro.claims.checks.registry import check
from repro.visualization.attribution import Attribution, Method, attribute
from repro.visualization.occlusion import window_boxes
from repro.visualization.sanity import sanity_check
from repro.visualization.structure import map_roughness

SEED = 0
SIDE = 106  # of a square of a photograph, before it is shrunk to a small net's 32 pixels
PICTURES = 4
METHODS = ("saliency", "guided", "gradcam")


def _gap(model: nn.Module, path: Attribution, baseline: Tensor) -> float:
    """By how much of the change of the score the sum of a map misses it, at most."""
    with torch.no_grad():
        rise = path.score - model(baseline)[0, path.target]
    return float(((path.maps.sum((1, 2, 3)) - rise).abs() / rise.abs()).max())


@check
def path_adds_up(steps: int, within: float) -> bool:
    """Whether integrated gradients of a small random net with ReLUs add up to the change of its score."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 3)
        net, image = nn.Sequential(*layers).double(), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    return _gap(net, attribute(net, image, 0, "integrated", steps=steps), torch.zeros_like(image)) < within


@check
def steps_suffice(net: str, steps: int, within: float) -> bool:
    """Whether so many steps bring the sum of integrated gradients of four digits to within a share of the rise."""
    trained = weights.load(net)
    images = trained.prepare(data.load("digits", "test").images[:4])
    path = attribute(trained.model, images, method="integrated", steps=steps)
    return _gap(trained.model, path, torch.zeros_like(images[:1])) < within


@cache
def _pictures(net: str) -> Tensor:
    """A few squares of photographs as a small net wants them."""
    found = squares(SIDE, 32)
    return weights.load(net).prepare(found[:: len(found) // PICTURES][:PICTURES])


@check
def noise_calms(net: str, samples: int) -> bool:
    """Whether SmoothGrad's maps are less rough than the gradient's, by Geary's C of neighbouring pixels."""
    model, images = weights.load(net).model, _pictures(net)
    plain = attribute(model, images, method="saliency")
    smooth = attribute(model, images, method="smoothgrad", samples=samples)
    rough = [map_roughness(one.map[:, None]).mean().item() for one in (plain, smooth)]
    return rough[1] < rough[0]


@cache
def _likeness(net: str, layer: str) -> dict[str, Tensor]:
    """Rank correlation of maps with those before, (stages, N), while layers become random from the top."""
    found = sanity_check(weights.load(net).model, _pictures(net), METHODS, layer=layer, seed=SEED)
    return dict(zip(METHODS, found.rank, strict=True))


@check
def maps_survive(net: str, method: Method, stages: int, above: float, layer: str) -> bool:
    """Whether maps stay like themselves, in the mean, while a net's topmost layers are made random one by one."""
    return bool(_likeness(net, layer)[method][:stages].mean() > above)


@check
def maps_change(net: str, methods: Sequence[Method], stages: int, below: float, layer: str) -> bool:
    """Whether maps of each method become unlike themselves while a net's topmost layers are made random."""
    return all(bool(_likeness(net, layer)[method][:stages].mean() < below) for method in methods)


@cache
def _image(net: str, number: int) -> Tensor:
    """A square of a photograph (1, 3, H, W), as a net of large pictures wants it."""
    trained = weights.load(net)
    return trained.prepare(squares(2 * SIDE, trained.prepare.size)[number : number + 1])


@torch.no_grad()
def _falls(model: nn.Module, image: Tensor, target: int, boxes: Sequence[Sequence[int]], share: float) -> Tensor:
    """How far a score falls when a share of each window's values is taken away, for each of the windows."""
    copies = image.repeat(len(boxes), 1, 1, 1)
    for copy, (top, left, bottom, right) in zip(copies, boxes, strict=True):
        copy[:, top:bottom, left:right] *= 1 - share
    return model(image)[0, target] - model(copies)[:, target]


def _agreement(net: str, number: int, window: int, share: float, magnitude: bool) -> float:
    """Rank correlation over windows: of the falls of the score with what the gradient says of them."""
    model, image = weights.load(net).model, _image(net, number)
    one = attribute(model, image, method="saliency")
    target = int(one.target)
    pixels = one.map[0] if magnitude else (one.maps * one.images).sum((0, 1))
    boxes = window_boxes((image.shape[2], image.shape[3]), (window, window), (window, window)).flatten(0, 1).tolist()
    said = [float(pixels[top:bottom, left:right].sum()) for top, left, bottom, right in boxes]
    return float(spearmanr(said, _falls(model, image, target, boxes, share)).statistic)


@check
def gradient_predicts_small_changes(net: str, window: int, share: float, above: float) -> bool:
    """Whether gradient times input orders windows as the score falls when a small share of their values is taken."""
    return _agreement(net, 0, window, share, magnitude=False) > above


@check
def gradient_orders_as_hiding(net: str, window: int, pictures: Sequence[int], above: float) -> bool:
    """Whether the gradient's magnitude, summed over windows, orders them as the score falls when they are hidden."""
    found = [_agreement(net, number, window, 1.0, magnitude=True) for number in pictures]
    return sum(found) / len(found) > above
