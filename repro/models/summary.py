"""Count a net: shapes, parameters, multiply-adds and connections, layer by layer.

Nothing is typed in: one forward pass of one image is watched with hooks, and every figure follows from the
shapes seen and the parameters held.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import singledispatch
from math import prod
from typing import Any, overload

import torch
from torch import Tensor, nn

from repro.models.layers import LocallyConnected2d, RBFOutput, SparseConv2d, TrainableSubsampling
from repro.tables import aligned_text, html_table


@singledispatch
def weights_per_position(layer: nn.Module) -> int:
    """How many weights a layer applies to compute its outputs at one place of the image, biases aside."""
    return 0  # activations, pooling, dropout: nothing is weighted


@weights_per_position.register
def _(layer: nn.Conv2d | nn.Linear | SparseConv2d) -> int:
    return layer.weight.numel()


@weights_per_position.register
def _(layer: LocallyConnected2d) -> int:
    return layer.weight[0].numel()


@weights_per_position.register
def _(layer: TrainableSubsampling) -> int:
    return layer.channels * layer.BLOCK**2


@weights_per_position.register
def _(layer: RBFOutput) -> int:
    return layer.codes.numel()


@dataclass(frozen=True)
class LayerRow:
    """One layer, for one image.

    `multiply_adds` counts one per weight applied; `connections` adds one per bias added, which is how the
    paper of 1998 counts.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]  # (C, H, W), or (features,)
    parameters: int
    multiply_adds: int
    connections: int


HEADER = ("layer", "kind", "output", "parameters", "multiply-adds", "connections")
TEXT_COLUMNS = 3  # the others are numbers


class LayerTable(Sequence[LayerRow]):
    """The rows of `layer_table`, with totals; prints as aligned text and shows as an HTML table."""

    def __init__(self, rows: Sequence[LayerRow]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> LayerRow: ...
    @overload
    def __getitem__(self, index: slice) -> "LayerTable": ...
    def __getitem__(self, index: int | slice) -> "LayerRow | LayerTable":
        return LayerTable(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self)

    @property
    def connections(self) -> int:
        return sum(row.connections for row in self)

    def layers_with_weights(self) -> "LayerTable":
        """The rows of layers that weigh their input: no activations, no pooling."""
        return LayerTable([row for row in self if row.multiply_adds])

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self:
            name, kind, shape, *counts = astuple(row)
            yield (name, kind, "×".join(map(str, shape)), *(f"{count:,}" for count in counts))
        totals = (self.parameters, self.multiply_adds, self.connections)
        yield ("total", "", "", *(f"{count:,}" for count in totals))

    def __str__(self) -> str:
        return aligned_text([HEADER, *self._cells()], TEXT_COLUMNS)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        *body, total = self._cells()
        return html_table(HEADER, body, [total], TEXT_COLUMNS, "layer-table")


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer in a forward pass; shapes are those of one image, without N."""

    name: str
    layer: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    first: bool  # no earlier call used the same layer
    chained: bool  # it reads what the layer before it gave (the first one: the image), reshaped at most


def layer_calls(model: nn.Module, input_size: tuple[int, int, int]) -> list[LayerCall]:
    """Run one image of noise `(C, H, W)` through a copy of `model` and list every layer it meets, in order.

    The copy runs in evaluation mode, so the model keeps its mode, its statistics and its generator's state. A layer
    is a module without children that takes one tensor; an operation written out in a `forward` is none, and where one
    changes what goes from a layer to the next, the next is not `chained`. A model on the meta device, which holds no
    values, is run too, and only a change in size is seen.
    """
    watched = copy.deepcopy(model).eval()
    originals = dict(model.named_modules())
    parameter = next(watched.parameters())
    image = torch.rand(1, *input_size, generator=torch.Generator().manual_seed(0))  # zeros would hide a change of sign
    last = image.to(parameter)
    version = last._version  # counts the changes made in place
    calls: list[LayerCall] = []
    seen: set[nn.Module] = set()
    chained: dict[nn.Module, bool] = {}

    def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        same = x.numel() == last.numel() if x.is_meta else torch.equal(x.flatten(), last.flatten())
        chained[layer] = last._version == version and same

    def watcher(name: str) -> Any:
        def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal last, version
            shapes = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
            calls.append(LayerCall(name, originals[name], *shapes, layer not in seen, chained[layer]))
            seen.add(layer)
            last, version = output, output._version

        return after

    for name, layer in watched.named_modules():
        if not any(layer.children()):
            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(watcher(name))
    with torch.no_grad():  # inference mode would keep no versions
        watched(last)
    seen.clear()  # the copy holds the hooks and they hold these: a circle that would keep its memory for long
    chained.clear()
    return calls


def layer_table(model: nn.Module, input_size: tuple[int, int, int]) -> LayerTable:
    """Count every layer that one image `(C, H, W)` meets in `model`, which is left as it was (`layer_calls`).

    A layer used several times has several rows; its parameters are counted in the first.
    """
    return LayerTable([layer_row(call) for call in layer_calls(model, input_size)])


def layer_row(call: LayerCall) -> LayerRow:
    parameters = sum(p.numel() for p in call.layer.parameters()) if call.first else 0
    places = prod(call.output_shape[1:])
    weights = weights_per_position(call.layer)
    biased = weights and isinstance(getattr(call.layer, "bias", None), Tensor)
    kind, shape = _kind(call.layer), call.output_shape
    biases = prod(shape) if biased else 0  # one is added to every output, whether places share it or not
    return LayerRow(call.name, kind, shape, parameters, weights * places, weights * places + biases)


def _kind(layer: nn.Module) -> str:
    """The class, with its kernel where it has one: `Conv2d 5×5`."""
    size = getattr(layer, "kernel_size", None)
    if size is None:
        return type(layer).__name__
    height, width = size if isinstance(size, tuple) else (size, size)
    return f"{type(layer).__name__} {height}×{width}"
