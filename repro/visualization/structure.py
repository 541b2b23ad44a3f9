"""Numbers that test what pictures of filters and maps are said to show: smooth or noise, edges or blobs, colour.

Each is scale-free and has a value that noise takes, so that a net's filters can be held against weights that have
learnt nothing. Chapter 16 uses them.
"""

from dataclasses import dataclass, fields

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from repro.visualization.probe import ProbeError

TEXTURE_SIZE = 5  # pixels: the window in which contrast counts as texture
GREY_WEIGHTS = 1 / 3  # each channel alike: the axis that `colour` measures from


@dataclass(frozen=True)
class FilterStructure:
    """One value for each of O filters, float64 (O,), NaN for a filter of zeros. `noise` says what chance gives.

    roughness: mean of (w − w′)² over all pairs of weights next to each other, down and across in the same plane,
        divided by twice the mean of w². 0 is a plane of one value, 2 a chequerboard; independent weights around 0 give
        1 in expectation.
    orientation: coherence √((Jxx − Jyy)² + 4 Jxy²) / (Jxx + Jyy) of the structure tensor J, the sum of ∇w ∇wᵀ over all
        2×2 cells and planes (Bigün & Granlund 1987): 1 for stripes and straight edges, 0 for what has no direction.
        Noise gives more than 0, the more the smaller the kernel.
    colour: share of the energy Σ w² off the grey axis, on which all planes are equal; (I − 1) / I for noise.
    blob: share of the energy in each plane's mean, less what the means have in common: a patch of one colour;
        (I − 1) / (I k²) for noise.
    """

    roughness: Tensor
    orientation: Tensor
    colour: Tensor
    blob: Tensor

    def means(self) -> dict[str, float]:
        """Each value's mean over the filters that are not all zeros."""
        return {f.name: getattr(self, f.name).nanmean().item() for f in fields(self)}


def filter_structure(weight: Tensor) -> FilterStructure:
    """The structure of filters `(O, I, k, k')`, or of the change that training made to them.

    Raises `ProbeError` for a weight of another shape, and for kernels without neighbours both down and across.
    """
    if weight.ndim != 4 or min(weight.shape[2:]) < 2:
        raise ProbeError(f"filters: (O, I, k, k) with k of 2 or more is needed, found {tuple(weight.shape)}")
    w = weight.detach().double().cpu()
    energy = w.square().sum((1, 2, 3))
    down, across = w.diff(dim=2).square(), w.diff(dim=3).square()
    steps = torch.cat([down.flatten(1), across.flatten(1)], dim=1).mean(1)
    mean = w.mean((2, 3))  # (O, I)
    off_grey = w - w.mean(1, keepdim=True)
    return FilterStructure(
        roughness=steps / (2 * w.square().mean((1, 2, 3))),
        orientation=torch.where(energy > 0, _coherence(w), torch.nan),
        colour=off_grey.square().sum((1, 2, 3)) / energy,
        blob=(mean - mean.mean(1, keepdim=True)).square().sum(1) * w[0, 0].numel() / energy,
    )


def _coherence(w: Tensor) -> Tensor:
    """Of the gradients in the 2×2 cells of planes (O, I, k, k'), for each of O; 0 where nothing changes."""
    gx = (w[:, :, :-1].diff(dim=3) + w[:, :, 1:].diff(dim=3)) / 2
    gy = (w[:, :, :, :-1].diff(dim=2) + w[:, :, :, 1:].diff(dim=2)) / 2
    xx, yy, xy = ((a * b).sum((1, 2, 3)) for a, b in ((gx, gx), (gy, gy), (gx, gy)))
    total = xx + yy
    return torch.where(total > 0, ((xx - yy).square() + 4 * xy.square()).sqrt() / total.where(total > 0, 1), 0)


def hue(weight: Tensor) -> Tensor:
    """The direction of each RGB filter's colour, (O,), in degrees: 0 red, 120 green, 240 blue.

    A filter for red against green points both ways at once. So the axis on which its colours lie is found first, from
    the sum of their squares as complex numbers, and then the end of it where they are stronger.
    """
    w = weight.detach().double().cpu()
    if w.ndim != 4 or w.shape[1] != 3:
        raise ProbeError(f"hue: filters over red, green and blue are needed, found {tuple(w.shape)}")
    red, green, blue = w.flatten(2).unbind(1)  # (O, k·k)
    chroma = torch.complex(red - (green + blue) / 2, (green - blue) * 3**0.5 / 2)
    axis = chroma.square().sum(1).angle() / 2
    along = (chroma * torch.polar(torch.ones_like(axis), -axis)[:, None]).real
    turned = axis + torch.pi * ((along * along.abs()).sum(1) < 0)
    return turned.rad2deg() % 360


