"""A name for every net: `@register` beside the builder, `get_model` wherever one is needed.

A recipe, a chapter and the command line all name a net by a string, so the string has one home: the
decorator above the function that builds it.  A net knows nothing of data or training: it takes standardised
floats `(N, C, H, W)` and returns logits `(N, num_classes)`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from torch import nn

from repro.errors import ReproError, UnknownName, nearest

Builder = Callable[..., nn.Module]


class OptionError(ReproError, ValueError):
    """An option of a net was given a value that it does not take."""

    exit_code = 2


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

    Raises `UnknownName` for a net or an option that does not exist, with the nearest ones that do, and `OptionError`
    for a value that an option does not take.
    """
    info = model_info(name)
    kinds = inspect.signature(info.build, eval_str=True).parameters
    for option, value in options.items():
        if option not in info.options:
            raise UnknownName(f"{name} has no option {option!r}; {nearest(option, info.options)}")
        wanted = _what_is_wanted(value, kinds[option].annotation)
        if wanted:
            raise OptionError(f"{name}: option {option} is {wanted}, found {value!r}")
    return info.build(**options)


def _what_is_wanted(value: Any, kind: Any) -> str | None:
    """What an option annotated with `kind` takes, in words, if `value` is not of that kind; else None.

    Without it a recipe's `lrn = "no"` would count as true, and a net of no classes would fail far from its cause.
    """
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        return None if value in allowed else f"one of {', '.join(map(repr, allowed))}"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:  # every whole number that a net is told counts something it has
        return None if type(value) is int and value >= 1 else "a whole number from 1 on"
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and value >= 0 else "a number from 0 on"
    return None
