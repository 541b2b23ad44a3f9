"""A net whose layers keep only some of their outputs, and dropout that still draws as the whole net would."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from repro.models.layers import Dropout2012
from repro.training.fusion import ByteDropout

DROPOUTS = (nn.Dropout, Dropout2012, ByteDropout)


def sizes_of(total: int, world_size: int) -> list[int]:
    """How many of `total` things each rank gets: as equal as possible, the first ranks one more."""
    return [len(part) for part in torch.arange(total).tensor_split(world_size)]


def slice_of(total: int, world_size: int, rank: int) -> slice:
    """Which of `total` things rank `rank` gets."""
    sizes = sizes_of(total, world_size)
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def share_of(rows: slice, world_size: int, rank: int) -> slice:
    """Which of some rows of a batch rank `rank` gets."""
    own = slice_of(rows.stop - rows.start, world_size, rank)
    return slice(rows.start + own.start, rows.start + own.stop)


def replaced(model: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None], prefix: str = "") -> nn.Module:
    """`model` with each layer for which `replace(name, layer)` returns another one in its place; all else is shared."""
    changed = copy.copy(model)
    changed._modules = {}
    for name, child in model.named_children():
        other = replace(prefix + name, child)
        changed._modules[name] = replaced(child, replace, f"{prefix}{name}.") if other is None else other
    return changed if changed._modules else model


def with_outputs(layer: nn.Conv2d | nn.Linear, which: slice, groups: int = 1) -> nn.Module:
    """A copy of a layer that computes those of its outputs alone, in `groups` groups; `whole_features` counts all."""
    kept = copy.deepcopy(layer)
    for name, p in layer.named_parameters():
        setattr(kept, name, nn.Parameter(p.detach()[which].clone(memory_format=torch.preserve_format)))
    if isinstance(kept, nn.Conv2d):
        kept.out_channels, kept.groups = len(kept.weight), groups
        kept.in_channels = groups * kept.weight.shape[1]
    else:
        kept.out_features = len(kept.weight)
        kept.__dict__["whole_features"] = layer.out_features
    return kept


@dataclass
class Draw:
    """Which samples of a global batch pass through the net now, for the layers that draw for all of them."""

    total: int = 0
    rows: slice | Tensor = field(default_factory=lambda: slice(None))


class SharedDropout(nn.Module):
    """Dropout of some samples and some units that has drawn for the whole batch and the whole layer.

    Every rank draws the same numbers, those that one process would draw, and uses its own part of them: the samples at
    `draw.rows` and, where the layer is shared too, `columns` of its `width` units. `(N, …)`; `inner` is any dropout
    that multiplies by what it has drawn.
    """

    def __init__(self, inner: nn.Module, draw: Draw, width: int | None = None, columns: slice = slice(None)) -> None:
        super().__init__()
        self.inner, self.draw, self.width, self.columns = inner, draw, width, columns

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            kept: Tensor = self.inner(x)
            return kept
        shape = x.shape[1:] if self.width is None else (self.width,)
        factors = self.inner(x.new_ones(self.draw.total, *shape))
        return x * factors[self.draw.rows, self.columns]


def share_dropout(called: nn.Module, draw: Draw, own: Callable[[int], slice]) -> nn.Module:
    """`called` with each dropout drawing for all; `own(width)` is this rank's part of the units of a linear layer.

    `width` is the number of units of the whole layer, which `called` may hold a part of; it stands in the layer's
    `whole_features` then. What comes before the first linear layer is never a part.
    """
    width: int | None = None

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        nonlocal width
        if isinstance(layer, nn.Linear):
            width = getattr(layer, "whole_features", layer.out_features)
        if not isinstance(layer, DROPOUTS):
            return None
        return SharedDropout(layer, draw) if width is None else SharedDropout(layer, draw, width, own(width))

    return replaced(called, replace)
