"""From score maps and crops to one answer for a picture: the VGG paper's evaluation, section 3.2, and heat maps.

All functions take pictures as the net does (standardised, (N, C, H, W)) and answer with probabilities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.views import offsets
from repro.dense.convert import FullyConvolutional
from repro.dense.grid import DenseGrid

Average = Literal["scores", "probabilities"]
GRID = 5  # crops down and across, section 3.2


def dense_probabilities(
    net: FullyConvolutional, images: Tensor, flip: bool = True, average: Average = "scores"
) -> Tensor:
    """Probabilities (N, num_classes), float32, from score maps of pictures of one size.

    As section 3.2 has it, the map of class scores is averaged over its places, and then the softmax over a picture and
    its reflection. Whether "scores" are before or after the softmax it leaves open: here they are the logits, or with
    `average="probabilities"` the softmax at each place.
    """
    views = [images, images.flip(3)] if flip else [images]
    means = []
    for view in views:
        logits = net(view).float()
        if average == "scores":
            means.append(logits.mean((2, 3)).softmax(1))
        else:
            means.append(logits.softmax(1).mean((2, 3)))
    return torch.stack(means).mean(0)


def crop_probabilities(
    model: nn.Module, images: Tensor, crop: tuple[int, int], grid: int = GRID, flip: bool = True
) -> Tensor:
    """Probabilities (N, num_classes), float32: the mean softmax over a regular grid of crops and their reflections.

    50 crops of a picture with a grid of 5 as in section 3.2, and 150 of it at three scales (`over_scales`). Raises
    `DataError` where a crop does not fit.
    """
    height, width = images.shape[2:]
    bottom, right = offsets(height, crop[0]) - 1, offsets(width, crop[1]) - 1
    total: Tensor | None = None
    for top in torch.linspace(0, bottom, grid).round().int().tolist():
        for left in torch.linspace(0, right, grid).round().int().tolist():
            cut = images[:, :, top : top + crop[0], left : left + crop[1]]
            for view in (cut, cut.flip(3)) if flip else (cut,):
                found = model(view.contiguous(memory_format=torch.channels_last)).float().softmax(1)
                total = found if total is None else total + found
    assert total is not None
    return total / (grid * grid * (1 + flip))


def over_scales(probabilities: Callable[[Tensor], Tensor], images: Tensor, sides: Sequence[int]) -> Tensor:
    """The mean of `probabilities` over the pictures at each of these lengths of their shorter side."""
    return torch.stack([probabilities(resize(images, side)) for side in sides]).mean(0)


def resize(images: Tensor, side: int, antialias: bool = True) -> Tensor:
    """Pictures (N, C, H, W) with their shorter side brought to `side`, bilinear, the other in proportion.

    Without `antialias` a pixel is read off between four neighbours however small the picture gets, and finer detail
    comes through as noise; where the picture grows the two are the same.
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    if shorter == side:
        return images
    size = [round(n * side / shorter) for n in (height, width)]
    return F.interpolate(images, size, mode="bilinear", antialias=antialias)


@dataclass(frozen=True)
class HeatMap:
    """How probable a class is in each crop of a picture, and where the crops lie."""

    values: Tensor
    """(h, w), float32, 0…1."""
    grid: DenseGrid

    def at_pixels(self) -> Tensor:
        """The map at the picture's pixels (H, W): interpolated between the crops' centres, and constant beyond them."""
        places = []
        for centers, side, stride in zip(self.grid.centers, self.grid.picture, self.grid.stride, strict=True):
            last = len(centers) - 1
            place = ((torch.arange(side) - centers[0]) / stride).clamp(0, last)
            places.append((2 * place / max(last, 1) - 1).float())  # −1…1 from the first output to the last
        rows, columns = torch.meshgrid(*places, indexing="ij")
        where = torch.stack([columns, rows], 2)[None]
        return F.grid_sample(self.values[None, None], where, align_corners=True, padding_mode="border")[0, 0]


@torch.no_grad()
def heat_map(net: FullyConvolutional, image: Tensor, label: int) -> HeatMap:
    """The probability of class number `label` in each crop of a picture (C, H, W), standardised as the net wants it."""
    probabilities = net(image[None]).float().softmax(1)
    return HeatMap(probabilities[0, label], net.grid(*image.shape[1:]))
