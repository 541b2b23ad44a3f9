"""What each unit of a net reads of the image: its receptive field, as figures and pixel by pixel.

`receptive_field(model)` gives the table of a net, `stack` that of a list of layers; `register_window` tells of a layer
that it does not know. Chapter 13 derives the arithmetic.
"""

from repro.receptive_field.arithmetic import ReceptiveField, effective_kernel_size, output_size
from repro.receptive_field.calls import TraceError
from repro.receptive_field.effective import EffectiveField, effective_receptive_field
from repro.receptive_field.gradients import gradient_support
from repro.receptive_field.table import (
    Box,
    FieldRow,
    FieldTable,
    Misalignment,
    UnitBox,
    UnitError,
    full_size,
    receptive_field,
    stack,
)
from repro.receptive_field.trace import use_name
from repro.receptive_field.windows import (
    BOTH_SAME,
    Resample,
    Share,
    Slide,
    Spread,
    Whole,
    Window,
    Windows,
    register_window,
    slides,
)

__all__ = [
    "BOTH_SAME",
    "Box",
    "EffectiveField",
    "FieldRow",
    "FieldTable",
    "Misalignment",
    "ReceptiveField",
    "Resample",
    "Share",
    "Slide",
    "Spread",
    "TraceError",
    "UnitBox",
    "UnitError",
    "Whole",
    "Window",
    "Windows",
    "effective_kernel_size",
    "effective_receptive_field",
    "full_size",
    "gradient_support",
    "output_size",
    "receptive_field",
    "register_window",
    "slides",
    "stack",
    "use_name",
]
