"""The deconvnet: which pattern of pixels made a unit of a net respond to this image.

Zeiler and Fergus, *Visualizing and understanding convolutional networks* (ECCV 2014), section 2.1. The image is run
through the net, all but the chosen activations of a layer are set to zero, and what is left goes back down: a pooled
value to the place it came from (the switch), what is negative to zero, and through each layer's filters, transposed.
Chapter 17.

Transposed filters, and values put back at switches, are what backpropagation does, and what it does at a ReLU is a
rule (`relu_rules`), so that the net's own backward pass is the deconvnet, of chains and of nets with branches
(Simonyan, Vedaldi and Zisserman 2014, section 4). Choices that the paper leaves open:

- Where pooling windows overlap, two of them may have one switch: their values are added, as the transposed operation
  does. `torch.nn.functional.max_unpool2d` keeps one of them.
- Biases are left out. Batch normalisation, which is a factor and a bias per map once its statistics are fixed, is
  taken as part of the filters before it.
- Response normalisation is passed as if it were not there, as in the paper, whose deconvnet has no such step.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from repro.models.normalization import LocalResponseNorm, ResponseNormWithinMap
from repro.progress import track
from repro.visualization import probe
from repro.visualization.relu_rules import relu_rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.data.preparation import Preparation

RESPONSE_NORMS = (nn.LocalResponseNorm, nn.CrossMapLRN2d, LocalResponseNorm, ResponseNormWithinMap)

# What a net may do between image and layer, by the names of autograd: all of it linear in the image or a choice among
# its values, so that the way back is the transposed operation.
LINEAR = re.compile(
    "Add|Sub|Neg|Mean|Sum|(Adaptive|MkldnnAdaptive)?AvgPool2D|Upsample(Nearest|Bilinear)2D"
    "|(Constant|Reflection|Replication)Pad.*|Cat|Stack|Split|SplitWithSizes|Unbind|View|UnsafeView|ReshapeAlias"
    "|Permute|Transpose|T|Squeeze|Unsqueeze|Expand|Select|Slice|Index|IndexSelect|Clone|Copy|CopySlices|AsStrided"
    "|Alias|ToCopy|Im2Col|PixelShuffle"
)
ONE_FACTOR = {"Convolution", "Addmm", "Mm", "Bmm", "Mul", "Div", "Addcmul"}  # linear while one factor is a constant
CHOICES = {"MaxPool2DWithIndices", "AdaptiveMaxPool2D", "_Rectify"}
BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
INPUT = "AccumulateGrad"
WITHIN = 0.99  # the share of a pattern's values that a picture of it draws within its range


@dataclass(frozen=True)
class Reconstructions:
    """What the deconvnet of each image gives for one map of a layer."""

    layer: str
    unit: int
    """The map."""
    images: Tensor
    """(N, C, H, W), standardised."""
    pixels: Tensor
    """The patterns (N, C, H, W), in units of the standardised image times the activation; zero is no part in it."""
    places: Tensor | None
    """Row and column (N, 2) of the activation that was kept; None where the whole map was."""
    activations: Tensor
    """Its value (N,), or the sum of the map's."""

    def figure(self, prepare: "Preparation | None" = None, boxes: Tensor | None = None) -> "Figure":
        """The images above their patterns, which are grey where they are zero, each on its own scale.

        `boxes` (N, 4), as top, left, bottom, right, cuts both. Without `prepare` each image is on its own scale.
        """
        from matplotlib import pyplot as plt

        count = len(self.images)
        figure, axes = plt.subplots(2, count, figsize=(max(1.25 * count, 2.5), 2.8), squeeze=False)
        shown = as_pictures(self.images) if prepare is None else prepare.show(self.images)
        rows = {f"{self.layer}, map {self.unit}: images": shown, "patterns": as_patterns(self.pixels)}
        for row, (title, pictures) in zip(axes, rows.items(), strict=True):
            for ax, picture in zip(row, cut(pictures, boxes), strict=True):
                ax.imshow(picture.numpy(force=True))
                ax.set_axis_off()
            row[0].set_title(title, fontsize=10, loc="left")
        return figure


def deconvnet(
    model: nn.Module,
    images: Tensor,
    layer: str,
    unit: int | tuple[int, int, int],
    *,
    whole_map: bool = False,
    rule: str = "deconvnet",
    memory: int = probe.MEMORY,
) -> Reconstructions:
    """The patterns in standardised images (N, C, H, W) or (C, H, W) that made a unit of `layer` respond.

    `unit` is a map, of which the place with the largest value in each image is taken (`whole_map`: all of them), or a
    map, row and column. The activation keeps its value, which is the scale of the pattern. `rule` is what a ReLU does
    on the way back (`relu_rules`); another one shows what the deconvnet's does. Batches are as large as `memory` bytes
    allow. Raises `ProbeError` and `UnknownName` as `repro.visualization.probe` does, and `ProbeError`
    for a net that does, between image and layer, what has no transposed operation, such as a sigmoid.
    """
    images = probe.images_for(model, images)
    size = probe.batch_size(model, images.shape[1:], memory, gradients=True)
    with probe.untouched(model), relu_rule(rule):
        pass_normalisations(model)
        owners = watch_owners(model)
        parts = []
        for batch in track(images.split(size), len(images), "deconvnet", size):
            owners.clear()
            parts.append(_one_batch(model, batch, layer, unit, whole_map, owners))
    pixels, places, values = (torch.cat(each) for each in zip(*parts, strict=True))
    number = unit if isinstance(unit, int) else unit[0]
    return Reconstructions(layer, number, images, pixels, None if whole_map else places, values)


