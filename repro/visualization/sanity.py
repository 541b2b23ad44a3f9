"""Does a map depend on what the net has learnt? Destroy its weights layer by layer, and see whether the map changes.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, *Sanity checks for saliency maps* (2018), section 3: a map that
stays the same shows the image, not the net. Chapter 17.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from torch import Tensor, nn

from repro.data.preparation import Preparation
from repro.errors import UnknownName, nearest
from repro.progress import track
from repro.visualization.attribution import SATURATION, TITLES, Method, attribute, pictures
from repro.visualization.probe import MEMORY, ProbeError, untouched

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

Order = Literal["cascading", "independent"]
Redraw = Literal["initialize", "permute"]
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, images (N, C, H, W), classes (N,) to maps (N, C, H, W)
WINDOW = 7  # pixels, of SSIM


@dataclass(frozen=True)
class SanityCheck:
    """How like the original the maps still are, for each of `methods` and after each of `stages`, image by image.

    `stages` name the layers from the top, each with the normalisation that follows it. `rank` is Spearman's
    correlation of |maps|, `signed` that of the maps with their signs, `ssim` the structural similarity of each pixel's
    largest |value|; each (methods, stages, N), and 1 for equal maps. A map that is constant has a rank correlation of
    0. `maps` (methods, 1 + stages, H, W) are the largest |values| of the first image, the original ones first.
    """

    methods: tuple[str, ...]
    stages: tuple[str, ...]
    order: str
    rank: Tensor
    signed: Tensor
    ssim: Tensor
    maps: Tensor
    images: Tensor
    target: Tensor

    def figure(self, prepare: Preparation | None = None, shown: int = 6) -> "Figure":
        """Curves of the three measures, the mean over the images, above the first image's maps after `shown` stages."""
        return _figure(self, prepare, shown)


def sanity_check(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str] | Mapping[str, Explain] = ("saliency", "guided"),
    target: int | Sequence[int] | Tensor | None = None,
    *,
    seed: int = 0,
    order: Order = "cascading",
    redraw: Redraw = "initialize",
    layer: str | None = None,
    memory: int = MEMORY,
) -> SanityCheck:
    """Maps of the same images and classes while the weights of layer after layer, from the top, are drawn anew.

    `methods` are names that `attribute` knows, or functions of (model, images, classes) to maps (N, C, H, W) by any
    name. `order` "cascading" leaves what is drawn anew as it is, so that in the end nothing is left of training;
    "independent" destroys one layer at a time. `redraw` "initialize" asks each layer for its own initialisation,
    "permute" shuffles each of its weights, whose values stay. `layer` is Grad-CAM's. `images`, `target` and `memory`
    are those of `attribute`; the classes are chosen with the original weights.

    All happens on a copy. Raises `UnknownName` and `ProbeError`, as `attribute` does; for a layer that cannot
    initialise itself too.
    """
    for value, known in ((order, get_args(Order)), (redraw, get_args(Redraw))):
        if value not in known:
            raise UnknownName(f"{value!r}: there is none of that name; {nearest(str(value), known)}")
    explain = methods if isinstance(methods, Mapping) else {name: _named(name, layer, memory) for name in methods}
    first = attribute(model, images, target, memory=memory)
    images, chosen = first.images, first.target
    stages = stages_of(model, images)
    work, drawn = copy.deepcopy(model), copy.deepcopy(model)
    _draw_anew(drawn, stages, redraw, seed)
    original = {name: _maps(name, f, work, images, chosen) for name, f in explain.items()}
    found: list[list[Tensor]] = []
    kept = [torch.stack([_flat(maps)[0] for maps in original.values()])]
    for stage in track(stages, len(stages), "sanity check"):
        _take(work, drawn, stage)
        now = {name: _maps(name, f, work, images, chosen) for name, f in explain.items()}
        found.append([_likeness(original[name], now[name]) for name in explain])
        kept.append(torch.stack([_flat(maps)[0] for maps in now.values()]))
        if order == "independent":
            _take(work, model, stage)
    likeness = torch.stack([torch.stack(row) for row in found], 1)  # (methods, stages, 3, N)
    rank, signed, similar = likeness.unbind(2)
    names = tuple(stage[0] for stage in stages)
    return SanityCheck(tuple(explain), names, order, rank, signed, similar, torch.stack(kept, 1), images, chosen)


def stages_of(model: nn.Module, images: Tensor) -> list[tuple[str, ...]]:
    """The layers to destroy, from the top: in the order of use, each with the normalisation layers after it.

    A layer begins a stage if one of its own weights has two dimensions or more; what is never used is left out.
    """
    used: list[str] = []
    names = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}

    def hook(module: nn.Module, _inputs: object, _output: object) -> None:
        if names[module] not in used:
            used.append(names[module])

    with untouched(model), torch.no_grad():
        for module in names:
            module.register_forward_hook(hook)  # `untouched` takes it away again
        model(images[:1].clone())
    stages: list[tuple[str, ...]] = []
    for name in used:
        if any(weight.ndim > 1 for weight in model.get_submodule(name).parameters(recurse=False)) or not stages:
            stages.append((name,))
        else:
            stages[-1] = (*stages[-1], name)
    if not stages:
        raise ProbeError("model: it has no weights, so none can be drawn anew")
    return stages[::-1]


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two maps (H, W) >= 0, each divided by its largest value: 1 for equal ones.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13, with uniform windows of 7 pixels, those inside the map alone.
    """
    a, b = (values.astype(np.float64) / (float(values.max()) or 1.0) for values in (first, second))
    side = min(WINDOW, *a.shape)
    inside = tuple(slice(side // 2, n - (side - 1) // 2) for n in a.shape)

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, side)[inside]

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of all values of two maps, ties at their mean rank; 0 where one map is constant."""
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(np.corrcoef(rankdata(first.ravel()), rankdata(second.ravel()))[0, 1])