def map_roughness(maps: Tensor) -> Tensor:
    """Geary's C of maps `(N, C, H, W)`: a value for each of C, (C,), over all N pictures; NaN for a constant map.

    Mean of (y − y′)² over places next to each other, divided by twice the variance within a map (unbiased): near 0 for
    maps that change slowly, 1 in expectation for the same values at shuffled places (Geary 1954).
    """
    y = _as_maps(maps)
    down, across = y.diff(dim=2).square(), y.diff(dim=3).square()
    pairs = down[0, 0].numel() + across[0, 0].numel()
    steps = (down.sum((2, 3)) + across.sum((2, 3))).mean(0) / pairs
    return steps / (2 * y.var(dim=(2, 3)).mean(0))


def separation(maps: Tensor, inside: Tensor) -> Tensor:
    """How well each map alone tells the places `inside` from the others: the area under its ROC curve, (C,).

    maps `(N, C, H, W)`, inside bool `(N, H, W)`. 0.5 is chance, 1 means that every place inside answers more strongly
    than any outside, 0 the reverse. Raises `ProbeError` where no place, or every place, is inside.
    """
    y = _as_maps(maps)
    if inside.shape != (len(y), *y.shape[2:]) or inside.dtype != torch.bool:
        raise ProbeError(f"inside: bool {(len(y), *y.shape[2:])} is needed, found {inside.dtype} {tuple(inside.shape)}")
    chosen = inside.flatten()
    n, others = int(chosen.sum()), int((~chosen).sum())
    if not n or not others:
        raise ProbeError("inside: places inside and places outside are needed")
    ranks = torch.from_numpy(rankdata(y.permute(1, 0, 2, 3).flatten(1).numpy(), axis=1))  # ties share their mean rank
    return (ranks[:, chosen.cpu()].sum(1) - n * (n + 1) / 2) / (n * others)


def agreement(maps: Tensor, cue: Tensor) -> Tensor:
    """Pearson's correlation of each map with a property of the picture over all pictures and places, (C,).

    maps `(N, C, H, W)`, cue `(N, H', W')`, averaged down to the maps' places. NaN for a constant map.
    """
    y = _as_maps(maps)
    height, width = y.shape[2:]
    wanted = F.adaptive_avg_pool2d(cue.detach().double().cpu()[:, None], (height, width)).flatten()
    y = y.permute(1, 0, 2, 3).flatten(1)
    y, wanted = y - y.mean(1, keepdim=True), wanted - wanted.mean()
    return y @ wanted / (y.norm(dim=1) * wanted.norm())


def cues(pictures: Tensor) -> dict[str, Tensor]:
    """What the eye finds in pictures `(N, H, W, 3)` of 0…1, at each place, `(N, H, W)` each.

    edges: length of the gradient of the grey picture, by central differences (the border repeats).
    texture: standard deviation of the grey picture in 5×5 pixels.
    colour: distance of a pixel's colour from grey.
    """
    rgb = pictures.detach().double().cpu().permute(0, 3, 1, 2)
    grey = (rgb * GREY_WEIGHTS).sum(1, keepdim=True)
    wide = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    gx, gy = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2], wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]
    reach = TEXTURE_SIZE // 2
    windows = F.pad(grey, (reach,) * 4, mode="replicate").unfold(2, TEXTURE_SIZE, 1).unfold(3, TEXTURE_SIZE, 1)
    return {
        "edges": torch.hypot(gx, gy)[:, 0] / 2,
        "texture": windows.flatten(4).std(4, correction=0)[:, 0],
        "colour": (rgb - grey).square().sum(1).sqrt(),
    }


def _as_maps(maps: Tensor) -> Tensor:
    """Maps as float64 on the CPU; raises `ProbeError` for anything but (N, C, H, W) with H and W of 2 or more."""
    if maps.ndim != 4 or min(maps.shape[2:]) < 2:
        raise ProbeError(f"maps: (N, C, H, W) of 2×2 places or more is needed, found {tuple(maps.shape)}")
    return maps.detach().double().cpu()
