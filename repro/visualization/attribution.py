"""Which pixels a class score depends on: six methods behind one interface, `attribute`.

| method | what a pixel gets | source |
|---|---|---|
| `saliency` | the gradient of the score | Simonyan, Vedaldi, Zisserman 2014, section 3 |
| `deconvnet` | the signal sent back with the deconvnet's rule at each ReLU | Zeiler, Fergus 2014, section 2.1 |
| `guided` | the signal sent back with both rules | Springenberg et al. 2015, section 3.4 |
| `smoothgrad` | the gradient, averaged over noisy copies of the image | Smilkov et al. 2017, section 2 |
| `integrated` | its share of the score's rise from a baseline to the image | Sundararajan, Taly, Yan 2017, section 3 |
| `gradcam` | the weighted sum of a layer's maps where that is positive, enlarged | Selvaraju et al. 2017, section 3 |

captum computes gradients, the path integral and Grad-CAM. Written here are the ReLU rules (`relu_rules` says why) and
SmoothGrad's noise: captum draws it from the global generator with one strength for all images, and its own note says
that it is hard to make deterministic. Chapter 17.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.preparation import Preparation
from repro.errors import UnknownName, nearest
from repro.progress import track
from repro.visualization.probe import (
    MEMORY,
    ProbeError,
    as_maps,
    batch_size,
    find_layer,
    images_for,
    outputs,
    untouched,
)
from repro.visualization.relu_rules import relu_rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["saliency", "deconvnet", "guided", "smoothgrad", "integrated", "gradcam"]
METHODS: tuple[Method, ...] = get_args(Method)
TITLES = {
    "saliency": "gradient",
    "deconvnet": "deconvnet\nrule",
    "guided": "guided\nbackprop.",
    "smoothgrad": "SmoothGrad",
    "integrated": "integrated\ngradients",
    "gradcam": "Grad-CAM",
}
SATURATION = 0.99  # the share of a map's pixels that a figure draws within its range of colours


@dataclass(frozen=True)
class Attribution:
    """Maps of which pixels the score of `target` depends on, in that score's units.

    `maps` are signed, (N, C, H, W); those of Grad-CAM (N, 1, H, W) and never negative. `images` are the standardised
    images (N, C, H, W), `target` the class (N,) of each and `score` its score (N,). `error` (N,), of integrated
    gradients alone: the sum of a map minus what it should be by completeness, f(image) − f(baseline).
    """

    method: str
    maps: Tensor
    images: Tensor
    target: Tensor
    score: Tensor
    error: Tensor | None = None

    @property
    def map(self) -> Tensor:
        """One number per pixel, (N, H, W): the largest |value| of its channels (Simonyan et al. 2014, section 3.1).

        Of integrated gradients it is the sum over the channels, signed: shares add up.
        """
        return self.maps.sum(1) if self.method in ("integrated", "gradcam") else self.maps.abs().amax(1)

    def figure(self, prepare: Preparation | None = None, classes: Sequence[str] | None = None) -> "Figure":
        """Each image beside its map; see `attribution_figure`."""
        return attribution_figure([self], prepare, classes)


@dataclass(frozen=True)
class _Asked:
    """One question, as all methods get it: `batch` images may pass at once."""

    model: nn.Module
    images: Tensor
    target: Tensor
    batch: int

    def chunks(self, what: str) -> Iterator[slice]:
        """The images' places, a batch at a time, with progress."""
        places = [slice(i, i + self.batch) for i in range(0, len(self.images), self.batch)]
        return track(places, len(self.images), what, self.batch)

    def score(self, images: Tensor) -> Tensor:
        """Logits (N, K). A copy goes in: the net may write over its input."""
        return self.model(images.clone())

    def gradient(self, images: Tensor, target: Tensor) -> Tensor:
        return Saliency(self.score).attribute(images.detach().requires_grad_(), target=target, abs=False).detach()