def _named(name: str, layer: str | None, memory: int) -> Explain:
    method = cast(Method, name)  # `attribute` refuses an unknown one
    own = layer if name == "gradcam" else None
    return lambda model, images, target: attribute(model, images, target, method, layer=own, memory=memory).maps


def _maps(name: str, explain: Explain, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    maps = explain(model, images, target)
    number, _, *size = images.shape
    if not isinstance(maps, Tensor) or maps.ndim != 4 or [len(maps), *maps.shape[2:]] != [number, *size]:
        raise ProbeError(
            f"method {name!r}: maps (N, C, H, W) of the size of the images {tuple(images.shape)} are needed"
        )
    return maps.detach().cpu()


def _flat(maps: Tensor) -> Tensor:
    return maps.abs().amax(1)


def _likeness(first: Tensor, second: Tensor) -> Tensor:
    """Two sets of maps (N, C, H, W) to (3, N): rank correlation of |maps| and of maps, SSIM."""
    rows = []
    for a, b, flat_a, flat_b in zip(first, second, _flat(first), _flat(second), strict=True):
        x, y = a.numpy(), b.numpy()
        absolute, signed = rank_correlation(abs(x), abs(y)), rank_correlation(x, y)
        rows.append([absolute, signed, ssim(flat_a.numpy(), flat_b.numpy())])
    return torch.tensor(rows).T


def _draw_anew(model: nn.Module, stages: Sequence[Sequence[str]], redraw: str, seed: int) -> None:
    """Every stage at once, so that a layer's new weights are the same in both orders; torch's generators stay."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name in (name for stage in stages for name in stage):
            module = model.get_submodule(name)
            if redraw == "permute":
                for weight in module.parameters(recurse=False):
                    shuffled = torch.randperm(weight.numel()).to(weight.device)
                    weight.copy_(weight.flatten()[shuffled].view_as(weight))
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            else:
                raise ProbeError(
                    f"layer {name}: {type(module).__name__} cannot initialise itself; use redraw='permute'"
                )


def _take(model: nn.Module, source: nn.Module, stage: Sequence[str]) -> None:
    """Give the layers of a stage the weights and the running statistics that they have in `source`."""
    with torch.no_grad():
        for name in stage:
            own, other = model.get_submodule(name), source.get_submodule(name)
            for kind in ("parameters", "buffers"):
                pairs = zip(getattr(own, kind)(recurse=False), getattr(other, kind)(recurse=False), strict=True)
                for tensor, value in pairs:
                    tensor.copy_(value)


def _figure(check: SanityCheck, prepare: Preparation | None, shown: int) -> "Figure":
    from matplotlib import pyplot as plt

    last = len(check.stages)
    places = [0, *np.linspace(1, last, min(shown, last)).round().astype(int).tolist()]
    heights = 2.6, 7 / (1 + len(places)) * len(check.methods) + 0.3
    figure = plt.figure(figsize=(7, sum(heights)), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=heights)
    above, below = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    _curves(above, check)
    grid = below.subplots(len(check.methods), 1 + len(places), squeeze=False)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    picture = pictures(check.images[:1], prepare)[0]
    for row, method, maps in zip(grid, check.methods, check.maps, strict=True):
        row[0].imshow(picture.numpy(), cmap="gray")
        row[0].set_ylabel(TITLES.get(method, method), fontsize=9)
        for ax, place in zip(row[1:], places, strict=True):
            values = maps[place].numpy()
            ax.imshow(values, cmap="gray", vmin=0, vmax=float(np.quantile(values, SATURATION)) or 1.0)
    names = ["original", *(name.replace(".", ".\n") for name in check.stages)]
    for ax, name in zip(grid[0], ["image", *(names[place] for place in places)], strict=True):
        ax.set_title(name, fontsize=9)
    return figure


def _curves(figure: "SubFigure", check: SanityCheck) -> None:
    """The mean over the images of each measure, against the number of the stage; 1 before the first."""
    last = len(check.stages)
    panels = figure.subplots(1, 3, sharey=True)
    measures = {"rank correlation, |map|": check.rank, "rank correlation, signed": check.signed, "SSIM": check.ssim}
    for ax, (title, values) in zip(panels, measures.items(), strict=True):
        for method, curve in zip(check.methods, values.mean(2).tolist(), strict=True):
            ax.plot(range(last + 1), [1.0, *curve], label=TITLES.get(method, method).replace("\n", " "))
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("layers drawn anew" if check.order == "cascading" else "layer drawn anew", fontsize=9)
    panels[0].set_ylabel("likeness to the original", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
