"""The cone of a window against the full pass: bit by bit where the library computes each place alike."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repro.models import get_model
from repro.models.normalization import LocalResponseNorm
from repro.receptive_field import Slide
from repro.receptive_field.reach import Reach, classes
from repro.receptive_field.windows import connections
from repro.visualization.cone import ConeError, piece_bytes, run, share, trace_cone, walk
from repro.visualization.occlusion import occlusion
from repro.visualization.probe import untouched


def some_image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vgg16", "vgg11_bn"])
def test_vgg_is_equal_to_the_full_pass_bit_by_bit(name: str) -> None:
    """The maps that the head reads, float32 at 224, windows in a corner, at a border and inside.

    Catches halos that are one unit short, padding put where the map goes on, pieces pasted one unit off. The fully
    connected layers are the same calls in both; a matrix product's rounding may depend on how many rows it has, so the
    logits are held to 1e-6 of the largest."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).eval()
    image = some_image(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    corners = [(0, 0), (192, 96), (80, 111)]
    hidden = image.repeat(3, 1, 1, 1)
    for one, (top, left) in zip(hidden, corners, strict=True):
        one[:, top : top + 32, left : left + 32] = 0.25
    tops, lefts = np.array(corners).T
    with untouched(model), torch.no_grad():
        cone = trace_cone(model, image, "features.0")
        place = Reach.within(tops, tops + 32, 224), Reach.within(lefts, lefts + 32, 224)
        maps, _ = run(cone, torch.full((3, 3, 32, 32), 0.25), place, 0)
        full = model.avgpool(model.features(hidden.contiguous(memory_format=torch.channels_last)))
        logits, answers = model.classifier(maps.flatten(1)), model.classifier(full.flatten(1))
    assert share(cone, place) < 0.25  # most of the net is not computed
    assert torch.equal(maps, full)
    assert (logits - answers).abs().max() <= 1e-6 * answers.abs().max()


def test_two_columns_of_2012_agree_with_the_full_pass() -> None:
    """Windows rounded up, grouped kernels, response normalisation, overlapping pools. Catches a last window that hangs
    over the border and finds something else there, and normalisation across the seam of two pieces."""
    torch.manual_seed(0)
    model = get_model("alexnet_2012", num_classes=4)
    image = some_image(3, 224, 224)
    cone = occlusion(model, image, 64, 64, target=0, method="cone")
    full = occlusion(model, image, 64, 64, target=0, method="batched")
    assert cone.method == "cone"
    torch.testing.assert_close(cone.logits, full.logits, rtol=0, atol=1e-6 * float(full.logits.abs().max()))
    torch.testing.assert_close(cone.activation, full.activation, rtol=1e-5, atol=0)


def test_maximum_beyond_the_border_is_no_zero() -> None:
    """Maps below 0 everywhere, under a padded maximum. Catches padding with zeros, which would be the largest."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.bias, -20.0)
    model = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 36, 5))
    cone, full = (occlusion(model, some_image(3, 14, 14), 4, 3, method=method) for method in ("cone", "batched"))
    torch.testing.assert_close(cone.logits, full.logits)


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Sequential, int, int]:
    """A chain of sliding and pointwise layers for some size of image."""
    height, width = draw(st.integers(12, 30)), draw(st.integers(12, 30))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    channels, extent = 2, torch.zeros(1, 2, height, width)
    for _ in range(draw(st.integers(1, 5))):
        k = draw(st.integers(1, 4))
        s, p = draw(st.integers(1, 3)), draw(st.integers(0, k // 2))
        kind = draw(st.sampled_from(["conv", "dilated", "max", "average", "norm", "adaptive"]))
        layer: nn.Module
        if kind in ("conv", "dilated") or not layers:
            layer = nn.Conv2d(channels, 4, k, s, p, dilation=2 if kind == "dilated" else 1)
        elif kind == "max":
            layer = nn.MaxPool2d(k, s, p, ceil_mode=draw(st.booleans()))
        elif kind == "average":
            layer = nn.AvgPool2d(k, s, p, count_include_pad=draw(st.booleans()), ceil_mode=draw(st.booleans()))
        elif kind == "norm":
            layer = draw(st.sampled_from([nn.BatchNorm2d(channels).eval(), LocalResponseNorm(3)]))
        else:
            layer = nn.AdaptiveAvgPool2d((3, 4))
        try:
            extent = layer(extent)
        except RuntimeError:  # too large for what is left of the map
            continue
        layers += [layer, draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.Identity()]))]
        channels = extent.shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(extent.numel(), 3)), height, width


@settings(max_examples=60, deadline=None)
@given(nets(), st.data())
def test_random_nets_agree_with_the_full_pass(made: tuple[nn.Sequential, int, int], data: st.DataObject) -> None:
    """Window by window, written out. Catches strides that leave pixels unread, windows hanging over the border in
    every kind of layer, dilation, averages that count their padding, and a layer with windows of different sizes."""
    model, height, width = made
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    stride = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
    memory = data.draw(st.sampled_from([1, 20_000, 1 << 30]))
    image = some_image(2, height, width)
    found = occlusion(model, image, size, stride, value=1.5, method="cone", memory=memory)
    hidden = image.repeat(found.boxes[..., 0].numel(), 1, 1, 1)
    for one, (top, left, bottom, right) in zip(hidden, found.boxes.flatten(0, 1).tolist(), strict=True):
        one[:, top:bottom, left:right] = 1.5
    with torch.no_grad():
        expected = model.eval()(hidden)
    torch.testing.assert_close(found.logits.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


@given(
    *(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(8, 20)),
    *(st.integers(0, 19), st.integers(1, 6)),
)
def test_reach_is_what_the_connections_say(k: int, s: int, p: int, extent: int, first: int, length: int) -> None:
    """Against the matrix of which unit reads which position. Catches a cone one unit too narrow or too wide."""
    window = Slide(k, s, min(p, k // 2))
    units = (extent + 2 * window.padding - k) // s + 1
    end = min(first + length, extent)
    first = min(first, end - 1)
    reached = np.flatnonzero(connections(window, units, extent)[:, first:end].any(1))
    found = Reach.within(np.array([first]), np.array([end]), extent).through(window, units)
    assert list(range(found.first[0], found.end[0])) == reached.tolist()
    assert 0 <= found.start[0] <= found.start[0] + found.length <= units


def test_pieces_of_different_changes_have_one_length() -> None:
    """By hand: a kernel of 3 padded by 1 over 10 places, changes of 2 at 0, 4 and 8 reach 3, 4 and 3 units. Catches
    pieces that leave the map or miss a unit."""
    reach = Reach.within(np.array([0, 4, 8]), np.array([2, 6, 10]), 10).through(Slide(3, padding=1), 10)
    assert reach.first.tolist() == [0, 3, 7]
    assert reach.end.tolist() == [3, 7, 10]
    assert reach.start.tolist() == [0, 3, 6]
    assert reach.length == 4


def test_vgg_s_cone_grows_as_computed_by_hand() -> None:
    """32 pixels from 96 on: one unit more at each side per convolution, halved by a pool. Catches a cone that grows
    faster than receptive fields say, which costs what it is for."""
    torch.manual_seed(0)
    model = torchvision.models.vgg16(num_classes=2).eval()
    with torch.no_grad(), untouched(model):
        cone = trace_cone(model, some_image(1, 3, 224, 224), "features.28")
    axis = Reach.within(np.array([96]), np.array([128]), 224)
    lengths = [after[0].length for call, _, after in walk(cone, (axis, axis)) if call.windows and after]
    assert lengths == [34, 36, 18, 20, 22, 12, 14, 16, 18, 10, 12, 14, 16, 8, 10, 12, 14]
    # Most is held at the tenth convolution: it is given 512 pieces of 14×14, reads 18×18 and gives 16×16.
    assert piece_bytes(cone, (axis, axis)) == 4 * 512 * (14**2 + 18**2 + 16**2)


def test_classes_hold_all_windows_once() -> None:
    """Lengths 4, 5, 9 and 12, twice each, cost least as {4, 5}, {9}, {12}: 20 + 18 + 24. Catches a window lost at a
    cut, and classes that bring together what differs most."""
    lengths = np.array([4, 5, 9, 12, 12, 9, 5, 4])
    found = [group.tolist() for group in classes(lengths, 3)]
    assert found == [[0, 1, 6, 7], [2, 5], [3, 4]]
    assert [group.tolist() for group in classes(np.array([4, 4]), 3)] == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.relu(), "2: does not read"),
        (lambda x: x.add_(1), "2: does not read"),
        (lambda x: x.flip(3), "2: does not read"),
    ],
)
def test_work_between_the_layers_is_refused_by_name(change, words: str) -> None:
    """Catches a chain that skips what the net's own `forward` does between two modules."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[3](self[2](change(self[0](x))).flatten(1))

    model = Net(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Conv2d(4, 2, 3), nn.Linear(2 * 64, 2)).eval()
    with torch.no_grad(), untouched(model), pytest.raises(ConeError, match=words):
        trace_cone(model, some_image(1, 3, 12, 12), "0")


def test_work_behind_the_last_layer_is_refused() -> None:
    """Catches logits that are not the net's answer."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = Net(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2)).eval()
    with torch.no_grad(), untouched(model), pytest.raises(ConeError, match="behind the last"):
        trace_cone(model, some_image(1, 3, 12, 12), "0")