def _one_batch(
    model: nn.Module, images: Tensor, layer: str, unit: int | tuple[int, int, int], whole_map: bool, owners: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Patterns (N, C, H, W), places (N, 2) and activations (N,) of one batch."""
    with torch.enable_grad():
        x = images.clone().requires_grad_()
        maps = probe.as_maps(layer, probe.outputs(model, x, [layer])[layer])  # (N, C', H', W')
    chosen = probe.check_unit(layer, maps.shape[1:], unit)
    if whole_map and len(chosen) > 1:
        raise probe.ProbeError(f"layer {layer}: unit {unit} is one place; for the whole map give its number alone")
    check_way_back(layer, maps, owners)
    own = maps.detach()[:, chosen[0]]  # (N, H', W')
    places = _places(own, chosen[1:])
    kept = own if whole_map else torch.zeros_like(own)
    if not whole_map:
        at = torch.arange(len(own), device=own.device), places[:, 0], places[:, 1]
        kept[at] = own[at]
    signal = torch.zeros_like(maps)
    signal[:, chosen[0]] = kept
    (pixels,) = torch.autograd.grad(maps, x, signal)
    return pixels, places, kept.sum((1, 2))


def _places(maps: Tensor, given: tuple[int, ...]) -> Tensor:
    """Row and column (N, 2) of the largest value of each map (N, H, W), the first of equal ones, or those given."""
    if given:
        return torch.tensor(given, device=maps.device).expand(len(maps), 2)
    best = maps.flatten(1).argmax(1)
    return torch.stack((best // maps.shape[2], best % maps.shape[2]), 1)


def pass_normalisations(model: nn.Module) -> None:
    """Let every signal that comes back through a response normalisation pass unchanged, by hooks of its modules."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach() + (inputs[0] - inputs[0].detach())  # its values, and the input's way back

    for module in model.modules():
        if isinstance(module, RESPONSE_NORMS):
            module.register_forward_hook(hook)


def watch_owners(model: nn.Module) -> dict[Any, str]:
    """Filled as the net runs: the module without children that each step of autograd comes out of, by hooks."""
    owners: dict[Any, str] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                owners.setdefault(output.grad_fn, name)

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if not any(module.children()):
            watch(name, module)
    return owners


def check_way_back(layer: str, maps: Tensor, owners: dict[Any, str]) -> None:
    """Raises `ProbeError`, naming layer and operation, unless all between image and `maps` can be transposed."""
    if maps.grad_fn is None:
        raise probe.ProbeError(f"layer {layer}: does not depend on the image")
    for node, owner in _steps(maps.grad_fn, owners, layer):
        name = re.sub(r"Backwards?\d*$", "", node.name()).rsplit(":", 1)[-1]
        factors = [step for step, _ in node.next_functions if step is not None]
        divides = name == "Div" and node.next_functions[0][0] is None
        known = bool(LINEAR.fullmatch(name)) or name in CHOICES | {INPUT}
        known |= name in ONE_FACTOR and len(factors) == 1 and not divides
        known |= name in BATCH_NORMS and not node._saved_training
        if not known:
            raise probe.ProbeError(
                f"layer {layer}: on the way to it, in or just before {owner}, is {name.strip('_')}, which has no "
                "transposed operation; the deconvnet is for convolutions, ReLUs and pools"
            )


def _steps(last: Any, owners: dict[Any, str], layer: str) -> Iterator[tuple[Any, str]]:
    """Every step of autograd from `last` back to the image, once, with the module that it is in."""
    waiting, seen = [(last, layer)], set()
    while waiting:
        node, above = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        owner = owners.get(node, above)
        yield node, owner
        waiting += [(step, owner) for step, _ in node.next_functions if step is not None]


def as_patterns(pixels: Tensor) -> Tensor:
    """Patterns (N, C, H, W) as colours (N, H, W, 3) of 0…1: zero is grey, and each pattern has its own scale.

    A hundredth of the values but zero lies beyond black or white, so that a few large ones don't hide the rest.
    """
    colours = _colours(pixels)
    reach = [one[one != 0].abs().quantile(WITHIN) if one.any() else one.new_ones(()) for one in colours]
    return (0.5 + colours / (2 * torch.stack(reach)[:, None, None, None])).clamp(0, 1)


def as_pictures(images: Tensor) -> Tensor:
    """Images (N, C, H, W) of any scale as colours (N, H, W, 3) of 0…1, the smallest value of each black."""
    colours = _colours(images)
    low, high = colours.amin((1, 2, 3), keepdim=True), colours.amax((1, 2, 3), keepdim=True)
    return (colours - low) / (high - low).where(high > low, torch.ones_like(high))


def _colours(values: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, 3) on the CPU: three channels as they are, the mean of any other number as grey."""
    values = values if values.shape[1] == 3 else values.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return values.detach().cpu().permute(0, 2, 3, 1)


def cut(pictures: Tensor, boxes: Tensor | None) -> list[Tensor]:
    """Pictures (N, H, W, C) one by one, each cut to its box (top, left, bottom, right) if `boxes` are given."""
    if boxes is None:
        return list(pictures)
    sides = boxes.tolist()
    return [p[top:bottom, left:right] for p, (top, left, bottom, right) in zip(pictures, sides, strict=True)]
