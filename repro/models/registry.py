"""A name for every net: `@register` beside the builder, `get_model` wherever one is needed.

A recipe, a chapter and the command line all name a net by a string, so the string has one home: the
decorator above the function that builds it.  A net knows nothing of data or training: it takes standardised
floats `(N, C, H, W)` and returns logits `(N, num_classes)`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repro.errors import UnknownName, nearest

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a net before it is built."""

    name: str
    build: Builder
    input_size: tuple[int, int, int]  # (C, H, W)
    source: str  # the paper or document the net is taken from
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments and their defaults


_MODELS: dict[str, ModelInfo] = {}


def register(name: str, *, input_size: tuple[int, int, int], source: str) -> Callable[[Builder], Builder]:
    """Enter a builder under `name`; its keyword arguments become the net's options."""

    def enter(build: Builder) -> Builder:
        if name in _MODELS:
            raise ValueError(f"two models are called {name!r}: {_MODELS[name].build} and {build}")
        options = {key: value.default for key, value in inspect.signature(build).parameters.items()}
        _MODELS[name] = ModelInfo(name, build, input_size, source, options)
        return build

    return enter


def list_models() -> list[str]:
    """The names `get_model` knows, in alphabetical order."""
    return sorted(_MODELS)


def model_info(name: str) -> ModelInfo:
    """What `name` was registered with; raises `UnknownName`, which offers the nearest names."""
    if name not in _MODELS:
        raise UnknownName(f"no model is called {name!r}; {nearest(name, _MODELS)}")
    return _MODELS[name]


def get_model(name: str, **options: Any) -> nn.Module:
    """Build the net `name` with fresh weights, drawn from torch's global generator.

    Raises `UnknownName` for a net or an option that does not exist, with the nearest ones that do.
    """
    info = model_info(name)
    for option in options:
        if option not in info.options:
            raise UnknownName(f"{name} has no option {option!r}; {nearest(option, info.options)}")
    return info.build(**options)
