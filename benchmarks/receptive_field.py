"""What a unit of VGG-16 reads at 224×224: the arithmetic against the gradient of that unit.

The gradient is the ordinary way to find it: positive weights, averages for maxima, and one backward pass from the unit
through a graph that is there already, so that the forward pass is not counted. Both sides name the same rectangle.
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Comparison, Side, alternate, timed
from repro.models import get_model
from repro.receptive_field import Box, FieldTable, receptive_field

MODEL, SIZE = "vgg16", 224
GOAL, LIMIT = 1_000.0, 1.0
MIDDLE = 3, 3


def compare(rounds: int) -> list[Comparison]:
    """Seconds of one rectangle from a ready table, and of the whole table."""
    model = get_model(MODEL)
    table = receptive_field(model, SIZE)
    layer = next(name for name, module in reversed(list(model.named_modules())) if isinstance(module, nn.MaxPool2d))
    image, unit = positive_unit(model, layer)
    note = require_same(table, layer, gradient(image, unit))
    backward = {"gradient of the unit": timed(partial(gradient, image, unit))}
    one = "one unit's field, VGG-16"
    whole = "the table of all fields, VGG-16"
    data = f"{layer} {MIDDLE}, {SIZE}×{SIZE}"
    return [
        Comparison(one, data, alternate(one, {OURS: boxes(table, layer)} | backward, rounds), GOAL, notes=[note]),
        Comparison(
            whole,
            f"{len(table)} layers, {SIZE}×{SIZE}",
            alternate(whole, {OURS: timed(lambda: receptive_field(model, SIZE))} | backward, rounds),
            limit=LIMIT,
        ),
    ]


def positive_unit(model: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
    """An image, and the middle unit of a layer over all maps, of the model with positive weights and averages."""
    layers = nn.Sequential()
    for name, module in model.get_submodule(layer.partition(".")[0]).named_children():
        pool = isinstance(module, nn.MaxPool2d)
        layers.add_module(name, nn.AvgPool2d(module.kernel_size, module.stride) if pool else module)  # type: ignore
    with torch.no_grad():
        for weight in layers.parameters():
            weight.fill_(1 / weight[0].numel() if weight.ndim > 1 else 0.0)
    image = torch.ones(1, 3, SIZE, SIZE, requires_grad=True)
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    return image, layers(image)[0, :, MIDDLE[0], MIDDLE[1]].sum()


def gradient(image: Tensor, unit: Tensor) -> Tensor:
    """One backward pass; the graph stays for the next."""
    return torch.autograd.grad(unit, image, retain_graph=True)[0]


def boxes(table: FieldTable, layer: str) -> Side:
    """Seconds of one rectangle: the mean of all units of the layer, since one alone is too short for the clock."""
    rows, cols = table[layer].output_size
    units = [(row, col) for row in range(rows) for col in range(cols)]
    side = timed(lambda: [table.box(layer, row, col) for row, col in units])
    return lambda: side() / len(units)


def require_same(table: FieldTable, layer: str, found: Tensor) -> str:
    """Raise AssertionError unless the pixels with a gradient are those of the table."""
    read = found[0].ne(0).any(0)
    rows, cols = read.any(1).nonzero(), read.any(0).nonzero()
    box = Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    if not (torch.equal(read, table.support(layer, *MIDDLE)) and table.box(layer, *MIDDLE).clipped == box):
        raise AssertionError(f"{layer}: the sides name other pixels: not the same work")
    return f"the same {int(read.sum()):,} pixels"
