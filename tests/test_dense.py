"""Fully convolutional nets, held against the nets they came from, run crop by crop."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from repro.dense import (
    DenseError,
    LinearAsConv2d,
    convolutionize,
    crop_probabilities,
    dense_probabilities,
    heat_map,
    interleaved,
    over_scales,
    overfeat,
    resize,
)
from repro.models import get_model
from repro.models.layers import InputShapeError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NATIVE = (24, 22)


def small() -> nn.Sequential:
    """Convolutions and pools of stride 2, 1, 1 and 2, and two fully connected layers, in float64, for NATIVE crops."""
    torch.manual_seed(0)
    features = nn.Sequential(
        *(nn.Conv2d(3, 4, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(4, 5, (3, 2)), nn.Tanh(), nn.AvgPool2d(2)),
    )
    in_features = features(torch.zeros(1, 3, *NATIVE)).numel()
    classifier = (nn.Linear(in_features, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3))
    return nn.Sequential(features, nn.Flatten(), *classifier).double().eval()


def crops(model: nn.Module, x: Tensor, boxes: Tensor) -> Tensor:
    """What the net answers for each crop alone: (N, K, h, w)."""
    answers = [
        torch.stack([model(x[:, :, top:bottom, left:right]) for top, left, bottom, right in row], 2)
        for row in boxes.tolist()
    ]
    return torch.stack(answers, 2)


NETS = ("alexnet", "alexnet_2012", "alexnet_2012_code", "alexnet_one_column", "alexnet_flowers", "vgg11_lrn")
SMALL_NETS = ("alexnet_cifar10", "vgg8_cifar10", "vgg16_cifar10", "vgg16_bn_cifar10")


@pytest.mark.parametrize("name", [*NETS, *SMALL_NETS])
def test_native_size_gives_the_same_logits(name):
    """Catches windows unfolded in another order than the flattened map's, a lost bias, dropout left out that scales."""
    options = {"hidden": 64} if "2012" in name or "column" in name else {}
    model = get_model(name, num_classes=7, **options).eval()
    for parameter in model.parameters():  # the starting weights of 2012 give logits of nothing but biases
        nn.init.normal_(parameter, std=(2 / max(1, parameter[0].numel())) ** 0.5)
    net = convolutionize(model)
    x = noise(2, *net.native_size).float()
    with torch.inference_mode():
        expected, found = model(x), net(x)
    assert found.shape == (2, 7, 1, 1)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_torchvision_with_its_adaptive_pooling(name):
    """Catches an adaptive pooling that is kept: over a larger picture it would pool it all into one place."""
    model = getattr(torchvision.models, name)(weights=None).eval()
    net = convolutionize(model)
    x = noise(1, 3, 256, 288).float()
    with torch.inference_mode():
        torch.testing.assert_close(net(x[..., :224, :224]).flatten(1), model(x[..., :224, :224]), rtol=1e-4, atol=1e-5)
        assert net(x).shape == (1, 1000, 2, 3)


