"""Tables of whole nets against figures worked by hand and published ones; joins, exports, units and their errors."""

import csv
import io
import json
import re
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torchvision
from torch import Tensor, nn

from repro.errors import ResourceError, UnknownName
from repro.models import get_model, list_models
from repro.receptive_field import Box, FieldTable, TraceError, UnitError, receptive_field, stack


def torchvision_net(name: str) -> nn.Module:
    """A net of torchvision without weights."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        net: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return net


def windows(table: FieldTable) -> list[tuple[int, Fraction, int]]:
    """Size, stride and padding down, of the layers whose kernel is larger than 1 and that have several units."""
    found = [row for row in table if row.kernel_size[0] > 1 and row.output_size != (1, 1)]
    assert all(len(set(pair)) == 1 for row in found for pair in (row.size, row.effective_stride, row.effective_padding))
    return [(row.size[0], row.effective_stride[0], row.effective_padding[0]) for row in found]


ALEXNET = [(11, 4, 2), (19, 8, 2), (51, 8, 18), (67, 16, 18), (99, 16, 34), (131, 16, 50), (163, 16, 66), (195, 32, 66)]
# Of VGG-16's convolutions and pools: r grows by 2j at a convolution and by j at a pool, after which j doubles.
VGG16 = [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212]


def test_alexnet_and_vgg16_by_hand() -> None:
    """Catches a stride that scales its own layer's kernel, padding not scaled by the stride below, a pool left out."""
    assert windows(receptive_field(torchvision_net("alexnet"))) == ALEXNET
    assert [size for size, _, _ in windows(receptive_field(torchvision_net("vgg16")))] == VGG16


@pytest.mark.parametrize(
    ("name", "layer", "side", "size", "stride", "padding"),
    [
        ("inception_v3", "Mixed_7c.cat:3", 299, 1311, 32, 618),  # the size: Araujo, Norris & Sim (2019)
        # By hand, each 3×3 adds 2j and each stride doubles j: 3, then 7, 11, 19, 27, 43, 59, 75, 107 … 171, … 267, 299,
        # 363, 427 and 491.
        ("mobilenet_v2", "features.18.0", 224, 491, 32, 245),
        # By hand 7, 11, and the 3×3 of the blocks: 3·8, 8 + 3·16, 16 + 5·32, 32 + 2·64.
        ("resnet50", "layer4.2.conv3", 224, 427, 32, 213),
    ],
)
def test_joins_have_the_union_of_their_paths(
    name: str, layer: str, side: int, size: int, stride: int, padding: int
) -> None:
    """Catches a join that takes its first or last path, and blocks that are passed over."""
    row = receptive_field(torchvision_net(name), side)[layer]
    assert (row.size, row.effective_stride, row.effective_padding) == ((size,) * 2, (stride,) * 2, (padding,) * 2)
    assert row.aligned


def test_a_stack_gives_the_table_of_the_model() -> None:
    """Catches a stack with an order of its own: kernel and stride swapped, dilation or the second axis forgotten."""
    specs = [("a", (5, 3), 2, (1, 0)), ("b", 3, (1, 2), 2, 2), ("c", 2, 2, 0)]
    model = nn.Sequential()
    for name, *settings in specs:
        model.add_module(str(name), nn.Conv2d(1, 1, *settings))
    for ours, theirs in zip(stack(specs, (40, 52)), receptive_field(model, (40, 52)), strict=True):
        assert {**vars(ours), "kind": theirs.kind} == vars(theirs)
    assert [row.name for row in stack([(3, 1, 1), (3, 1, 1)])] == ["1", "2"]
    with pytest.raises(TraceError, match="2: a kernel that spans 9"):
        stack([(2, 2, 0), (9, 1, 0)], 8)


class Joined(nn.Module):
    """Two paths and how they meet."""

    def __init__(self, a: nn.Module, b: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.join = a, b, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x), self.b(x))


