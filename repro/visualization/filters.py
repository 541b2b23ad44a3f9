"""A convolution's weights as pictures: colour tiles for the first layer, single planes for those behind it.

Krizhevsky, Sutskever & Hinton 2012, figure 3, drew the first layer's this way. Chapter 16 teaches what they show;
`repro.visualization.structure` has the numbers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from repro.errors import UnknownName, nearest
from repro.visualization.probe import ProbeError, find_layer
from repro.visualization.structure import FilterStructure, filter_structure, hue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["energy", "hue", "index"]
Scale = Literal["filter", "layer"]

GREY = 0.25  # a filter with a smaller share of colour stands with the grey ones; noise has 2/3
WIDTH = 7.0  # inches, 700 pixels on the page
ACROSS = 16  # tiles in a line, all columns of the net together


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution.

    weight: float32 (O, I, k, k'), as in the net. numbers: int64 (columns, O / columns), each column's filters as they
    are drawn.
    """

    layer: str
    weight: Tensor
    numbers: Tensor

    @property
    def structure(self) -> FilterStructure:
        """The numbers behind the picture, filter by filter as in `weight`."""
        return filter_structure(self.weight)

    def tiles(self, scale: Scale = "filter") -> Tensor:
        """The weights as brightness 0…1: (O, k, k', 3), (O, k, k') for one plane, (O, I, k, k') for others than 3.

        A weight of 0 is 0.5, and the largest magnitude of its own filter, or of the layer, is 0 or 1. By filter, weak
        ones are as plain to see as strong ones; by layer they look as weak as they are. A filter of zeros is grey.
        """
        if scale not in get_args(Scale):
            raise UnknownName(f"scale={scale!r}: {nearest(str(scale), get_args(Scale))}")
        w = self.weight
        size = w.abs().amax((1, 2, 3), keepdim=True) if scale == "filter" else w.abs().amax()
        shown = 0.5 + 0.5 * w / torch.where(size > 0, size, 1)
        if w.shape[1] == 3:
            return shown.permute(0, 2, 3, 1)
        return shown[:, 0] if w.shape[1] == 1 else shown

    def figure(self, scale: Scale = "filter", rows: int = 12, planes: int = ACROSS) -> "Figure":
        """All filters of a first layer; of a deeper one the first `planes` planes of each of the first `rows` filters.

        The columns of the net stand side by side, each in its order.
        """
        from matplotlib import pyplot as plt

        tiles = self.tiles(scale)
        deeper = self.weight.shape[1] not in (1, 3)
        across = max(1, (planes if deeper else ACROSS) // len(self.numbers))
        sheets = [_sheet(tiles[n[:rows], :across].flatten(0, 1) if deeper else tiles[n], across) for n in self.numbers]
        height, width = sheets[0].shape[0], sum(sheet.shape[1] for sheet in sheets)
        figure, axes = plt.subplots(1, len(sheets), figsize=(WIDTH, WIDTH * height / width + 0.3), squeeze=False)
        for number, (ax, sheet) in enumerate(zip(axes[0], sheets, strict=True)):
            ax.imshow(sheet.numpy(), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            ax.set_axis_off()
            if len(sheets) > 1:
                first = number * self.numbers.shape[1]
                ax.set_title(f"filters {first} to {first + self.numbers.shape[1] - 1}", fontsize=10)
        return figure


def filters(model: nn.Module, layer: str, order: Order = "energy", columns: int = 1) -> Filters:
    """The filters of the convolution called `layer`, the strongest first, by hue, or as they are numbered.

    energy: by the sum of squared weights. hue: filters with less than a quarter of their energy in colour first, by
    energy, then the others around the colour circle; of filters over three planes only. index: as they are.
    columns: into how many equal parts the filters fall, side by side; 2 for the nets of two GPUs.

    The net is only read. Raises `UnknownName` for a layer or an order that there is not, `ProbeError` for a layer that
    is no convolution in two dimensions, for weights that are not finite, and where the filters don't divide.
    """
    found = find_layer(model, layer)
    if not isinstance(found, nn.Conv2d):
        raise ProbeError(f"layer {layer}: {type(found).__name__} has no filters to draw; choose a Conv2d")
    weight = found.weight.detach().float().cpu().clone()
    if not weight.isfinite().all():
        raise ProbeError(f"layer {layer}: its weights hold NaN or infinity")
    if columns < 1 or len(weight) % columns:
        raise ProbeError(f"layer {layer}: {len(weight)} filters don't fall into {columns} equal columns")
    if order not in get_args(Order):
        raise UnknownName(f"order={order!r}: {nearest(str(order), get_args(Order))}")
    key = _key(weight, order)
    parts = torch.arange(len(weight)).view(columns, -1)
    return Filters(layer, weight, torch.stack([part[key[part].argsort(stable=True)] for part in parts]))


def _key(weight: Tensor, order: Order) -> Tensor:
    """What the filters are sorted by, (O,), ascending."""
    weakness = -weight.double().square().sum((1, 2, 3))
    if order == "index":
        return torch.zeros_like(weakness)
    if order == "energy":
        return weakness
    angle = hue(weight)
    off_grey = weight.double() - weight.double().mean(1, keepdim=True)
    grey = off_grey.square().sum((1, 2, 3)) < GREY * -weakness
    return torch.where(grey, weakness - 1, angle)  # below every angle


def _sheet(tiles: Tensor, across: int) -> Tensor:
    """Tiles (n, h, w) or (n, h, w, 3) of 0…1 in lines of `across`, a white pixel between: (H, W) or (H, W, 3)."""
    n, h, w = tiles.shape[:3]
    lines = -(-n // across)
    sheet = torch.ones(lines * (h + 1) - 1, across * (w + 1) - 1, *tiles.shape[3:])
    for number, tile in enumerate(tiles):
        top, left = number // across * (h + 1), number % across * (w + 1)
        sheet[top : top + h, left : left + w] = tile
    return sheet