def attribute(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    method: Method = "saliency",
    *,
    layer: str | None = None,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    memory: int = MEMORY,
) -> Attribution:
    """Which pixels of each image the score of a class depends on, by one of `METHODS`.

    `images` are standardised, (N, C, H, W) or (C, H, W); the model gives logits (N, K). `target` is a class, or one for
    each image; the most probable one if it is left out. `layer` names the layer whose maps Grad-CAM weighs (of one that
    is used several times, the last use). `integrated` goes in `steps` points (Gauss–Legendre) from `baseline`, of any
    shape that spreads to the images': 0 is the mean colour of the training set, `prepare.bounds[0]` black.
    `smoothgrad` averages `samples` copies with Gaussian noise whose standard deviation is `noise` times the range of
    the image's values; the noise follows from `seed` alone, is the same for each image, and leaves torch's generators
    as they are. As many images pass at once as `memory` bytes hold.

    The model is left as it was found. Raises `UnknownName` and `ProbeError` for what cannot be asked.
    """
    if method not in METHODS:
        raise UnknownName(f"method {method!r}: there is none of that name; {nearest(str(method), METHODS)}")
    if min(steps, samples) < 1 or not noise >= 0:
        raise ProbeError(f"steps={steps}, samples={samples}, noise={noise}: at least 1, 1 and 0 are needed")
    if (layer is not None) != (method == "gradcam"):
        raise ProbeError(f"layer={layer!r}: method 'gradcam' and no other needs the name of a layer; {_advice(model)}")
    images = images_for(model, images)
    with untouched(model), torch.enable_grad():
        _try_one(model, images)
        batch = batch_size(model, images.shape[1:], memory, gradients=True)
        logits = torch.cat([_logits(model, part) for part in images.split(batch)])
        chosen = _targets(logits, target)
        asked = _Asked(model, images, chosen, batch)
        error = None
        if method == "integrated":
            maps, error = _integrated(asked, _baseline(baseline, images), steps)
        elif method == "smoothgrad":
            maps = _smoothgrad(asked, samples, noise, seed)
        elif layer is not None:
            maps = _gradcam(asked, layer)
        else:
            maps = _sent_back(asked, method)
    return Attribution(method, maps, images, chosen, logits.gather(1, chosen[:, None])[:, 0], error)


def _advice(model: nn.Module) -> str:
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return f"the last convolution is {convolutions[-1]!r}" if convolutions else "any layer that gives maps will do"


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images.clone())


def _try_one(model: nn.Module, images: Tensor) -> None:
    """Raises `ProbeError` for a net that does not take these images, or does not give logits (N, K) for them."""
    try:
        found = _logits(model, images[:1])
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise ProbeError(f"image: the net does not take {tuple(images.shape[1:])}: {reason}") from e
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ProbeError(f"model: logits (N, K) are needed, found {what}; take a net with its head")


def _targets(logits: Tensor, target: int | Sequence[int] | Tensor | None) -> Tensor:
    """The class asked for of each image, (N,)."""
    if target is None:
        return logits.argmax(1)
    number, classes = logits.shape
    chosen = torch.as_tensor(target, device=logits.device)
    if chosen.is_floating_point() or chosen.dtype == torch.bool or chosen.shape not in ((), (number,)):
        raise ProbeError(f"target: one class, or one for each of {number} images, is needed, found {chosen.tolist()}")
    if not ((chosen >= 0) & (chosen < classes)).all():
        raise ProbeError(f"target {chosen.tolist()}: out of range: classes are 0 to {classes - 1}")
    return chosen.long().expand(number).clone()


def _baseline(baseline: Tensor | float, images: Tensor) -> Tensor:
    try:
        spread = torch.as_tensor(baseline).to(images).expand_as(images)
    except (RuntimeError, TypeError) as e:
        what = tuple(baseline.shape) if isinstance(baseline, Tensor) else repr(baseline)
        raise ProbeError(f"baseline: one that spreads to {tuple(images.shape)} is needed, found {what}") from e
    if not spread.isfinite().all():
        raise ProbeError("baseline: holds NaN or infinity")
    return spread


def _sent_back(asked: _Asked, method: str) -> Tensor:
    """The gradient, or with another rule at each ReLU what is sent back in its place."""
    maps = []
    for part in asked.chunks(method):
        with nullcontext() if method == "saliency" else relu_rule(method) as rule:
            maps.append(asked.gradient(asked.images[part], asked.target[part]))
        if rule is not None and not rule.count:
            raise ProbeError(f"model: it calls no ReLU, where method {method!r} differs; use method 'saliency'")
    return torch.cat(maps)