def test_paths_that_are_not_aligned_are_reported() -> None:
    """Catches strides compared without places: an even kernel padded on one side shifts its path by half a pixel."""
    shifted = Joined(nn.Conv2d(1, 1, 2, padding="same"), nn.Identity(), torch.add)
    table = receptive_field(shifted, 8)
    assert not table["add"].aligned
    assert [(m.name, m.axis, m.paths) for m in table.misaligned] == [
        ("add", axis, (("a", 1, 0.0), ("b", 1, -0.5))) for axis in ("height", "width")
    ]
    assert str(table.misaligned[0]) == "add, height: a (every 1 px, +0 px) and b (every 1 px, -0.5 px)"
    even = Joined(nn.Conv2d(1, 1, 3, padding=1), nn.Identity(), lambda a, b: torch.cat([a, b], 1))
    assert not receptive_field(even, 8).misaligned


def test_a_gate_over_the_whole_map_is_aligned_with_every_path() -> None:
    """Catches squeeze-and-excitation reported as misaligned, and a gate whose field is left out of the product's."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Sigmoid())
    table = receptive_field(Joined(gate, nn.Conv2d(2, 2, 3, padding=1), torch.mul), (2, 8, 8))
    assert not table.misaligned
    assert table.box("mul", 0, 0).clipped == Box(0, 0, 8, 8)
    assert table["mul"].effective_stride == (1, 1)


def test_crosses_and_holes_are_in_the_support() -> None:
    """Catches a support that is filled up to its rectangle: 1×3 beside 3×1, and a dilated kernel."""
    cross = Joined(nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), nn.Conv2d(1, 1, (3, 1), padding=(1, 0)), torch.add)
    table = receptive_field(cross, 5)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[2, 1:4] = expected[1:4, 2] = True
    assert torch.equal(table.support("add", 2, 2), expected)
    assert table.box("add", 2, 2).clipped == Box(1, 1, 4, 4)
    holes = receptive_field(nn.Conv2d(1, 1, 3, dilation=2), 5).support("", 0, 0)
    assert holes.nonzero().tolist() == [[i, j] for i in (0, 2, 4) for j in (0, 2, 4)]


def test_boxes_centres_and_clipping_by_hand() -> None:
    """Catches padding counted as pixels, a centre half a pixel off, and boxes in pixels where units are meant."""
    table = receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(2)), 8)
    box = table.box("1", 0, 1)
    assert box.unclipped == Box(-1, 3, 4, 8)
    assert box.clipped == Box(0, 3, 4, 8)
    assert table.boxes("1", 0, 1) == {"input": Box(0, 3, 4, 8), "0": Box(0, 2, 2, 4), "1": Box(0, 1, 1, 2)}
    rows, columns = table.centers("1")
    assert rows.dtype == torch.float64
    assert (rows.tolist(), columns.tolist()) == ([1.0, 5.0], [1.0, 5.0])


def test_a_module_used_twice_has_two_rows() -> None:
    """Catches the second use overwriting the first one, and a name that only one of them has."""
    conv = nn.Conv2d(1, 1, 3)
    table = receptive_field(nn.Sequential(conv, conv), 8)
    assert [(row.name, row.size[0]) for row in table] == [("0", 3), ("0:2", 5)]


def test_exports_read_back_equal(tmp_path) -> None:
    """Catches columns out of order, fractions that become floats, and a file that differs from what is returned."""
    table = receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.ConvTranspose2d(1, 1, 4, 4)), (1, 9, 11))
    records = json.loads(table.to_json(tmp_path / "t.json"))
    assert records["input_size"] == [1, 9, 11]
    rows = list(csv.DictReader(io.StringIO(table.to_csv(tmp_path / "t.csv"))))
    assert (tmp_path / "t.csv").read_text() == table.to_csv()
    assert json.loads((tmp_path / "t.json").read_text()) == records
    for ours, in_json, in_csv in zip(table, records["layers"], rows, strict=True):
        assert {key: str(value) for key, value in in_json.items()} == in_csv
        assert (in_json["name"], in_json["aligned"]) == (ours.name, ours.aligned)
        for key in (
            "kernel_size",
            "stride",
            "dilation",
            "size",
            "effective_stride",
            "effective_padding",
            "output_size",
        ):
            read = tuple(Fraction(in_json[f"{key}_{axis}"]) for axis in ("height", "width"))
            assert read == getattr(ours, key)
    assert records["layers"][1]["effective_stride_height"] == "1/2"
    with pytest.raises(ResourceError, match="cannot be written"):
        table.to_csv(tmp_path / "none" / "t.csv")


def test_a_table_prints_slices_and_indexes() -> None:
    """Catches rows under the wrong heads, a slice that renumbers, and names that HTML would swallow."""
    table = receptive_field(torchvision_net("alexnet"))
    assert str(table).splitlines()[1].split() == ["features.0", "Conv2d", "11", "4", "1", "11", "4", "2", "55"]
    assert table[2:4][0] == table[2] == table["features.2"]
    assert html_cells(table)[:4] == ["features.0", "Conv2d", "11", "4"]
    uneven = stack([("<b>", (3, 1), 1, 0)], 9)
    assert html_cells(uneven)[:3] == ["&lt;b&gt;", "window", "3×1"]


def html_cells(table: FieldTable) -> list[str]:
    return re.findall(r"<td[^>]*>([^<]*)</td>", table._repr_html_())


def test_pandas_gets_numbers_by_layer() -> None:
    """Catches a frame of texts, heights for widths, and rows that a name does not find."""
    frame = receptive_field(torchvision_net("alexnet"), (224, 288)).to_pandas()
    assert list(frame.index) == [row.name for row in receptive_field(torchvision_net("alexnet"), (224, 288))]
    assert (frame.loc["features.12", "size_height"], frame.loc["features.12", "effective_stride_width"]) == (195, 32)
    assert (frame.loc["features.0", "output_size_height"], frame.loc["features.0", "output_size_width"]) == (55, 71)
    assert frame["effective_padding_height"].max() == 66


def test_wrong_names_and_units_are_told() -> None:
    """Catches a negative unit taken from the end, and a layer that is missing without a hint."""
    table = receptive_field(torchvision_net("alexnet"))
    with pytest.raises(UnknownName, match=r"no layer is called 'feature\.0'.*features\.0"):
        table["feature.0"]
    for unit in ((6, 0), (0, 6), (-1, 0)):
        with pytest.raises(UnitError, match=r"it has 6×6"):
            table.box("features.12", *unit)


@pytest.mark.parametrize("name", [*list_models()])
def test_every_net_of_the_package_has_a_table(name: str) -> None:
    """Catches a layer of ours without a rule, and a row that a layer of the net does not get."""
    with torch.device("meta"):
        net = get_model(name)
    table = receptive_field(net)
    leaves = {path for path, module in net.named_modules() if not any(module.children())}
    assert leaves <= {row.name for row in table}
    assert not table.misaligned
    height, width = table.input_size[1:]
    assert table.box(table[-1].name, 0, 0).clipped == Box(0, 0, height, width) or name == "alexnet_flowers"


NETS = {
    **dict.fromkeys(
        ("alexnet", "vgg19_bn", "googlenet", "resnet50", "densenet121", "mobilenet_v2", "squeezenet1_1"), 224
    ),
    "inception_v3": 299,
}


@pytest.mark.parametrize("name", NETS)
def test_a_table_takes_less_than_a_second(name: str) -> None:
    """Catches convolutions that are computed, and fields worked out unit by unit; table and box, one core."""
    net = torchvision_net(name)
    receptive_field(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(4, 1)), 2)  # torch loads its rules once
    start = time.process_time()
    table = receptive_field(net, NETS[name])
    table.box(table[-1].name, 0, 0)
    str(table)
    assert time.process_time() - start < 1
