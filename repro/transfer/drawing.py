"""The figures of a transfer study: error against pictures per class, and against the layer. Chapter 20."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from repro.transfer.study import PIXELS, RANDOM, TRAINED, Interval
from repro.visualization.figures import BLUE, GREEN, ORANGE, VERMILLION

if TYPE_CHECKING:
    from repro.transfer.study import Study

# Label: colour, dash, marker, and by how much of its place a point is moved so that bars don't hide each other.
STYLES = {
    "trained, last layer off": (BLUE, "-", "o", -0.06),
    "trained, best layer": (GREEN, (0, (5, 1, 1, 1)), "D", -0.02),
    "random weights, best layer": (VERMILLION, "--", "s", 0.02),
    "pixels": (ORANGE, "-.", "^", 0.06),
}


def curves(study: "Study", axes: Any = None) -> Figure:
    """Error in percent against pictures per class, logarithmic, with 95 % intervals."""
    ax: Any = axes if axes is not None else plt.subplots(figsize=(7, 4))[1]
    lines = {"trained, last layer off": (TRAINED, study.last), "trained, best layer": (TRAINED, study.best(TRAINED))}
    lines |= {"random weights, best layer": (RANDOM, study.best(RANDOM)), "pixels": (PIXELS, "")}
    if study.best(TRAINED) == study.last:
        del lines["trained, best layer"]
    for label, (kind, layer) in lines.items():
        found = [study.interval(kind, layer, n) for n in study.numbers]
        _line(ax, [n * (1 + STYLES[label][3]) for n in study.numbers], found, label, label)
    if any(point.n is None for point in study.points):
        whole = study.interval(PIXELS, "", None).mean
        ax.axhline(100 * (1 - whole), color="black", lw=1, label="pixels of all pictures")
    ax.axhline(100 * (1 - study.chance), color="gray", ls=":", lw=1)
    ax.set(xscale="log", xlabel="training pictures per class", ylabel="error (%)")
    ax.set_title(f"{study.net} to {study.target}", fontsize=11)
    ax.set_xticks(study.numbers, [str(n) for n in study.numbers])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return ax.figure


def by_layer(study: "Study", n: int, axes: Any = None) -> Figure:
    """Error in percent against the layer at `n` pictures per class, pixels first, with 95 % intervals."""
    ax: Any = axes if axes is not None else plt.subplots(figsize=(7, 4))[1]
    styles = (TRAINED, "trained", "trained, last layer off"), (RANDOM, "random weights", "random weights, best layer")
    for kind, label, style in styles:
        found = [study.interval(PIXELS, "", n), *(study.interval(kind, layer, n) for layer in study.layers)]
        _line(ax, [place + STYLES[style][3] for place in range(len(found))], found, label, style)
    names = ["pixels", *(layer.removeprefix("features.") for layer in study.layers)]
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("error (%)")
    ax.set_title(f"{study.net} to {study.target}, {n} per class", fontsize=11)
    ax.legend(fontsize=9)
    return ax.figure


def _line(ax: Any, x: Sequence[float], found: Sequence[Interval], label: str, style: str) -> None:
    colour, dash, marker, _ = STYLES[style]
    half = [100 * (i.high - i.low) / 2 for i in found]
    errors = [100 * (1 - i.mean) for i in found]
    ax.errorbar(x, errors, half, label=label, color=colour, ls=dash, marker=marker, ms=5, capsize=2, elinewidth=1)
