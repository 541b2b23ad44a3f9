"""Occlusion: what a net says of an image while a window of one colour is moved over it.

Zeiler & Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4.2 and figure 7: for each
place of the window the probability of the true class, the most probable class, and the total activation of the map of
a high layer that is strongest without the window. Chapter 18.

Windows stand where `captum.attr.Occlusion` puts them: the first in the top left corner, the next ones `stride` further
until the border is reached; the last may hang over the border and then hides what is left of the image there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from repro.errors import UnknownName, nearest
from repro.models.describe import POINTWISE
from repro.models.layers import LocallyConnected2d, SparseConv2d
from repro.models.summary import weights_per_position
from repro.progress import track
from repro.receptive_field.reach import Reach
from repro.training.device import autocast, choose_precision
from repro.visualization.cone import Cone, ConeError, kept_bytes, occlude, share, total, trace_cone
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["auto", "batched", "cone"]
Precision = Literal["float32", "bf16", "auto"]
Pair = tuple[int, int]  # down and across
WORTH = 0.75  # of the multiply-adds: below it a cone pays for putting its pieces together


@dataclass(frozen=True)
class Occlusion:
    """A net's answers for every place of the window: h places down, w across."""

    logits: Tensor
    """(h, w, K), float32: what the net gives for the K classes."""
    activation: Tensor
    """(h, w), float32: the sum over map `unit` of `layer`."""
    clean_logits: Tensor
    """(K,): without a window."""
    clean_activation: float
    target: int
    layer: str
    unit: int
    input_size: Pair
    size: Pair
    stride: Pair
    method: str
    precision: str

    @property
    def probability(self) -> Tensor:
        """(h, w): of the class `target`."""
        return self.logits.softmax(2)[..., self.target]

    @property
    def predicted(self) -> Tensor:
        """(h, w), int64: the most probable class."""
        return self.logits.argmax(2)

    @property
    def clean_probability(self) -> float:
        """Of the class `target`, without a window."""
        return float(self.clean_logits.softmax(0)[self.target])

    @cached_property
    def boxes(self) -> Tensor:
        """The pixels that each window hides: int64 (h, w, 4), top, left, bottom and right, the last two exclusive."""
        return window_boxes(self.input_size, self.size, self.stride)

    def drop(self, logits: bool = False) -> Tensor:
        """(H, W): how far the target's probability, or logit, falls in the mean of the windows that hide a pixel.

        This is the attribution that `captum.attr.Occlusion` gives.
        """
        if logits:
            falls = self.clean_logits[self.target] - self.logits[..., self.target]
        else:
            falls = self.clean_probability - self.probability
        fallen, count = torch.zeros(2, *self.input_size, dtype=torch.float64)
        for fall, (top, left, bottom, right) in zip(
            falls.flatten().tolist(), self.boxes.flatten(0, 1).tolist(), strict=True
        ):
            fallen[top:bottom, left:right] += fall
            count[top:bottom, left:right] += 1
        return (fallen / count).float()

    def figure(self, image: Any = None, classes: Sequence[str] | None = None) -> "Figure":
        """The panels of figure 7 of 2014: see `repro.visualization.occlusion_figure.draw`."""
        from repro.visualization.occlusion_figure import draw

        return draw(self, image, classes)


