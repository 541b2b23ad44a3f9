"""Count a net: shapes, parameters, multiply-adds and connections, layer by layer.

Nothing is typed in: one forward pass of a zero image is watched with hooks, and every figure follows from the
shapes seen and the parameters held.
"""

import copy
import html
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import singledispatch
from math import prod
from typing import Any, overload

import torch
from torch import Tensor, nn

from repro.models.layers import RBFOutput, SparseConv2d, TrainableSubsampling


@singledispatch
def weights_per_position(layer: nn.Module) -> int:
    """How many weights a layer applies to compute its outputs at one place of the image, biases aside."""
    return 0  # activations, pooling, dropout: nothing is weighted


@weights_per_position.register
def _(layer: nn.Conv2d | nn.Linear | SparseConv2d) -> int:
    return layer.weight.numel()


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
TEXT_COLUMNS, NUMBER_COLUMNS = 3 * ("text-align: left",), 3 * ("text-align: right",)


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
        lines = [HEADER, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text_columns = 3  # the others are numbers and align right
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < text_columns else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            aligned = zip(cells, TEXT_COLUMNS + NUMBER_COLUMNS, strict=True)
            filled = (f'<{tag} style="padding: 0.2em 0.8em; {to}">{html.escape(cell)}</{tag}>' for cell, to in aligned)
            return f"<tr>{''.join(filled)}</tr>"

        *body, total = self._cells()
        return (
            f'<table class="layer-table"><thead>{line(HEADER, "th")}</thead>'
            f"<tbody>{''.join(line(row, 'td') for row in body)}</tbody>"
            f"<tfoot>{line(total, 'td')}</tfoot></table>"
        )


def layer_table(model: nn.Module, input_size: tuple[int, int, int]) -> LayerTable:
    """Run one zero image `(C, H, W)` through a copy of `model` and list every layer it meets, in order.

    The copy runs in evaluation mode, so the model keeps its mode, its statistics and its generator's state.
    A layer used several times has several rows; its parameters are counted in the first.
    """
    watched = copy.deepcopy(model).eval()
    rows: list[LayerRow] = []
    seen: set[nn.Module] = set()

    def watcher(name: str) -> Any:
        def record(layer: nn.Module, _: Any, output: Tensor) -> None:
            parameters = 0 if layer in seen else sum(p.numel() for p in layer.parameters())
            seen.add(layer)
            shape = tuple(output.shape[1:])
            places = prod(shape[1:])
            weights = weights_per_position(layer)
            bias = getattr(layer, "bias", None)
            biases = bias.numel() if weights and isinstance(bias, Tensor) else 0
            rows.append(LayerRow(name, _kind(layer), shape, parameters, weights * places, (weights + biases) * places))

        return record

    for name, layer in watched.named_modules():
        if not any(layer.children()):
            layer.register_forward_hook(watcher(name))
    parameter = next(watched.parameters())
    with torch.inference_mode():
        watched(torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device))
    return LayerTable(rows)


def _kind(layer: nn.Module) -> str:
    """The class, with its kernel where it has one: `Conv2d 5×5`."""
    size = getattr(layer, "kernel_size", None)
    if size is None:
        return type(layer).__name__
    height, width = size if isinstance(size, tuple) else (size, size)
    return f"{type(layer).__name__} {height}×{width}"
