"""Checks of the way back through a net, from a unit to the pixels: the deconvnet, the gradient and guided backprop."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import weights
from repro.claims.checks.photographs import squares
from repro.claims.checks.registry import check
from repro.visualization import probe
from repro.visualization.deconvnet import deconvnet
from repro.visualization.relu_rules import RULES
from repro.weights import Pretrained

SEED = 0
SIDE = 213  # a third of a photograph's width


def _small_net() -> nn.Sequential:
    """Two convolutions of 3×3 without bias, each with a ReLU and a pool of 2×2; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        convolutions = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 3, padding=1, bias=False)
    layers = [part for conv in convolutions for part in (conv, nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*layers).double()


def _image(side: int = 16) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def _strongest(maps: Tensor) -> tuple[int, int, int]:
    """Map, row and column of the largest value of (1, C, H, W)."""
    _, channel, row, column = (int(i) for i in torch.unravel_index(maps.argmax(), maps.shape))
    return channel, row, column


@torch.no_grad()
def _written_out(net: nn.Sequential, image: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The way back in single steps, from the strongest unit: unpool, rectify, filter; and which unit that is."""
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    x, places = image, []
    for conv in convolutions:
        x, switches = F.max_pool2d(F.relu(conv(x)), 2, return_indices=True)
        places.append(switches)
    unit = _strongest(x)
    signal = torch.zeros_like(x)
    signal[0, *unit] = x[0, *unit]
    for conv, switches in zip(reversed(convolutions), reversed(places), strict=True):
        unpooled = F.relu(F.max_unpool2d(signal, switches, [2, 2]))
        signal = F.conv_transpose2d(unpooled, conv.weight, padding=1)
    return signal, unit


@check
def way_back_in_three_steps() -> bool:
    """Whether unpooling, rectifying and transposed filters, layer by layer, are the whole of our deconvnet."""
    net, image = _small_net(), _image()
    expected, unit = _written_out(net, image)
    return bool(expected.any()) and torch.allclose(deconvnet(net, image, "5", unit).pixels, expected)


@check
def unpooling_restores_maxima(window: int) -> bool:
    """Whether the way back through a pool has each maximum in its place, and zeros elsewhere."""
    maps = _image(4 * window)[:, :1].float()
    back = deconvnet(nn.Sequential(nn.MaxPool2d(window)), maps, "0", 0, whole_map=True).pixels
    largest = F.max_pool2d(maps, window)
    spread = largest.repeat_interleave(window, 2).repeat_interleave(window, 3)
    return torch.allclose(back, torch.where(maps == spread, maps, 0))


@check
def deconvnet_is_gradient_but_for_relus() -> bool:
    """Whether deconvnet and gradient, times the unit's value, are the same without ReLUs and differ with them."""
    net, image = _small_net(), _image()
    without = nn.Sequential(*(layer for layer in net if not isinstance(layer, nn.ReLU)))
    return _is_gradient(without, image) and not _is_gradient(net, image)


def _is_gradient(net: nn.Sequential, image: Tensor) -> bool:
    x = image.clone().requires_grad_()
    maps = net(x)
    unit = _strongest(maps)
    (gradient,) = torch.autograd.grad(maps[0, *unit], x)
    pattern = deconvnet(net, image, str(len(net) - 1), unit).pixels
    return torch.allclose(pattern, gradient * maps[0, *unit].detach())


@check
def guided_passes_what_both_pass() -> bool:
    """Whether guided backpropagation lets pass a signal where gradient and deconvnet both do, and nothing else."""
    generator = torch.Generator().manual_seed(SEED)
    signal = torch.randn(1000, generator=generator)
    output = torch.randn(1000, generator=generator).clamp(min=0)
    passed = {name: rule(signal, output) for name, rule in RULES.items()}
    both = (passed["gradient"] != 0) & (passed["deconvnet"] != 0)
    return torch.equal(passed["guided"], torch.where(both, signal, 0))


@cache
def _net_and_squares(name: str) -> tuple[Pretrained, Tensor]:
    """A trained net, and twelve squares of photographs as it wants them."""
    net = weights.load(name)
    return net, net.prepare(squares(SIDE, net.prepare.size))


@cache
def _maps(name: str, layer: str) -> Tensor:
    net, images = _net_and_squares(name)
    with probe.untouched(net.model), torch.no_grad():
        return probe.outputs(net.model, images, [layer])[layer]


@check
def patterns_match_their_picture(net: str, layer: str, share: float) -> bool:
    """Whether more than a share of a map's patterns, in grey, go best with the picture that they come from.

    The map is the one with the largest value in any of twelve squares of photographs; by luck one in twelve would.
    """
    trained, images = _net_and_squares(net)
    favourite = int(_maps(net, layer).amax((0, 2, 3)).argmax())
    patterns = deconvnet(trained.model, images, layer, favourite).pixels.mean(1).flatten(1)
    return own_comes_first(patterns, images.mean(1).flatten(1)) > share


def own_comes_first(patterns: Tensor, images: Tensor) -> float:
    """The share of patterns (N, P) that correlate with their own image of (N, P) more than with any other."""
    likeness = torch.corrcoef(torch.cat([patterns, images]))[: len(patterns), len(patterns) :]
    return float((likeness.argmax(1) == torch.arange(len(patterns))).float().mean())


@check
def patterns_follow_the_picture(net: str, layer: str, gap: float) -> bool:
    """Whether patterns of other units in one picture are more alike, by a gap, than those of one unit in others.

    Of the middle of three squares of photographs, for the three maps that answer there in most of them; alike is the
    mean correlation.
    """
    trained, images = _net_and_squares(net)
    chosen = torch.arange(3) * (len(images) // 3)
    maps = _maps(net, layer)[chosen]
    middle = maps.shape[2] // 2
    units = (maps[:, :, middle, middle] > 0).sum(0).topk(3).indices.tolist()
    found = [deconvnet(trained.model, images[chosen], layer, (unit, middle, middle)).pixels for unit in units]
    of_units, of_pictures = likeness_of_pairs(torch.stack(found).flatten(2))
    return of_units > of_pictures + gap


def likeness_of_pairs(patterns: Tensor) -> tuple[float, float]:
    """Mean correlation of (units, pictures, pixels): of other units in one picture, of one unit in other pictures."""

    def mean(groups: Tensor) -> float:
        pairs = torch.ones(groups.shape[1], groups.shape[1]).triu(1) > 0
        return float(torch.stack([torch.corrcoef(group)[pairs] for group in groups]).nanmean())

    return mean(patterns.transpose(0, 1)), mean(patterns)


@check
def shift_moves_less_above(net: str, first: str, last: str, pixels: int) -> bool:
    """Whether a shift of the crop moves a net's last layer less than its first.

    A move is the distance that the shift makes, in units of the distance to another picture.
    """
    trained = weights.load(net)
    pictures = squares(SIDE, trained.prepare.size)
    crop, start = trained.prepare.crop, (trained.prepare.size - trained.prepare.crop) // 2
    here, there = (
        trained.prepare.standardize(pictures[:, start : start + crop, at : at + crop]) for at in (start, start + pixels)
    )
    with probe.untouched(trained.model), torch.no_grad():
        before, after = (probe.outputs(trained.model, images, [first, last]) for images in (here, there))
    return moved(before[last], after[last]) < moved(before[first], after[first])


def moved(before: Tensor, after: Tensor) -> float:
    """The mean distance of maps (N, C, H, W) before and after, over that to the maps of the next picture."""
    a, b = before.flatten(1), after.flatten(1)
    return float(((b - a).norm(dim=1) / (a.roll(1, 0) - a).norm(dim=1)).mean())
