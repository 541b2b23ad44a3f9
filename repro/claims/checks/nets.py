"""Counts of nets: parameters, multiply-adds, shapes, fields. The nets are built without weights."""

from functools import cache
from typing import Any

import torch
from torch import nn

from repro.claims.checks.registry import check
from repro.models import get_model
from repro.models.registry import model_info
from repro.models.summary import LayerTable, layer_table
from repro.receptive_field import FieldTable, receptive_field


def unbuilt(model: str, **options: Any) -> nn.Module:
    """A net of ours without weights, one for all who ask: it is not to be changed."""
    return _net(model, _given(options))


@cache
def _net(model: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    with torch.device("meta"):
        return get_model(model, **dict(options))


@cache
def _table(model: str, options: tuple[tuple[str, Any], ...]) -> LayerTable:
    return layer_table(_net(model, options), model_info(model).input_size)


@cache
def _fields(model: str, options: tuple[tuple[str, Any], ...]) -> FieldTable:
    return receptive_field(_net(model, options))


def _given(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(options.items()))


@check
def parameters(model: str, part: str = "", **options: Any) -> int:
    """Parameters of a net, or of a part of it, as `classifier` or `features.conv1`."""
    return sum(p.numel() for p in _net(model, _given(options)).get_submodule(part).parameters())


@check
def multiply_adds(model: str, part: str = "", **options: Any) -> int:
    """Weights applied to one image, by a net or the layers whose names begin with `part`."""
    return sum(r.multiply_adds for r in _table(model, _given(options)) if r.name.startswith(part))


@check
def output_shape(model: str, layer: str, **options: Any) -> list[int]:
    """What a layer gives for one image: (C, H, W), or (features,)."""
    return list(next(r.output_shape for r in _table(model, _given(options)) if r.name == layer))


@check
def units(model: str, layer: str, **options: Any) -> int:
    """How many numbers a layer gives for one image."""
    count = 1
    for size in output_shape(model, layer, **options):
        count *= size
    return count


@check
def field_size(model: str, layer: str, **options: Any) -> int:
    """The receptive field of a layer's units along one axis, in pixels."""
    return _fields(model, _given(options))[layer].size[0]


@check
def count_layers(model: str, kind: str, **options: Any) -> int:
    """How many layers of a class of `torch.nn` a net has, as `Conv2d` or `Linear`."""
    return sum(isinstance(m, getattr(nn, kind)) for m in _net(model, _given(options)).modules())
