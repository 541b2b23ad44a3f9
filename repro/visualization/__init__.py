"""Figures and explorers for the chapters; matplotlib and torch are imported only by what needs them.

An explorer is a small interactive picture that answers in the built page, without a kernel, exactly as it
does in Jupyter. Each method of looking into a net has a module of its own: `from repro.visualization.filters import
filters`; `probe` holds what they share.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro.visualization import figures
    from repro.visualization.explorer import Explorer, augmentation_explorer, convolution_explorer
    from repro.visualization.occlusion_brush import occlusion_explorer
    from repro.visualization.receptive_fields import receptive_field_builder, receptive_field_explorer

HOMES = {
    "Explorer": "explorer",
    "augmentation_explorer": "explorer",
    "convolution_explorer": "explorer",
    "occlusion_explorer": "occlusion_brush",
    "receptive_field_builder": "receptive_fields",
    "receptive_field_explorer": "receptive_fields",
}

__all__ = [
    "Explorer",
    "augmentation_explorer",
    "convolution_explorer",
    "figures",
    "occlusion_explorer",
    "receptive_field_builder",
    "receptive_field_explorer",
]


def __getattr__(name: str) -> Any:
    if name == "figures":
        return importlib.import_module("repro.visualization.figures")
    if name in HOMES:
        return getattr(importlib.import_module(f"repro.visualization.{HOMES[name]}"), name)
    raise AttributeError(f"module 'repro.visualization' has no attribute {name!r}")
