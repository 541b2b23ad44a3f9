"""An image found from what a layer says of it: what the layer has kept, and what it has lost.

Mahendran and Vedaldi (2015), "Understanding deep image representations by inverting them": of the images with nearly
the same code, the one that a prior for natural images likes best. Chapter 19 inverts one layer after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from repro.progress import track
from repro.visualization import probe
from repro.visualization.dream import START_NOISE, Bounds, Until, clamp, contrast, pictures
from repro.visualization.natural import total_variation
from repro.visualization.probe import ProbeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.data.preparation import Preparation

ALPHA, BETA = 6.0, 2.0  # the paper's exponents


@dataclass(frozen=True)
class Inversion:
    """Images (N, C, H, W), the inversions of their codes in a layer, and how far both lie apart (N,).

    `code_error` is the Euclidean distance of the two codes, `image_error` that of the two images, each divided by the
    mean distance between two of the reference images: 1 is as far off as another picture.
    """

    layer: str
    images: Tensor
    inverted: Tensor
    code_error: Tensor
    image_error: Tensor

    def figure(self, prepare: "Preparation | None" = None) -> "Figure":
        """The images above their inversions; without `prepare` each is on a scale of its own."""
        from matplotlib import pyplot as plt

        count = len(self.images)
        width = 7 / max(count, 4)
        figure, axes = plt.subplots(2, count, figsize=(width * count, 2 * width + 0.5), squeeze=False)
        for row, (images, name) in enumerate(((self.images, "image"), (self.inverted, self.layer))):
            for ax, picture in zip(axes[row], pictures(images, prepare), strict=True):
                ax.imshow(picture)
                ax.set_axis_off()
            axes[row, 0].set_title(name, fontsize=10, loc="left")
        return figure


def invert(
    model: nn.Module,
    images: Tensor,
    layer: str,
    *,
    reference: Tensor | None = None,
    steps: int = 60,
    alpha: float = 1e-3,
    variation: float = 0.1,
    rate: float = 0.1,
    seed: int = 0,
    bounds: Bounds | None = None,
    memory: int = probe.MEMORY,
) -> Inversion:
    """The inversions of what `layer` says of standardised `images` (N, C, H, W), by `invert_code`, with their errors.

    `reference` (M, C, H, W), at least two pictures, says how far two pictures lie apart; by default `images` do.
    Raises `ProbeError`, `UnknownName`.
    """
    images = probe.images_for(model, images)
    reference = images if reference is None else probe.images_for(model, reference)
    if len(reference) < 2:
        raise ProbeError("reference: two pictures at least are needed to say how far pictures lie apart")
    with probe.untouched(model), torch.no_grad():
        until = Until(model, layer, images[:1])
        code, between = until(images), typical_distance(until(reference))
    if not between:
        raise ProbeError(f"layer {layer}: says the same of all reference pictures; choose another layer or others")
    inverted = invert_code(
        model, code, layer, images.shape[1:], steps=steps, alpha=alpha, variation=variation, rate=rate, seed=seed,
        bounds=bounds, memory=memory,
    )  # fmt: skip
    with probe.untouched(model), torch.no_grad():
        code_error = _distance(until(inverted), code) / between
    image_error = _distance(inverted, images) / typical_distance(reference)
    return Inversion(layer, images, inverted, code_error, image_error)


def invert_code(
    model: nn.Module,
    code: Tensor,
    layer: str,
    input_size: Sequence[int],
    *,
    steps: int = 60,
    alpha: float = 1e-3,
    variation: float = 0.1,
    rate: float = 0.1,
    seed: int = 0,
    bounds: Bounds | None = None,
    memory: int = probe.MEMORY,
) -> Tensor:
    """Images (N, *input_size), standardised, of which `layer` says nearly `code` (N, …).

    Each minimises ‖Φ(x) − code‖² / ‖code‖² + alpha · mean |x|⁶ + variation · mean (Δ↓² + Δ→²), the last two of the
    image in units of `contrast` and as means over its pixels, so that the weights mean the same at every size and for
    every net. From noise of `seed`, by `steps` of Adam whose rate falls linearly from `rate` to 0; the paper's plain
    momentum needs hundreds of steps more. Pixels are held within `bounds`; as many images pass at once as `memory`
    bytes hold. Raises `ProbeError`, `UnknownName`.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = contrast(bounds)
    rule = Rule(steps, alpha, variation, rate, bounds, unit)
    start = START_NOISE * unit * torch.randn(1, *input_size, generator=generator)
    x = probe.images_for(model, start.expand(len(code), *input_size).contiguous())
    with probe.untouched(model):
        until = Until(model, layer, x[:1])
        with torch.no_grad():
            shape = until(x[:1]).shape[1:]
        if code.shape[1:] != shape or not code.isfinite().all():
            raise ProbeError(f"code: finite numbers (N, *{tuple(shape)}) are needed, found {tuple(code.shape)}")
        size = probe.batch_size(model, input_size, memory, gradients=True, answer=until)
        codes = code.detach().to(x).split(size)
        starts = x.split(size)
        return torch.cat([_descend(until, *pair, rule) for pair in zip(starts, codes, strict=True)])


@dataclass(frozen=True)
class Rule:
    """The arguments of `invert_code` of these names, and `contrast`."""

    steps: int
    alpha: float
    variation: float
    rate: float
    bounds: Bounds | None
    unit: float


def _descend(until: Until, x: Tensor, code: Tensor, rule: Rule) -> Tensor:
    """One batch of images (N, C, H, W), brought to say nearly `code` (N, …)."""
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rule.rate * rule.unit)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=rule.steps)
    for _ in track(range(rule.steps), rule.steps, f"inverting {until.layer}"):
        misfit = (until(x) - code).flatten(1).square().sum(1) / code.flatten(1).square().sum(1).clamp_min(1e-12)
        energy = (x / rule.unit).abs().pow(ALPHA).flatten(1).mean(1)
        loss = misfit + rule.alpha * energy + rule.variation * _roughness(x / rule.unit)
        (x.grad,) = torch.autograd.grad(loss.sum(), x)
        optimizer.step()
        schedule.step()
        if rule.bounds is not None:
            with torch.no_grad():
                x.copy_(clamp(x, rule.bounds))
    return x.detach()


def typical_distance(vectors: Tensor) -> float:
    """The mean Euclidean distance between two different ones of (M, …)."""
    flat = vectors.flatten(1)
    return torch.pdist(flat).mean().item()


def _roughness(images: Tensor) -> Tensor:
    return total_variation(images, BETA) / images[0, 0].numel()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).norm(dim=1)
