"""Occlusion of an image of 224×224 by a window of 32 pixels every 16, against captum, place by place the same.

Captum runs the whole net for every window: one at a time by default, or `perturbations_per_eval` of them, of which the
setting that is fastest here is taken first. Ours recomputes only what a window reaches, in float32 and, where the
processor multiplies it, in bf16; captum's sides stay as a user starts them, in float32.
"""

from collections.abc import Callable, Mapping

import torch
import torchvision
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor, nn

from benchmarks.harness import OURS, Comparison, alternate, require_close, timed
from repro.training.device import cpu_has_bf16, keep_freed_memory
from repro.visualization.occlusion import Precision, occlusion

SIZE, STRIDE = 32, 16
SETTINGS = (8, 32, 128)  # of `perturbations_per_eval`, from which captum's best is taken
CAPTUM = "captum, default"
ALEXNET_GOAL, BEST_GOAL = 9.0, 3.0
VGG_GOALS: Mapping[Precision, float] = {"float32": 6.0, "bf16": 12.0}


def compare(rounds: int) -> list[Comparison]:
    """Seconds for one image."""
    keep_freed_memory()
    torch.manual_seed(0)
    precisions: tuple[Precision, ...] = ("float32", "bf16") if cpu_has_bf16() else ("float32",)
    alexnet, vgg = (get(weights=None).eval() for get in (torchvision.models.alexnet, torchvision.models.vgg16))
    image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    best = fastest_setting(alexnet, image)
    found = alternating("AlexNet", alexnet, image, precisions, {CAPTUM: 1, f"captum, {best} at once": best}, rounds)
    goals: dict[str, float] = {CAPTUM: ALEXNET_GOAL, f"captum, {best} at once": BEST_GOAL}
    fastest = precisions[-1]
    comparisons = [
        row("AlexNet", precision, side, found, goals[side] if precision == fastest else None)
        for precision in precisions
        for side in goals
    ]
    found = alternating("VGG-16", vgg, image, precisions, {CAPTUM: 1}, rounds)
    return comparisons + [row("VGG-16", precision, CAPTUM, found, VGG_GOALS[precision]) for precision in precisions]


Found = tuple[dict[str, list[float]], str]


def alternating(
    name: str,
    model: nn.Module,
    image: Tensor,
    precisions: tuple[Precision, ...],
    captum: Mapping[str, int],
    rounds: int,
) -> Found:
    """Seconds of every round of all sides, and a note of how close ours in float32 came to captum."""
    sides: dict[str, Callable[[], object]] = {side: captum_side(model, image, n) for side, n in captum.items()}
    sides |= {precision: ours(model, image, precision) for precision in precisions}
    with torch.no_grad():
        clean = model(image[None])[0].max()  # the largest logit: that of the class the maps are of
    # A net of random weights hardly cares what is hidden: its differences are small beside the logits' rounding.
    logits, theirs = (
        clean - work() for work in (ours(model, image, "float32"), captum_side(model, image, SETTINGS[1]))
    )
    note = require_close("logits of float32", logits, theirs, 1e-5)
    return alternate(f"occlusion, {name}", {side: timed(work) for side, work in sides.items()}, rounds), note


def row(name: str, precision: Precision, side: str, found: Found, goal: float | None) -> Comparison:
    """Ours in this precision against one of captum's sides."""
    seconds, note = found
    data = f"224×224, {SIZE} px every {STRIDE}"
    kept = {OURS: seconds[precision], side: seconds[side]}
    return Comparison(f"occlusion {name}, {precision}", data, kept, goal, notes=[note])


def ours(model: nn.Module, image: Tensor, precision: Precision) -> Callable[[], Tensor]:
    """A run that gives the map of differences of logits (H, W)."""
    return lambda: occlusion(model, image, SIZE, STRIDE, precision=precision).drop(logits=True)


def captum_side(model: nn.Module, image: Tensor, at_once: int) -> Callable[[], Tensor]:
    """The same map by captum."""

    with torch.no_grad():
        target = int(model(image[None]).argmax())
    channels = image.shape[0]

    def work() -> Tensor:
        with torch.no_grad():
            found = CaptumOcclusion(model).attribute(
                image[None],
                (channels, SIZE, SIZE),
                (channels, STRIDE, STRIDE),
                target=target,
                perturbations_per_eval=at_once,
            )
        return found[0, 0]

    return work


def fastest_setting(model: nn.Module, image: Tensor) -> int:
    """The `perturbations_per_eval` of SETTINGS that is fastest in the better of two runs."""
    sides = {str(n): timed(captum_side(model, image, n)) for n in SETTINGS}
    seconds = alternate("occlusion, captum's best setting", sides, rounds=2)
    return int(min(seconds, key=lambda n: min(seconds[n])))
