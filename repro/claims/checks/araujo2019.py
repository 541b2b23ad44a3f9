"""Fields of whole nets as size, effective stride and effective padding."""

from repro.claims.checks.leibe2017 import library_net
from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.receptive_field import FieldRow, receptive_field


@check
def field_facts(model: str, layer: str) -> list[int]:
    """Size, effective stride and effective padding of a layer's fields along one axis, in pixels."""
    return _facts(receptive_field(unbuilt(model))[layer])


@check
def library_field_facts(name: str, layer: str, side: int) -> list[int]:
    """The same of a net of torchvision, for square pictures of so many pixels a side."""
    return _facts(receptive_field(library_net(name), (3, side, side))[layer])


def _facts(row: FieldRow) -> list[int]:
    return [row.size[0], int(row.effective_stride[0]), int(row.effective_padding[0])]
