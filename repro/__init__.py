"""LeNet, AlexNet and VGG computed again: the package beneath the book *Convnets, Reproduced*.

`repro.models` holds the nets, `repro.data` the pictures, `repro.training` the loop, `repro.records` what
long runs measured. Nothing heavy is imported until it is used, so `import repro` takes milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from repro import data, models, records, training
    from repro.data import load
    from repro.models import get_model, list_models

_ROOMS = ["data", "dense", "errors", "evaluation", "models", "receptive_field", "records", "training", "visualization"]
_SHORTCUTS = {"load": "repro.data", "list_models": "repro.models", "get_model": "repro.models"}

__all__ = ["__version__", "data", "get_model", "list_models", "load", "models", "records", "training"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"repro.{name}")
    if name in _SHORTCUTS:
        return getattr(importlib.import_module(_SHORTCUTS[name]), name)
    raise AttributeError(f"module 'repro' has no attribute {name!r}")
