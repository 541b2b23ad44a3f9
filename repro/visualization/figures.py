"""Small helpers that the chapters' figures share: one style, readable beside light and dark pages."""

from collections.abc import Sequence

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from torch import Tensor

# Okabe and Ito, *Color universal design* (2008): told apart by all common kinds of colour vision.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"


def use_book_style() -> None:
    """Set matplotlib's defaults for a chapter: white ground (legible in the dark theme too), 100 dpi.

    Curves differ in dash as well as in colour, so that they are told apart in grey print.
    """
    colours = cycler(color=[BLUE, ORANGE, GREEN, VERMILLION, PURPLE])
    dashes = cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))])
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": colours + dashes,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#d9dde2",
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )


def show_images(axes: Sequence[Axes], images: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Draw an image into each of `axes`, grey (H, W) of any range or colour (H, W, 3), under its title."""
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image.numpy(force=True))
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
