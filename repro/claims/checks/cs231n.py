"""Checks for the course notes CS231n."""

from math import prod

from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.models.registry import model_info
from repro.models.summary import layer_table

LISTED = ("Conv2d", "MaxPool2d", "Linear")


@check
def listed_outputs(model: str) -> int:
    """The numbers of a picture and of the outputs of its convolutions, pools and linear layers, ReLUs in place."""
    input_size = model_info(model).input_size
    rows = layer_table(unbuilt(model), input_size)
    return prod(input_size) + sum(prod(row.output_shape) for row in rows if row.kind.startswith(LISTED))
