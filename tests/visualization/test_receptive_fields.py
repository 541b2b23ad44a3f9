"""What the receptive-field explorer hands to a page. How it behaves there is tested in tests/browser/."""

import html
import json
import re

import pytest
import torch
import torchvision
from torch import nn

from repro.errors import DataError
from repro.receptive_field import receptive_field
from repro.visualization import receptive_field_builder, receptive_field_explorer
from repro.visualization.receptive_fields import BUILDER_LIMITS, net_of


class Everything(nn.Module):
    """Every kind of window in one net, with a join, a shortcut and layers that read their own place alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(2, 0), dilation=(2, 1))
        self.norm = nn.BatchNorm2d(4)
        self.mirror = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.mix = nn.Conv2d(4, 4, 1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=3)
        self.larger = nn.Upsample(scale_factor=2, mode="nearest")
        self.uneven = nn.AdaptiveAvgPool2d((3, 4))
        self.out = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.mix(self.mirror(x))
        return self.out(torch.flatten(self.uneven(self.larger(self.up(self.pool(x)))), 1))


SIZE = (3, 11, 19)


def decoded(axis, unit: int, size: int) -> list[int]:
    """The positions that one unit reads along an axis, by the words of receptive_field_arithmetic.js."""
    if axis is None:
        return [unit]
    if axis and isinstance(axis[0], list):
        ends = axis[unit]
        return [x for first, last in zip(ends[::2], ends[1::2], strict=True) for x in range(first, last + 1)]
    a, b, k, d = axis
    return [a * unit + b + d * t for t in range(k) if 0 <= a * unit + b + d * t < size]


def pixels_read(net, node: int, row: int, column: int) -> set[tuple[int, int]]:
    """Unit by unit down to the image."""
    lit = {node: {(row, column)}}
    for reader in range(node, 0, -1):
        for source, rows, columns in net["layers"][reader - 1]["from"] if reader in lit else ():
            height, width = net["layers"][source - 1]["units"] if source else net["input"]
            found = {
                (y, x) for r, c in lit[reader] for y in decoded(rows, r, height) for x in decoded(columns, c, width)
            }
            lit[source] = lit.get(source, set()) | found
    return lit.get(0, set())


def test_the_page_gets_every_window_as_it_is():
    """Catches a window that four numbers cannot say and that is sent as four numbers, and axes exchanged."""
    table = receptive_field(Everything(), SIZE)
    net = net_of(table)
    for node, layer in enumerate(net["layers"], 1):
        height, width = layer["units"]
        if "name" not in layer:
            continue
        for row, column in {(0, 0), (height - 1, width - 1), (height // 2, width // 2)}:
            expected = {tuple(pixel) for pixel in table.support(layer["name"], row, column).nonzero().tolist()}
            assert pixels_read(net, node, row, column) == expected, (layer["name"], row, column)


def test_reaches_are_those_of_the_table():
    """Catches a first pixel or a step that holds for the first two units only."""
    table = receptive_field(Everything(), SIZE)
    for layer in net_of(table)["layers"]:
        if "name" not in layer:
            continue
        rows, columns = layer["field"]
        assert layer["size"] == list(table[layer["name"]].size)
        for unit in range(min(layer["units"])):
            box = table.box(layer["name"], unit, unit).unclipped
            for axis, ends in ((rows, (box.top, box.bottom - 1)), (columns, (box.left, box.right - 1))):
                found = (
                    axis[unit] if isinstance(axis[0], list) else [axis[0] * unit + axis[1], axis[0] * unit + axis[2]]
                )
                assert tuple(found) == ends


def test_layers_that_read_their_own_place_have_no_grid():
    """Catches a row of grids that all look alike, a 1×1 convolution that is left out, and a join that is."""
    net = net_of(receptive_field(Everything(), SIZE))
    names = [layer["name"] for layer in net["layers"] if "name" in layer]
    mirror = [name for name in names if name.startswith("mirror")]  # its padding may have a grid of its own
    assert mirror
    assert [name for name in names if name not in mirror] == [
        "first",
        "mix",
        "add",
        "pool",
        "up",
        "larger",
        "uneven",
        "out",
    ]


def test_pooling_to_the_size_that_is_there_has_no_grid():
    """Catches a window known by its kind alone: adaptive pooling of 7×7 to 7×7, as in VGG at 224, does nothing."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(7))
    assert [layer["name"] for layer in net_of(receptive_field(net, (1, 9, 9)))["layers"]] == ["0"]
    assert [layer["name"] for layer in net_of(receptive_field(net, (1, 10, 10)))["layers"]] == ["0", "1"]


def test_numbers_that_are_no_whole_ones_arrive_as_fractions():
    """Catches a stride of 2/3 that is cut to 0."""
    layers = {layer.get("name"): layer for layer in net_of(receptive_field(Everything(), SIZE))["layers"]}
    assert layers["up"]["stride"] == ["1/3", "1/3"]
    assert layers["up"]["step"] == ["2/3", "4/3"]
    assert layers["first"]["dilation"] == [2, 1]


def test_a_large_net_makes_a_small_page():
    """Catches a table of every unit's rectangle, which would be megabytes."""
    with torch.device("meta"):
        page = receptive_field_explorer(torchvision.models.vgg16(), 224)._repr_html_()
    assert len(page.encode()) < 60_000


@pytest.mark.parametrize("make", [lambda: receptive_field_explorer(Everything(), SIZE), receptive_field_builder])
def test_the_page_keeps_to_itself(make):
    """Catches a script that imports, exports or asks the network, ids, and a page that differs from run to run."""
    page = make()._repr_html_()
    script = re.search(r'<script type="module">(.*?)</script>', page, flags=re.DOTALL).group(1)
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|url\(|\bfetch\(|src=|\sid=", page)
    assert page == make()._repr_html_()


def test_a_model_without_layers_is_refused():
    """Catches an empty page."""
    with pytest.raises(DataError, match="no layer"):
        receptive_field_explorer(nn.Sequential(nn.ReLU()), (3, 8, 8))


def test_the_builder_starts_where_it_is_told():
    """Catches sliders that start elsewhere, and fewer layers than there are sliders for."""
    page = receptive_field_builder(layers=((5, 2, 1), (3, 1, 0)), image=20)._repr_html_()
    values = json.loads(html.unescape(re.search(r'data-values="([^"]*)"', page).group(1)))
    assert (values["image"], values["count"]) == (20, 2)
    assert values["settings"][:2] == [[5, 2, 1], [3, 1, 0]]
    assert len(values["settings"]) == BUILDER_LIMITS["layers"][1]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image": 7}, "image"),
        ({"layers": ()}, "layers"),
        ({"layers": ((3, 1, 1),) * 5}, "layers"),
        ({"layers": ((0, 1, 1),)}, "kernel"),
        ({"layers": ((3, 1.5, 1),)}, "stride"),
        ({"layers": ((3, 1, 4),)}, "padding"),
    ],
)
def test_a_start_outside_the_range_is_refused(wrong, named):
    """Catches a value that the slider would move without a word."""
    with pytest.raises(ValueError, match=f"^{named} starts at"):
        receptive_field_builder(**wrong)