@pytest.mark.parametrize("make", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
@pytest.mark.parametrize("places", [1, 3])
def test_adaptive_pooling_keeps_the_windows_of_the_native_size(make, places):
    """Catches windows computed from the larger picture, and a global pooling that moves by its own size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(places), nn.Flatten(), nn.Linear(4 * places**2, 2)).double()
    net = convolutionize(model, 8)
    x = noise(1, 3, 12, 10)
    grid = net.grid(12, 10)
    assert grid.stride == ((1, 1) if places == 1 else (2, 2))
    torch.testing.assert_close(net(x), crops(model, x, grid.boxes), rtol=1e-9, atol=1e-12)


def test_every_crop_of_a_net_without_padding():
    """Catches an offset or stride of the grid that is off, a window that reads its neighbours, a place left out."""
    model = small()
    net = convolutionize(model, NATIVE)
    x = noise(2, 3, 41, 33)
    grid = net.grid(41, 33)
    assert grid.stride == (4, 4)
    assert grid.inside.all()
    assert grid.shape == ((41 - 24) // 4 + 1, (33 - 22) // 4 + 1)
    torch.testing.assert_close(net(x), crops(model, x, grid.boxes), rtol=1e-9, atol=1e-12)


LAYERS = st.tuples(
    *(st.sampled_from(["conv", "max", "average"]), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)),
    *(st.integers(0, 1), st.booleans()),
)


def drawn(specs, height: int, width: int, padded: bool) -> nn.Sequential | None:
    """A net of these layers for crops of this size; None where some window does not fit."""
    torch.manual_seed(0)
    layers, channels = [], 3
    for kind, kernel_size, stride, dilation, padding, ceil_mode in specs:
        padding = min(padding, kernel_size // 2) if padded else 0
        if kind == "conv":
            layers.append(nn.Conv2d(channels, 4, kernel_size, stride, padding, dilation))
            channels = 4
        elif kind == "max":
            layers.append(nn.MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode=padded and ceil_mode))
        else:
            layers.append(nn.AvgPool2d(kernel_size, stride, padding, ceil_mode=padded and ceil_mode))
    features = nn.Sequential(*layers).double()
    try:
        maps = features(torch.zeros(1, 3, height, width, dtype=torch.float64))
    except RuntimeError:
        return None
    return nn.Sequential(features, nn.Flatten(), nn.Linear(maps.numel(), 3).double())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(LAYERS, min_size=1, max_size=4), st.tuples(*[st.integers(6, 20)] * 2), st.tuples(*[st.integers(0, 9)] * 2)
)
def test_drawn_nets_agree_with_their_crops(specs, native, more):
    """Catches sizes, strides and dilations that are right for the nets above alone, and pixels that no window reads."""
    model = drawn(specs, *native, padded=False)
    if model is None:
        return
    net = convolutionize(model, (3, *native))
    height, width = (n + m for n, m in zip(native, more, strict=True))
    grid, x = net.grid(height, width), noise(1, 3, height, width)
    found = net(x)
    assert found.shape[2:] == grid.shape
    rows, columns = grid.inside.any(1).sum(), grid.inside.any(0).sum()
    assert (rows, columns) == tuple(m // s + 1 for m, s in zip(more, grid.stride, strict=True))
    expected = crops(model, x, grid.boxes[:rows, :columns])
    torch.testing.assert_close(found[..., :rows, :columns], expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(LAYERS, min_size=1, max_size=4), st.tuples(*[st.integers(6, 20)] * 2), st.tuples(*[st.integers(0, 9)] * 2)
)
def test_own_units_of_a_padded_crop_are_those_of_the_picture(specs, native, more):
    """Catches units called unpadded that read zeros further down, windows rounded up, and sizes with padding.

    The oracle is the net itself, run over the crop alone.
    """
    model = drawn(specs, *native, padded=True)
    if model is None:
        return
    net = convolutionize(model, (3, *native))
    features, own = model[0], net.own_units()
    height, width = (n + m for n, m in zip(native, more, strict=True))
    x, grid = noise(1, 3, height, width), net.grid(height, width)
    assert net(x).shape[2:] == grid.shape
    top, left, bottom, right = grid.boxes[grid.inside][-1].tolist()
    crop, whole = features(x[:, :, top:bottom, left:right]), features(x)
    down, across = top // grid.stride[0], left // grid.stride[1]
    seen = whole[:, :, down : down + crop.shape[2], across : across + crop.shape[3]]
    if seen.shape == crop.shape:
        torch.testing.assert_close(seen[:, :, own], crop[:, :, own], rtol=1e-9, atol=1e-12)


def test_own_units_by_hand():
    """Catches all or none being called unpadded: of six units behind two padded 3×3 convolutions the middle two are."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(36, 2))
    own = convolutionize(model, 6).own_units()
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert own.equal(expected)


def test_vgg16_shares_one_unit_with_its_crop():
    """Catches a field of VGG-16 that is not its 212 pixels: only the central one of 7×7 fits into 224 pixels."""
    with torch.device("meta"):
        model = get_model("vgg16")
    own = convolutionize(model).own_units()
    assert own.nonzero().tolist() == [[3, 3]]


def test_net_of_2012_agrees_with_crops_of_227():
    """Catches crops of 224 taken for the answer: there the last windows hang over into three zeros."""
    model = get_model("alexnet_2012", num_classes=3, hidden=8).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (11, 11):
            layer.padding, layer.window = (0, 0), (layer.kernel_size[0], 1, 0)
    features = model.features[:3]  # the first pool: nothing is padded before it
    x = noise(1, 3, 260, 260)
    whole = features(x)
    for side, equal in ((227, True), (224, False)):
        crop = features(x[:, :, 32 : 32 + side, :side])
        assert crop.shape[2:] == (55, 55) or crop.shape[2:] == (27, 27)
        step = 32 // (4 if crop.shape[2] == 55 else 8)
        same = torch.allclose(whole[:, :, step : step + crop.shape[2], : crop.shape[3]], crop)
        assert same is equal


def test_grid_by_hand():
    """Catches centres half a pixel off and an extent around pixels instead of crops' centres."""
    grid = convolutionize(small(), NATIVE).grid(32, 26)
    assert grid.shape == (3, 2)
    assert grid.boxes[2, 1].tolist() == [8, 4, 32, 26]
    rows, columns = grid.centers
    assert rows.tolist() == [11.5, 15.5, 19.5]
    assert columns.tolist() == [10.5, 14.5]
    assert grid.extent == (8.5, 16.5, 21.5, 9.5)


def test_weights_are_shared():
    """Catches copies: training the one would leave the other behind."""
    model = small()
    net = convolutionize(model, NATIVE)
    assert {p.data_ptr() for p in net.parameters()} == {p.data_ptr() for p in model.parameters()}
    with torch.no_grad():
        model[5].weight.mul_(3)
    x = noise(1, 3, *NATIVE)
    torch.testing.assert_close(net(x).flatten(1), model(x))


def test_converting_leaves_the_model_alone():
    """Catches hooks left behind, a changed mode, and a changed generator."""
    model = small().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    convolutionize(model, NATIVE)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("size", [(41, 33), NATIVE, (27, 24)])
def test_overfeat_is_the_interleaved_offsets(size):
    """Catches a dilation forgotten in one layer, offsets laid down in the wrong order, and lost last places."""
    net = convolutionize(small(), NATIVE)
    x = noise(2, 3, *size)
    fine = overfeat(net)
    assert fine(x).shape[2:] == fine.grid(*size).shape
    torch.testing.assert_close(fine(x), interleaved(net, x), rtol=1e-12, atol=1e-13)


def test_overfeat_gives_the_crops_between():
    """Catches a grid of the old stride, and outputs that are finer but not those of the crops there."""
    model = small()
    fine = overfeat(convolutionize(model, NATIVE))
    x, grid = noise(1, 3, 37, 31), fine.grid(37, 31)
    assert grid.stride == (2, 2)
    assert grid.inside.all()
    torch.testing.assert_close(fine(x), crops(model, x, grid.boxes), rtol=1e-9, atol=1e-12)


def test_overfeat_with_padded_convolutions_behind_the_last_pool():
    """Catches a padding that stays as it was when the places it surrounds move apart; the paper's 3×3 offsets."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU())
    model = nn.Sequential(features, nn.Flatten(), nn.Linear(5 * 16, 2)).double()
    net = convolutionize(model, 14)
    x = noise(1, 3, 23, 20)
    fine = overfeat(net)
    assert fine(x).shape == (1, 2, 10, 7)
    torch.testing.assert_close(fine(x), interleaved(net, x), rtol=1e-12, atol=1e-13)


def test_dense_probabilities_by_hand():
    """Catches the softmax before the mean over places, the mean over views of logits, and a flip of the wrong axis."""
    net = convolutionize(small(), NATIVE)
    x = noise(2, 3, 32, 34)
    expected, places = torch.zeros(2, 3), torch.zeros(2, 3)
    for view in (x, torch.flip(x, [3])):
        scores = net(view).float()
        expected += F.softmax(scores.mean(3).mean(2), 1) / 2
        for row in range(scores.shape[2]):
            for column in range(scores.shape[3]):
                places += F.softmax(scores[:, :, row, column], 1) / (2 * scores.shape[2] * scores.shape[3])
    torch.testing.assert_close(dense_probabilities(net, x), expected)
    torch.testing.assert_close(dense_probabilities(net, x, average="probabilities"), places)
    assert not torch.allclose(expected, places, atol=1e-6)


def test_crops_on_a_regular_grid():
    """Catches crops that miss the last row or column, repeat one, or leave out the reflections."""
    seen = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x[0, 0, 0, [0, -1]].tolist())
            return x[:, 0, 0, :3]

    picture = torch.arange(12.0 * 16).view(1, 1, 12, 16)  # a pixel's value says where it is: 16 · row + column
    found = crop_probabilities(Watcher(), picture, (4, 4))
    tops, lefts = (0, 2, 4, 6, 8), (0, 3, 6, 9, 12)
    corners = [[16.0 * top + left, 16.0 * top + left + 3] for top in tops for left in lefts]
    assert sorted(seen) == sorted([*corners, *(corner[::-1] for corner in corners)])
    # Of three pixels in a row, rising by one each, the softmax is always the same; of the reflection its mirror image.
    rising = torch.tensor([[0.0, 1.0, 2.0]]).softmax(1)
    torch.testing.assert_close(found, (rising + rising.flip(1)) / 2)


def test_scales_and_resizing():
    """Catches the longer side brought to the length, proportions lost, and antialiasing that is not passed on."""
    x = noise(1, 3, 40, 60).float()
    assert resize(x, 20).shape[2:] == (20, 30)
    assert resize(x, 40) is x
    torch.testing.assert_close(
        resize(x, 20), torchvision.transforms.functional.resize(x, 20, antialias=True), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        resize(x, 20, antialias=False),
        torchvision.transforms.functional.resize(x, 20, antialias=False),
        rtol=1e-5,
        atol=1e-5,
    )
    sizes = over_scales(lambda images: torch.tensor([[float(images.shape[2]), 1.0]]), x, [20, 40])
    assert sizes.tolist() == [[30.0, 1.0]]


def test_heat_map_lies_on_the_picture():
    """Catches rows and columns exchanged, and a map that is spread over the picture from edge to edge."""
    net = convolutionize(small().float(), NATIVE)
    image = noise(3, 32, 26).float()
    heat = heat_map(net, image, 1)
    expected = net(image[None]).softmax(1)[0, 1]
    torch.testing.assert_close(heat.values, expected)
    pixels = heat.at_pixels()
    assert pixels.shape == (32, 26)
    # Centres lie at rows 11.5, 15.5, 19.5 and columns 10.5, 14.5: two pixels to either side is halfway.
    middle = (expected[0, 0] + expected[1, 0]) / 2
    assert (pixels[13, 5] + pixels[14, 5]).item() / 2 == pytest.approx(middle.item(), abs=1e-6)
    assert pixels[0, 0].item() == pytest.approx(expected[0, 0].item(), abs=1e-6)
    assert pixels[-1, -1].item() == pytest.approx(expected[2, 1].item(), abs=1e-6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + x
        return self.fc(self.second(x).flatten(1))


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).softmax(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Residual(), "second: does not read"),
        (Softmax(), "Softmax: does more"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(18, 2)), "2: takes 18 features, .* has 32"),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(48, 2)), "0: .* unflattened"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2), nn.Flatten(), nn.Linear(32, 2)), "1 .InstanceNorm2d."),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 2)), "0: pools 4×4 places to 3×3"),
        (nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()), "cannot take a picture of 3×4×4"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), "0: gives 4×4 places"),
    ],
)
def test_what_cannot_be_converted_is_named(model, message):
    """Catches a net that is converted into another function, and an error without the layer or the sizes."""
    with pytest.raises(DenseError, match=message):
        convolutionize(model, (3, 4, 4))


def test_pictures_smaller_than_a_crop():
    """Catches an error from deep within, where a window does not fit, and a picture of other channels."""
    net = convolutionize(small(), NATIVE)
    for shape in ((1, 3, 23, 40), (1, 1, 30, 30), (3, 30, 30)):
        with pytest.raises(InputShapeError, match="at least 24×22"):
            net(noise(*shape))
    with pytest.raises(InputShapeError, match="23×40 is smaller than a crop of 24×22"):
        net.grid(23, 40)


def test_what_cannot_be_made_finer():
    """Catches a net without pools returned as if it were finer, and a strided layer dilated to other places."""
    flat = nn.Sequential(nn.Conv2d(3, 2, 2, stride=2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(DenseError, match="no pooling with a stride"):
        overfeat(convolutionize(flat, 4))
    behind = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 2, 2, stride=2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(DenseError, match=r"1 \(Conv2d\): cannot skip places"):
        overfeat(convolutionize(behind, 8))
    padded = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(DenseError, match="0: a padded pooling"):
        overfeat(convolutionize(padded, (3, 8, 8)))


def test_layers_keep_their_names():
    """Catches names that are off by the flatten that is left out."""
    net = convolutionize(small(), NATIVE)
    assert net.names == ("0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "2", "3", "4", "5")
    assert net.first_connected == 6
    assert isinstance(net.layers[6], LinearAsConv2d)
