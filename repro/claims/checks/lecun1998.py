"""What the paper of 1998 makes of its net: connections, table I, the squashing function, the two losses."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from repro import records
from repro.claims.checks import find
from repro.claims.checks.nets import output_shape
from repro.claims.checks.registry import check
from repro.models import get_model, layer_table, lenet
from repro.models.layers import ScaledTanh
from repro.models.registry import model_info
from repro.receptive_field import receptive_field
from repro.training.optim import loss_function


@check
def several(of: str, over: str, values: Sequence[Any], **arguments: Any) -> list[Any]:
    """What another check, `of`, finds for each value of its argument `over`."""
    return [find(of)(**arguments, **{over: value}) for value in values]


@check
def connections(model: str, part: str = "", **options: Any) -> int:
    """Links from a unit or a bias to a unit, in a net or the layers whose names begin with `part`, for one image."""
    with torch.device("meta"):
        table = layer_table(get_model(model, **options), model_info(model).input_size)
    return sum(row.connections for row in table if row.name.startswith(part))


@check
def side(model: str, layer: str, **options: Any) -> int:
    """How many units a layer's maps have from top to bottom."""
    return output_shape(model, layer, **options)[1]


@check
def span_of_fields(model: str, layer: str) -> int:
    """The side, in pixels, of the square that a layer's units divide among them: their number times their stride."""
    with torch.device("meta"):
        row = receptive_field(get_model(model), model_info(model).input_size)[layer]
    return row.output_size[0] * int(row.effective_stride[0])


@check
def maps_of_c3_that_read(maps: int) -> int:
    """How many of the maps of C3 read this number of maps of S2, by table I."""
    return sum(len(inputs) == maps for inputs in lenet.C3_TABLE)


@check
def squashed(a: float) -> float:
    """The squashing function of appendix A at `a`."""
    return ScaledTanh()(torch.tensor(a, dtype=torch.float64)).item()


@check
def loss_prefers(loss: Literal["lenet5_mse", "lenet5_map"]) -> str:
    """Which drawings of the ten digits lose less: right ones, all equal ones to codes that are all equal, or neither.

    Right ones are the digits' codes themselves, as far from the other codes as these are from each other; where all
    are equal each distance is 0.
    """
    codes = lenet.digit_codes()  # (10, 84)
    right = -(codes[:, None] - codes).square().sum(2)  # (10, 10): logits
    labels = torch.arange(len(codes))
    of = loss_function(loss)
    gain = float(of(torch.zeros_like(right), labels) - of(right, labels))
    return "neither" if gain == 0 else "right drawings" if gain > 0 else "equal drawings"


@check
def pictures_read(recipe: str) -> list[int]:
    """How many pictures the first recorded run of a recipe counted in its training and its test set."""
    run = records.load(recipe)[0]
    return [run.data[split]["count"] for split in ("train", "test")]
