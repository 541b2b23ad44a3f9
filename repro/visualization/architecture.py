"""A net as a picture, drawn from the model: its maps as boxes, its columns side by side, and who reads whom.

After figure 2 of Krizhevsky, Sutskever & Hinton 2012.  Chapter 3 draws AlexNet with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Polygon
from torch import nn

from repro.models.compare import Stage, stages
from repro.models.describe import sliding
from repro.visualization.figures import BLUE, ORANGE, VERMILLION

# In pixels at 100 dpi: a page of the book is about 700 wide.
WIDTH, MARGIN = 700, 4
ROW, LINE, CHARACTER, LEGEND = 148, 14, 6, 24
LARGEST_MAP, SMALLEST_MAP, LARGEST_DEPTH, LARGEST_BAR, BAR_WIDTH, ARROW = 96, 40, 22, 96, 12, 16
GREY, INK = "#8a939c", "#24292f"
SMALL: dict[str, Any] = {"fontsize": 8, "color": INK}
DASHED = (0, (4, 2))
COLUMN_COLOURS = (("#d3e7f4", BLUE), ("#fbe8c3", ORANGE))  # face and edge, by column
WHOLE = ("#eceff2", GREY)


@dataclass(frozen=True)
class Block:
    """What one layer with weights gives out, in each of its columns; the first block is the image."""

    name: str
    shape: tuple[int, ...]  # of one column: (C, H, W), or (units,)
    columns: int
    groups: int  # of the layer; with one, every column reads all the columns before it
    above: str  # how the layer reads
    below: str  # what follows it

    def reads(self, column: int, source: int, sources: int) -> bool:
        """Whether a column has connections from column `source` of the `sources` before it."""
        return column * self.groups // self.columns == source * self.groups // sources


def blocks(model: nn.Module, input_size: tuple[int, int, int]) -> list[Block]:
    """The boxes of the picture, in as many columns as the convolutions have groups at most.

    The image and the last layer stand in one piece. Hidden fully connected layers are split like the maps, as the two
    GPUs of 2012 held them; in the model each of them is one layer.
    """
    found = stages(model, input_size)
    columns = max(_groups(stage) for stage in found.values())
    first, *_, last = found
    return [_block(name, stage, 1 if name in (first, last) else columns) for name, stage in found.items()]


def _groups(stage: Stage) -> int:
    return getattr(stage.head.layer, "groups", 1) if stage.head else 1


def _block(name: str, stage: Stage, columns: int) -> Block:
    if stage.head is None:
        return Block(name, stage.output_shape, columns, 1, "image", "")
    own_name = stage.head.name.rpartition(".")[2]
    above = [name if own_name.isdecimal() else own_name]
    channels, *extent = stage.head.output_shape
    if extent:
        window = sliding(stage.head.layer, 0)
        above += [f"{window.kernel_size}×{window.kernel_size}"] + [f"stride {window.stride}"] * (window.stride > 1)
    below = [follower.name for follower in stage.followers]
    if list(stage.output_shape[1:]) != extent:
        below.append("→ " + _times(stage.output_shape[1:]))
    return Block(name, (channels // columns, *extent), columns, _groups(stage), "\n".join(above), "\n".join(below))


def draw_columns(model: nn.Module, input_size: tuple[int, int, int]) -> Figure:
    """Draw a chain of layers for one image `(C, H, W)`: 700 pixels wide, a row for each column.

    A box stands for the maps that a convolution gives out, a bar for units without a place in the image; under it is
    the shape. Sides, depths and heights go with the square root of pixels, maps and units. An arrow leads from each
    column to each that reads it, and is dashed where it crosses over to another column. Names of layers and how they
    read stand at the top, what follows them at the bottom.
    """
    parts = blocks(model, input_size)
    rows = max(block.columns for block in parts)
    head, foot = (LINE * (1 + max(text.count("\n") + 1 for text in texts)) for texts in _texts(parts))
    foot += LEGEND if rows > 1 else 0
    figure, axes = _canvas(head + rows * ROW + foot)
    places = _place(parts, foot + rows * ROW)
    for block, boxes in zip(parts, places, strict=True):
        for column, box in enumerate(boxes):
            whole = block in (parts[0], parts[-1])
            box.draw(axes, _times(block.shape), WHOLE if whole else COLUMN_COLOURS[column % 2])
        axes.text(boxes[0].middle, head + rows * ROW + foot - 6, block.above, ha="center", va="top", **SMALL)
        axes.text(boxes[0].middle, foot - 6, block.below, ha="center", va="top", **SMALL)
    for (before, sources), (block, boxes) in pairwise(zip(parts, places, strict=True)):
        for j, box in enumerate(boxes):
            for i, source in enumerate(sources):
                if block.reads(j, i, before.columns):
                    crossing = i != j and before.columns == block.columns
                    _arrow(axes, source.right, box.left, crossing, f"{block.name}: column {i + 1} to {j + 1}")
    if rows > 1:
        _name_columns(axes, next(boxes for boxes in places if len(boxes) == rows))
    return figure


def _texts(parts: Sequence[Block]) -> tuple[list[str], list[str]]:
    return [block.above for block in parts], [block.below for block in parts]


def _canvas(height: int) -> tuple[Figure, Axes]:
    """A figure whose axes count pixels from the lower left corner."""
    figure = plt.figure(figsize=(WIDTH / 100, height / 100), dpi=100, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


@dataclass(frozen=True)
class Box:
    """A place in the picture, in pixels from its lower left corner: a front, and a depth drawn to the right and up."""

    x: float
    y: float
    width: float
    height: float
    depth: float

    @property
    def middle(self) -> float:
        return self.x + (self.width + self.depth) / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + min(self.height, (self.height + self.depth) / 2)

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width + self.depth / 2, self.y + (self.height + self.depth) / 2

    def draw(self, axes: Axes, label: str, colours: tuple[str, str]) -> None:
        x, y, w, h, d = self.x, self.y, self.width, self.height, self.depth
        front = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        top = [(x, y + h), (x + d, y + h + d), (x + w + d, y + h + d), (x + w, y + h)]
        side = [(x + w, y), (x + w + d, y + d), (x + w + d, y + h + d), (x + w, y + h)]
        face, edge = colours
        for outline in (front, top, side) if d else (front,):
            axes.add_patch(Polygon(outline, facecolor=face, edgecolor=edge, linewidth=1, zorder=2, joinstyle="round"))
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # an arrow may pass behind it
        axes.text(self.middle, y - 5, label, ha="center", va="top", zorder=4, bbox=ground, **SMALL)


def _place(parts: Sequence[Block], top: int) -> list[list[Box]]:
    """A box for each column of each block, rows from `top` down; each block gets the room that box and texts need."""
    for largest in range(LARGEST_MAP, SMALLEST_MAP, -4):
        sizes = [_size(block, parts, largest) for block in parts]
        needs = [max(w + d + ARROW, _text_width(block)) for block, (w, _, d) in zip(parts, sizes, strict=True)]
        spare = WIDTH - 2 * MARGIN - sum(needs)
        if spare >= 0:
            break
    x, places = float(MARGIN), []
    rows = max(block.columns for block in parts)
    for block, (w, h, d), need in zip(parts, sizes, needs, strict=True):
        share = rows * ROW / block.columns
        centres = [top - share * (column + 0.5) for column in range(block.columns)]
        places.append([Box(x + (need - w - d) / 2, centre - (h + d) / 2, w, h, d) for centre in centres])
        x += need + spare / (len(parts) - 1)
    return places


def _text_width(block: Block) -> float:
    lines = (*block.above.split("\n"), *block.below.split("\n"), _times(block.shape))
    return CHARACTER * (1 + max(map(len, lines)))


def _size(block: Block, parts: Sequence[Block], largest: float) -> tuple[float, float, float]:
    """Width, height and depth: the largest of each kind in the picture has a fixed size, the rest follow."""
    if len(block.shape) == 1:
        most = max(b.shape[0] for b in parts if len(b.shape) == 1)
        return BAR_WIDTH, LARGEST_BAR * math.sqrt(block.shape[0] / most), 0
    maps = [b.shape for b in parts if len(b.shape) > 1]
    unit = largest / math.sqrt(max(max(shape[1:]) for shape in maps))
    depth = LARGEST_DEPTH * math.sqrt(block.shape[0] / max(shape[0] for shape in maps))
    return unit * math.sqrt(block.shape[2]), unit * math.sqrt(block.shape[1]), depth


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], crossing: bool, gid: str) -> None:
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=7, shrinkA=2, shrinkB=2, linewidth=1.2, zorder=3, gid=gid,
        color=VERMILLION if crossing else GREY, linestyle=DASHED if crossing else "-",
    )  # fmt: skip
    axes.add_patch(arrow)


def _name_columns(axes: Axes, boxes: Sequence[Box]) -> None:
    """Number the columns at the first boxes that are split, and say what the arrows mean."""
    for column, box in enumerate(boxes, 1):
        axes.text(box.x, box.y + box.height + box.depth + 4, f"column {column}", weight="bold", **SMALL)
    lines = [
        Line2D([], [], color=GREY, linewidth=1.2, label="within a column"),
        Line2D([], [], color=VERMILLION, linewidth=1.2, linestyle=DASHED, label="from one column to the other"),
    ]
    axes.legend(handles=lines, loc="lower left", fontsize=8, frameon=False, ncols=2, borderaxespad=0.2)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