def occlusion(
    model: nn.Module,
    image: Tensor,
    size: int | Pair,
    stride: int | Pair,
    target: int | None = None,
    layer: str | None = None,
    value: float | Tensor = 0.0,
    method: Method = "auto",
    precision: Precision = "float32",
    memory: int = MEMORY,
) -> Occlusion:
    """Hide one window after the other of a standardised image (C, H, W) and ask the net, which gives logits (N, K).

    size, stride: of the window, in pixels, or (down, across).
    target: the class whose probability is asked for, best the true one; None takes the net's own answer for the image.
    layer: where the strongest map is sought, by its sum over places; None takes the last convolution, with the
    activation and whatever else follows it place by place.
    value: what stands in the window, standardised: a number, or one for each of C channels. 0 is the training images'
    mean.
    method: "cone" computes only the units that a window reaches (`repro.visualization.cone`), which a chain of layers
    allows; "batched" runs the whole net; "auto" takes the cone where it saves work.
    precision: "float32", "bf16", or "auto": bf16 where the machine is fast in it and the net is large enough.
    memory: bytes that a batch's maps may take, with what the cone keeps of the clean image. One window always runs.

    Raises `ProbeError` for a window, target or net that does not fit (`ConeError` with "cone" alone), `UnknownName`
    for a layer, method or precision that there is not.
    """
    size, stride = pair("size", size), pair("stride", stride)
    for what, chosen, known in (("method", method, Method), ("precision", precision, Precision)):
        if chosen not in get_args(known):
            raise UnknownName(f"{what} {chosen!r}: there is none; {nearest(chosen, get_args(known))}")
    images = images_for(model, image).contiguous(memory_format=torch.channels_last)
    if len(images) != 1:
        raise ProbeError(f"image: one is needed, found {len(images)}")
    input_size = images.shape[2], images.shape[3]
    boxes = window_boxes(input_size, size, stride)
    fill = colour(value, images)
    with untouched(model), torch.no_grad():
        with autocast(images.device, precision):  # with "auto" in float32, as nothing is known yet
            last, multiply_adds = survey(model, images)
        layer = layer or last
        precision = cast(Precision, choose_precision(precision, images.device, multiply_adds))
        with autocast(images.device, precision):
            cone = None if method == "batched" else find_cone(model, images, layer, method == "cone")
            clean, maps = (cone.logits.float(), cone.maps) if cone else ask(model, images, layer)
            unit = int(maps[0].float().sum((1, 2)).argmax())
            target = int(clean[0].argmax()) if target is None else target
            if not 0 <= target < clean.shape[1]:
                raise ProbeError(f"target: class {target} is out of range: 0 to {clean.shape[1] - 1}")
            windows = (
                Reach.within(boxes[:, 0, 0].numpy(), boxes[:, 0, 2].numpy(), input_size[0]),
                Reach.within(boxes[0, :, 1].numpy(), boxes[0, :, 3].numpy(), input_size[1]),
            )
            if cone and method == "auto" and (share(cone, windows) > WORTH or 2 * kept_bytes(cone) > memory):
                cone = None
            if cone:
                logits, activation = occlude(cone, windows, fill, unit, memory)
            else:
                logits, activation = batched(model, images, boxes.flatten(0, 1), fill, layer, unit, memory)
    places = boxes.shape[:2]
    return Occlusion(
        logits=logits.view(*places, -1),
        activation=activation.view(places),
        clean_logits=clean[0],
        clean_activation=float(total(maps[:, unit, None])),
        target=target,
        layer=layer,
        unit=unit,
        input_size=input_size,
        size=size,
        stride=stride,
        method="cone" if cone else "batched",
        precision=precision,
    )


def find_cone(model: nn.Module, images: Tensor, layer: str, needed: bool) -> Cone | None:
    """The cone; where the net has none, None, or `ConeError` if it is `needed`."""
    find_layer(model, layer)
    try:
        return trace_cone(model, images, layer)
    except ConeError:
        if needed:
            raise
        return None


def pair(name: str, value: int | Pair) -> Pair:
    """A length down and across in pixels, at least 1."""
    found = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(found) != 2 or any(type(n) is not int or n < 1 for n in found):
        raise ProbeError(f"{name}: pixels, or (down, across), of at least 1 are needed, found {value!r}")
    return found[0], found[1]