def _smoothgrad(asked: _Asked, samples: int, noise: float, seed: int) -> Tensor:
    """One image at a time, each noise drawn by itself on the CPU: what comes out hangs neither on batch nor device."""
    maps = torch.zeros_like(asked.images)
    for i in track(range(len(maps)), len(maps), "smoothgrad"):
        image, generator = asked.images[i], torch.Generator().manual_seed(seed)
        deviation = noise * (image.max() - image.min())
        for start in range(0, samples, asked.batch):
            count = min(asked.batch, samples - start)
            drawn = [torch.randn(image.shape, generator=generator, dtype=image.dtype) for _ in range(count)]
            noisy = image + deviation * torch.stack(drawn).to(image.device)
            maps[i] += asked.gradient(noisy, asked.target[i].expand(count)).sum(0)
    return maps / samples


def _integrated(asked: _Asked, baseline: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    method = IntegratedGradients(asked.score)
    maps, errors = [], []
    for part in asked.chunks("integrated"):
        values, error = method.attribute(
            asked.images[part],
            baseline[part],
            asked.target[part],
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=asked.batch,
            return_convergence_delta=True,
        )
        maps.append(values.detach())
        errors.append(error.detach())
    return torch.cat(maps), torch.cat(errors)


def _gradcam(asked: _Asked, layer: str) -> Tensor:
    as_maps(layer, outputs(asked.model, asked.images[:1], [layer])[layer])
    method = LayerGradCam(asked.score, find_layer(asked.model, layer))
    maps = []
    for part in asked.chunks("gradcam"):
        inputs = asked.images[part].detach().requires_grad_()
        small = method.attribute(inputs, asked.target[part], relu_attributions=True).detach()
        maps.append(F.interpolate(small, asked.images.shape[2:], mode="bilinear", align_corners=False))
    return torch.cat(maps)


def attribution_figure(
    attributions: Sequence[Attribution], prepare: Preparation | None = None, classes: Sequence[str] | None = None
) -> "Figure":
    """A row for each image, and beside it its map by each of several methods, which must be of the same images.

    The images are shown as `prepare` undoes them; without it, spread from their darkest to their brightest value. A map
    is black at 0 and white from its 99th percentile on; that of integrated gradients red where it speaks for the
    class, blue where against it; that of Grad-CAM laid over the image. `classes` names the rows.
    """
    from matplotlib import pyplot as plt

    first = attributions[0]
    if any(one.images.shape != first.images.shape or (one.images != first.images).any() for one in attributions):
        raise ProbeError("figure: the attributions are of different images; give those of the same ones")
    shown = pictures(first.images, prepare)
    columns = 1 + len(attributions)
    figure = plt.figure(figsize=(7, 7 / columns * len(shown) + 0.6), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for i, (row, picture, target) in enumerate(zip(grid, shown, first.target.tolist(), strict=True)):
        row[0].imshow(picture.numpy(), cmap="gray")
        row[0].set_ylabel(classes[target] if classes else f"class {target}", fontsize=10)
        for ax, one in zip(row[1:], attributions, strict=True):
            _draw(ax, one, picture, i)
    grid[0, 0].set_title("image", fontsize=10)
    for ax, one in zip(grid[0, 1:], attributions, strict=True):
        ax.set_title(TITLES[one.method], fontsize=10)
    return figure


def pictures(images: Tensor, prepare: Preparation | None) -> Tensor:
    """Standardised images as floats (N, H, W, C), or (N, H, W), the mean of the channels, where those are not three."""
    if prepare is not None:
        shown = prepare.show(images)
    else:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        shown = ((images - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1).cpu()
    return shown if shown.shape[3] == 3 else shown.mean(3)


def _draw(ax: "Axes", one: Attribution, picture: Tensor, i: int) -> None:
    values = one.map[i].numpy(force=True)
    top = float(np.quantile(abs(values), SATURATION)) or 1.0
    if one.method == "integrated":
        ax.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top)
    elif one.method == "gradcam":
        ax.imshow(picture.numpy(), cmap="gray")
        ax.imshow(values, cmap="viridis", vmin=0, vmax=top, alpha=0.6)
    else:
        ax.imshow(values, cmap="gray", vmin=0, vmax=top)
