"""The nets of the book, one file per paper; `list_models()` names them, `get_model(name)` builds one."""

from repro.models import alexnet, lenet  # importing a file enters its nets in the registry
from repro.models.registry import ModelInfo, get_model, list_models, model_info, register
from repro.models.summary import layer_table

__all__ = [
    "ModelInfo",
    "alexnet",
    "get_model",
    "layer_table",
    "lenet",
    "list_models",
    "model_info",
    "register",
]
