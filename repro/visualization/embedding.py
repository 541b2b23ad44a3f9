"""Codes of many images laid out in the plane, and how pure the neighbourhoods are that they form.

t-SNE (van der Maaten and Hinton 2008) and principal components are scikit-learn's: they are not this book's subject.
Chapter 19 maps the codes of one layer after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from repro.errors import UnknownName, nearest
from repro.progress import track
from repro.visualization import probe
from repro.visualization.probe import MEMORY, ProbeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["tsne", "pca"]

COMPONENTS = 50  # to which codes are reduced before t-SNE, as its authors advise
MARKERS = "osD^vP*Xph"  # told apart without colour


@dataclass(frozen=True)
class Embedding:
    """Points of the plane (N, 2), one for each code, and the method that laid them out."""

    points: Tensor
    method: str

    def figure(self, labels: Tensor, classes: Sequence[str], title: str = "") -> "Figure":
        """The points by class: labels (N,) are indices of `classes`."""
        from matplotlib import pyplot as plt

        _check_labels(self.points, labels)
        figure, ax = plt.subplots(figsize=(7, 4.5))
        colours = plt.get_cmap("tab10")
        for k, name in enumerate(classes):
            x, y = self.points[labels == k].T.numpy()
            ax.scatter(x, y, s=14, color=colours(k % 10), marker=MARKERS[k % len(MARKERS)], label=name, linewidths=0)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title or self.method, fontsize=10)
        ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def codes(model: nn.Module, images: Tensor, layers: Sequence[str], memory: int = MEMORY) -> dict[str, Tensor]:
    """What each of `layers` gives for standardised images (N, C, H, W), flattened: (N, D) each, on the CPU.

    Images pass in batches whose maps take at most `memory` bytes; the codes themselves come on top. Raises
    `ProbeError`, `UnknownName`.
    """
    images = probe.images_for(model, images)
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    batches = images.split(probe.batch_size(model, images.shape[1:], memory))
    with probe.untouched(model), torch.no_grad():
        for batch in track(batches, len(batches), "computing codes"):
            for layer, output in probe.outputs(model, batch, layers).items():
                found[layer].append(output.flatten(1).cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def embed(codes: Tensor, method: Method = "tsne", seed: int = 0, perplexity: float = 30.0) -> Embedding:
    """Codes (N, …) as points of the plane: by t-SNE, started from the principal components, or by these alone.

    `perplexity` is about how many neighbours t-SNE tries to keep near; it has to be below N. The same arguments give
    the same points on one machine. Raises `UnknownName` for another method, `ProbeError` for fewer than three codes,
    for NaN and for too few codes for the perplexity.
    """
    flat = _flat(codes)
    if method not in ("tsne", "pca"):
        raise UnknownName(f"method {method!r}: {nearest(method, ('tsne', 'pca'))}")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(COMPONENTS, *flat.shape) if method == "tsne" else 2
    points = PCA(components, random_state=seed).fit_transform(flat.numpy())
    if method == "tsne":
        if not 0 < perplexity < len(flat):
            raise ProbeError(f"perplexity={perplexity}: more than 0 and less than the {len(flat)} codes is needed")
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return Embedding(torch.from_numpy(points).float(), method)


def purity(codes: Tensor, labels: Tensor, neighbours: int = 5) -> float:
    """The share of each code's nearest `neighbours` (Euclidean, itself apart) that have its label, on the average.

    `codes` are (N, …) or the points of an `Embedding`, `labels` (N,). By luck it is about the share of a class. Raises
    `ProbeError` for labels of another number, or fewer than `neighbours` + 1 codes.
    """
    flat = _flat(codes)
    _check_labels(flat, labels)
    if not 1 <= neighbours < len(flat):
        raise ProbeError(f"neighbours={neighbours}: 1 to {len(flat) - 1} are there for {len(flat)} codes")
    from sklearn.neighbors import NearestNeighbors

    nearest_ones = NearestNeighbors(n_neighbors=neighbours).fit(flat.numpy()).kneighbors(return_distance=False)
    return (labels[torch.from_numpy(nearest_ones)] == labels[:, None]).float().mean().item()


def _flat(codes: Tensor) -> Tensor:
    """(N, …) as float32 (N, D) on the CPU."""
    flat = codes.detach().flatten(1).float().cpu()
    if len(flat) < 3 or not flat.isfinite().all():
        raise ProbeError(f"codes: three or more, of finite numbers, are needed, found {tuple(codes.shape)}")
    return flat


def _check_labels(codes: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(codes),):
        raise ProbeError(f"labels: one for each of {len(codes)} codes is needed, found {tuple(labels.shape)}")
