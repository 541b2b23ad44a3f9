"""The nets of the book, one file per paper; `list_models()` names them, `get_model(name)` builds one."""

from repro.models import alexnet, alexnet_variants, cuda_convnet, lenet, vgg  # importing a file enters its nets
from repro.models.registry import ModelInfo, get_model, list_models, model_info, register
from repro.models.summary import layer_table

__all__ = [
    "ModelInfo",
    "alexnet",
    "alexnet_variants",
    "cuda_convnet",
    "get_model",
    "layer_table",
    "lenet",
    "list_models",
    "model_info",
    "register",
    "vgg",
]
