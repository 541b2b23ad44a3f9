"""The panels of an occlusion: the image, and for each place of the window what the net said."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from repro.visualization.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from repro.visualization.probe import ProbeError

if TYPE_CHECKING:
    from repro.visualization.occlusion import Occlusion

NAMED = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE)  # classes with a colour of their own
OTHER = "#9aa0a6"


def draw(found: "Occlusion", image: Any = None, classes: Sequence[str] | None = None) -> Figure:
    """Probability of the target, most probable class, and activation of the strongest map; before them the image.

    image: (H, W) or (H, W, 3) of 0…1, as `Preparation.show` gives it; without it there are the three panels alone.
    classes: the classes' names, instead of their numbers. Each cell stands around the centre of its window. Raises
    `ProbeError` for an image of another size.
    """
    if image is not None and tuple(image.shape[:2]) != found.input_size:
        raise ProbeError(f"image: {found.input_size} pixels are needed, found {tuple(image.shape[:2])}")
    panels = 3 if image is None else 4
    figure = plt.figure(figsize=(7, 2.9 if panels == 3 else 6.2), layout="constrained")
    axes = list(figure.subplots(1, 3) if panels == 3 else figure.subplots(2, 2).flat)
    if image is not None:
        show_image(axes[0], np.squeeze(np.asarray(image)), found)
    probability, predicted, activation = axes[-3:]
    name = classes[found.target] if classes else f"class {found.target}"
    title = f"probability of {name}\n({found.clean_probability:.2f} without the window)"
    show_map(figure, probability, found.probability, found, title, limits=(0, 1))
    title = f"{found.layer}, map {found.unit}, sum\n({found.clean_activation:.3g} without the window)"
    show_map(figure, activation, found.activation, found, title)
    show_classes(predicted, found, classes)
    return figure


def prepare(axes: Axes, title: str, found: "Occlusion") -> tuple[float, float, float, float]:
    """Title and frame of the image's size; returns where the cells lie, for `imshow`."""
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    height, width = found.input_size
    ends = []
    for k, s, n in zip(found.size, found.stride, found.logits.shape[:2], strict=True):
        first = (k - s) / 2  # so that the first cell's centre is its window's
        ends.append((first, first + n * s))
    (top, bottom), (left, right) = ends
    axes.set_xlim(min(0, left), max(width, right))
    axes.set_ylim(max(height, bottom), min(0, top))
    return left, right, bottom, top


def show_image(axes: Axes, image: Any, found: "Occlusion") -> None:
    """The image, with the first window's outline to show its size."""
    prepare(axes, f"image; the window is {found.size[0]}×{found.size[1]} px", found)
    height, width = found.input_size
    axes.imshow(image, cmap="gray", extent=(0, width, height, 0), aspect="equal")
    axes.add_patch(Rectangle((0, 0), found.size[1], found.size[0], fill=False, edgecolor=ORANGE, linewidth=2))


def show_map(
    figure: Figure,
    axes: Axes,
    values: Tensor,
    found: "Occlusion",
    title: str,
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """A map (h, w) over the image's frame with its scale."""
    extent = prepare(axes, title, found)
    low, high = limits
    numbers = values.numpy(force=True)
    shown = axes.imshow(numbers, cmap="viridis", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    prepare(axes, title, found)  # `imshow` narrows the frame to the cells
    figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=9)


def show_classes(axes: Axes, found: "Occlusion", classes: Sequence[str] | None) -> None:
    """The most probable classes: the most frequent have colours, the others share one."""
    predicted = found.predicted.cpu()
    numbers, counts = predicted.unique(return_counts=True)
    named = numbers[counts.argsort(descending=True, stable=True)][: len(NAMED)].tolist()
    index = torch.full_like(predicted, len(NAMED))
    for place, number in enumerate(named):
        index[predicted == number] = place
    extent = prepare(axes, "most probable class", found)
    colours = ListedColormap([*NAMED, OTHER])
    axes.imshow(index.numpy(), cmap=colours, vmin=-0.5, vmax=len(NAMED) + 0.5, extent=extent, interpolation="nearest")
    prepare(axes, "most probable class", found)
    patches = [Patch(color=c, label=classes[n] if classes else str(n)) for c, n in zip(NAMED, named, strict=False)]
    patches += [Patch(color=OTHER, label="others")] if len(numbers) > len(NAMED) else []
    axes.legend(handles=patches, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
