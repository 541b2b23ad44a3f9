"""Figures and explorers for the chapters; matplotlib and torch are imported only by what needs them.

An explorer is a small interactive picture that answers in the built page, without a kernel, exactly as it
does in Jupyter.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro.visualization import figures
    from repro.visualization.explorer import Explorer, augmentation_explorer, convolution_explorer
    from repro.visualization.receptive_fields import receptive_field_builder, receptive_field_explorer

__all__ = [
    "Explorer",
    "augmentation_explorer",
    "convolution_explorer",
    "figures",
    "receptive_field_builder",
    "receptive_field_explorer",
]


def __getattr__(name: str) -> Any:
    if name == "figures":
        return importlib.import_module("repro.visualization.figures")
    if name in ("receptive_field_builder", "receptive_field_explorer"):
        return getattr(importlib.import_module("repro.visualization.receptive_fields"), name)
    if name in __all__:
        return getattr(importlib.import_module("repro.visualization.explorer"), name)
    raise AttributeError(f"module 'repro.visualization' has no attribute {name!r}")
