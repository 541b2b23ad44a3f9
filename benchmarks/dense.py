"""Dense evaluation against crops: the same answers at the same places, once over the whole picture.

VGG-16 at 384 against all its 36 crops in one batch, and torchvision's AlexNet at 461×569 against its 88 crops one after
the other, as a first program would do it. VGG-16 in bf16 where the processor multiplies it.
The nets pad, so their scores differ: a crop alone ends in zeros where the picture goes on. So the sides are held
against each other without padding, and at one crop with it.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import OURS, Comparison, alternate, measure_peaks, require_close, timed
from repro.dense import FullyConvolutional, convolutionize
from repro.models import get_model
from repro.models.summary import layer_table
from repro.training.device import autocast, channels_last, choose_precision, keep_freed_memory

CPU = torch.device("cpu")
VGG_GOAL, ALEXNET_GOAL = 8.0, 15.0
VGG_SIDE = 384
ALEXNET_PICTURE = (461, 569)


def compare(rounds: int) -> list[Comparison]:
    """Seconds for one picture."""
    keep_freed_memory()
    vgg = channels_last(get_model("vgg16").eval())
    precision = choose_precision("auto", CPU, layer_table(vgg, (3, 224, 224)).multiply_adds)
    return [
        row(f"dense VGG-16, {precision}", vgg, (VGG_SIDE, VGG_SIDE), precision, batched, VGG_GOAL, rounds),
        row(
            "dense AlexNet, float32",
            get_model("alexnet").eval(),
            ALEXNET_PICTURE,
            "float32",
            one_by_one,
            ALEXNET_GOAL,
            rounds,
        ),
    ]


def row(
    subject: str,
    model: nn.Module,
    size: tuple[int, int],
    precision: str,
    crops: Callable[[nn.Module, Tensor, Tensor], Tensor],
    goal: float,
    rounds: int,
) -> Comparison:
    """Ours against `crops` in this precision."""
    net = convolutionize(channels_last(copy.deepcopy(model)))
    picture = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    picture = picture.contiguous(memory_format=torch.channels_last)
    grid = net.grid(*size)
    boxes = grid.boxes[grid.inside]

    def dense() -> Tensor:
        with torch.inference_mode(), autocast(CPU, precision):
            return net(picture)

    def cropped() -> Tensor:
        with torch.inference_mode(), autocast(CPU, precision):
            return crops(model, picture, boxes)

    note = require_same(model, net, picture)
    name = {batched: "crops in a batch", one_by_one: "crops in a loop"}[crops]
    seconds = alternate(subject, {OURS: timed(dense), name: timed(cropped)}, rounds)
    peaks = measure_peaks(torch.bfloat16 if precision == "bf16" else torch.float32)
    data = f"{size[0]}×{size[1]}, {len(boxes)} crops"
    return Comparison(subject, data, seconds, goal, flop=flop(net, picture), peaks=peaks, notes=[note])


def batched(model: nn.Module, picture: Tensor, boxes: Tensor) -> Tensor:
    """The scores of all crops (crops, K), run together."""
    cuts = [picture[:, :, top:bottom, left:right] for top, left, bottom, right in boxes.tolist()]
    return model(torch.cat(cuts).contiguous(memory_format=torch.channels_last))


def one_by_one(model: nn.Module, picture: Tensor, boxes: Tensor) -> Tensor:
    """The scores of all crops (crops, K), each run alone, in the layout that a plain program leaves them in."""
    cuts = (picture[:, :, top:bottom, left:right] for top, left, bottom, right in boxes.tolist())
    return torch.cat([model(cut.contiguous()) for cut in cuts])


@torch.inference_mode()
def require_same(model: nn.Module, net: FullyConvolutional, picture: Tensor) -> str:
    """Raise AssertionError unless without padding, in float32, the last crop has the same maps alone and within.

    Without padding the maps are smaller than the fully connected layers need, and those are compared at one crop.
    """
    grid = net.grid(*picture.shape[2:])
    top, left, bottom, right = grid.boxes[grid.inside][-1].tolist()
    crop = picture[:, :, top:bottom, left:right]
    features = copy.deepcopy(model.get_submodule("features"))
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    alone, whole = features(crop), features(picture)
    row, column = top // grid.stride[0], left // grid.stride[1]
    there = whole[:, :, row : row + alone.shape[2], column : column + alone.shape[3]]
    maps = require_close("maps without padding", there, alone, 1e-5)
    return f"{maps}; {require_close('scores of a crop', net(crop).flatten(1), model(crop), 1e-5)}"


def flop(net: FullyConvolutional, picture: Tensor) -> int:
    """Floating-point operations of one dense run."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(picture)
    return counter.get_total_flops()
