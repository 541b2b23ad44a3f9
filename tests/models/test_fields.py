"""Receptive fields along real nets, held against gradients and against published figures."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repro.models import get_model
from repro.models.fields import receptive_fields
from repro.models.layers import SparseConv2d, TrainableSubsampling
from repro.models.summary import layer_calls

SIDE = 80


def rows_read(layers: nn.Module, row: int) -> tuple[int, int]:
    """First row with a gradient and the one after the last, for the units of one output row, over all maps and images.

    Several images, because a maximum passes its gradient to one pixel only.
    """
    images = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(layers.double()(images)[:, :, row].sum(), images)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    return int(rows[0]), int(rows[-1]) + 1


def sparse() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, bias=False), TrainableSubsampling(4), SparseConv2d(4, ((0, 1), (2, 3)), 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "cuda_convnet_18pct": lambda: get_model("cuda_convnet_18pct").features,
    "lenet5_modern": lambda: nn.Sequential(nn.Conv2d(3, 1, 1), *get_model("lenet5_modern").features),
    "sparse": sparse,
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, dilation=3, padding="same"), nn.AvgPool2d(2), nn.Conv2d(4, 4, 4)
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_fields_are_the_rows_with_a_gradient(name: str) -> None:
    """Catches a pooling, a normalisation within maps, a dilation or a padding that the chain leaves out."""
    net = NETS[name]()
    calls = layer_calls(net, (3, SIDE, SIDE))
    fields = receptive_fields(calls, (SIDE, SIDE))
    assert len(calls) == len(net)
    for i, (call, field) in enumerate(zip(calls, fields, strict=True)):
        assert field is not None
        down, across = field
        row = call.output_shape[1] // 2
        first = down.start + row * down.stride
        assert rows_read(net[: i + 1], row) == (first, first + down.size), call.name
        assert across == down


def test_the_field_of_alexnet_s_last_pooling_is_the_published_one() -> None:
    """Catches a figure carried over from a layer below: Araujo, Norris and Sim (2019) print 195, 32 and 64 for AlexNet.

    Their net pads nothing in convolution 1 and the pools, as the net of 2012.
    """
    features = get_model("alexnet_flowers").features
    calls = layer_calls(features, (3, 224, 224))
    last = receptive_fields(calls, (224, 224))[-1]
    assert last is not None
    assert {(field.size, field.stride, -field.start) for field in last} == {(195, 32, 64)}


def test_a_fully_connected_layer_sees_the_whole_map() -> None:
    """Catches fields lost where a map is laid out in a row, and a second layer that adds to the first one's field."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Dropout(), nn.Linear(2 * 6 * 4, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    fields = receptive_fields(layer_calls(net, (1, 8, 6)), (8, 6))
    sizes = [(field[0].size, field[1].size) for field in fields if field]
    assert sizes == [(3, 3), (3, 3), (3, 3), (8, 6), (8, 6), (8, 6)]


@pytest.mark.parametrize(("side", "expected"), [(12, 2), (13, None)])
def test_adaptive_pooling_has_a_field_where_its_windows_are_equal(side: int, expected: int | None) -> None:
    """Catches a window of 13 // 6 pixels for windows of 2 and 3."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(6))
    _, field = receptive_fields(layer_calls(net, (1, side, side)), (side, side))
    assert (field[0].size if field else None) == expected


def test_a_branch_ends_what_is_known() -> None:
    """Catches a sum with a skipped layer's input taken for a chain, whose field would be too small or too large."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y) + y)

    fields = receptive_fields(layer_calls(Skip(), (2, 8, 8)), (8, 8))
    assert [field and field[0].size for field in fields] == [3, 5, None]
