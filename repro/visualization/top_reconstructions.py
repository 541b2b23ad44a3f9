"""Zeiler and Fergus's figure 2: the patches that excite a map most, and beside each what the deconvnet makes of it.

*Visualizing and understanding convolutional networks* (ECCV 2014), section 4. Chapter 17.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from repro.visualization import probe
from repro.visualization.deconvnet import as_patterns, deconvnet
from repro.visualization.features import TopPatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3  # patches in a line of a block
BETWEEN = 0.85  # light grey around the tiles: on white, a patch of white would have no border


@dataclass(frozen=True)
class TopReconstructions:
    """The patterns behind the patches `top`: of U maps and `count` images each, (U, count, C, H, W), whole images.

    They are in units of the standardised image times the activation.
    """

    top: TopPatches
    pixels: Tensor

    def patterns(self, unit: int = 0) -> list[Tensor]:
        """Those of one map as they can be shown, cut to the patches, strongest first: float (h, w, 3), zero is grey."""
        boxes = [self.top.box(unit, rank) for rank in range(self.pixels.shape[1])]
        shown = as_patterns(self.pixels[unit])
        return [one[b.top : b.bottom, b.left : b.right] for one, b in zip(shown, boxes, strict=True)]

    def figure(self) -> "Figure":
        """For each map a block of patterns, each on its own scale, and a block of their patches; two maps in a line."""
        from matplotlib import pyplot as plt

        units = len(self.pixels)
        lines = -(-units // 2)
        figure, axes = plt.subplots(lines, 4, figsize=(7, 2.0 * lines), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        blocks = axes.reshape(-1, 2)
        for unit, (left, right) in enumerate(blocks[:units]):
            left.imshow(_block(self.patterns(unit)).numpy())
            right.imshow(_block(self.top.patches(unit)).numpy())
            left.set_title(f"{self.top.layer}, map {int(self.top.units[unit])}", fontsize=9, loc="left")
        return figure


def top_reconstructions(model: nn.Module, top: TopPatches, memory: int = probe.MEMORY) -> TopReconstructions:
    """The deconvnet's patterns for patches that `top_patches` has found in the same model.

    Raises what `deconvnet` raises.
    """
    found = []
    for unit, numbers in zip(top.units.tolist(), top.images, strict=True):
        pictures = top.pictures[numbers]
        images = pictures if top.prepare is None else top.prepare(pictures)
        found.append(deconvnet(model, images, top.layer, unit, memory=memory).pixels)
    return TopReconstructions(top, torch.stack(found))


def _block(tiles: list[Tensor]) -> Tensor:
    """Tiles (h, w, 1 or 3) of 0…1 in lines of `ACROSS`, light grey where one is smaller than the others: (H, W, 3)."""
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    whole = torch.full((len(tiles), height, width, 3), BETWEEN)
    for place, tile in zip(whole, tiles, strict=True):
        place[: tile.shape[0], : tile.shape[1]] = tile
    return make_grid(whole.permute(0, 3, 1, 2), ACROSS, padding=max(1, width // 32), pad_value=BETWEEN).permute(1, 2, 0)