def window_boxes(input_size: Pair, size: Pair, stride: Pair) -> Tensor:
    """The windows over an image (H, W): int64 (h, w, 4), top, left, bottom and right, the last two exclusive."""
    axes = []
    for what, n, k, s in zip(("high", "wide"), input_size, size, stride, strict=True):
        if k > n:
            raise ProbeError(f"size: a window {k} pixels {what} does not fit into an image of {n}")
        if s > k and k < n:
            raise ProbeError(f"stride: with {s} pixels between windows of {k} some pixels are never hidden")
        first = torch.arange(ceil((n - k) / s) + 1) * s
        axes.append((first, (first + k).clamp(max=n)))
    (tops, bottoms), (lefts, rights) = axes
    rows, columns = len(tops), len(lefts)
    sides = tops[:, None], lefts[None], bottoms[:, None], rights[None]
    return torch.stack([side.expand(rows, columns) for side in sides], 2)


def colour(value: float | Tensor, images: Tensor) -> Tensor:
    """What stands in a window: (C, 1, 1) of the images' dtype."""
    fill = torch.as_tensor(value, dtype=images.dtype, device=images.device).flatten()
    if len(fill) not in (1, images.shape[1]) or not fill.isfinite().all():
        raise ProbeError(f"value: a number or {images.shape[1]} numbers are needed, found {value}")
    return fill.expand(images.shape[1]).view(-1, 1, 1)


def ask(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Logits (N, K) in float32 and the maps (N, C, H, W) of a layer."""
    found: list[Tensor] = []
    handle = model.register_forward_hook(lambda _model, _inputs, output: found.append(output))
    try:
        maps = as_maps(layer, outputs(model, images, [layer])[layer])
    finally:
        handle.remove()
    logits = found[-1]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ProbeError(f"model: gives {given}; a net that gives logits (N, classes) is needed")
    return logits.float(), maps


def survey(model: nn.Module, images: Tensor) -> tuple[str, int]:
    """The layer whose strongest map is looked at when none is named, and the net's multiply-adds for an image.

    The last convolution, or the last of the layers behind it that work on its output place by place. Raises
    `ProbeError` for a net without convolutions, or one whose answers for an image depend on the others in a batch.
    """
    names = {module: name for name, module in model.named_modules()}
    chain: list[str] = []
    last: Tensor | None = None
    multiply_adds = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal last, multiply_adds
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ProbeError(f"{names[module]}: normalises by the batch, so that windows would change each other")
        if isinstance(output, Tensor):
            multiply_adds += weights_per_position(module) * prod(output.shape[2:])
        if isinstance(module, nn.Conv2d | SparseConv2d | LocallyConnected2d):
            chain[:] = [names[module]]
        elif chain and isinstance(module, POINTWISE) and inputs[0] is last and output.ndim == 4:
            chain.append(names[module])
        else:
            last = None
            return
        last = output

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch) for module in leaves]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not chain:
        raise ProbeError("model: has no convolution; occlusion looks at its maps")
    return chain[-1], multiply_adds


def batched(
    model: nn.Module, images: Tensor, boxes: Tensor, fill: Tensor, layer: str, unit: int, memory: int
) -> tuple[Tensor, Tensor]:
    """The whole net for each window (n, 4), as many at once as memory allows: logits (n, K), sums over a map (n,)."""
    _, maps = ask(model, images, layer)
    # Beside the layers' own maps, the images and those of `layer` stay while the others run.
    each = memory // batch_size(model, images.shape[1:], memory) + 4 * (images.numel() + maps.numel())
    most = max(1, memory // each)
    logits, sums = [], []
    for chunk in track(boxes.split(most), len(boxes), "occlusion", weight=most):
        hidden = torch.empty_like(images.expand(len(chunk), -1, -1, -1), memory_format=torch.channels_last)
        hidden.copy_(images)
        for one, (top, left, bottom, right) in zip(hidden, chunk.tolist(), strict=True):
            one[:, top:bottom, left:right] = fill
        answers, maps = ask(model, hidden, layer)
        logits.append(answers)
        sums.append(total(maps[:, unit, None]))
    return torch.cat(logits), torch.cat(sums)
