"""The CIFAR-10 nets before AlexNet: plan, counts by hand, starting weights, and windows at the border."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models import get_model, layer_table, model_info
from repro.models.cuda_convnet import pool
from repro.models.layers import InputShapeError, LocallyConnected2d
from repro.models.registry import OptionError

NETS = ("cuda_convnet_18pct", "cuda_convnet_13pct")


def pool_by_hand(x: Tensor, kind: str, size: int) -> Tensor:
    """Stride 2, as many windows as cover the map; one that hangs over the border has fewer pixels."""
    side = x.shape[-1]
    starts = [2 * i for i in range(1 + math.ceil((side - size) / 2))]
    windows = [[x[..., i : i + size, j : j + size].flatten(2) for j in starts] for i in starts]
    rows = [torch.stack([w.amax(2) if kind == "max" else w.mean(2) for w in row], dim=2) for row in windows]
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("side", [6, 7, 8, 12, 24, 32])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_pools_cover_the_map_and_count_only_pixels_that_are_there(kind: str, side: int, size: int) -> None:
    """Catches windows rounded down, zeros counted in a mean at the border, and padding on both sides."""
    x = torch.randn(2, 3, side, side, dtype=torch.float64) - 5  # a zero from outside would be the largest
    torch.testing.assert_close(pool(kind, size)(x), pool_by_hand(x, kind, size))  # type: ignore[arg-type]


def test_the_18_percent_net_has_its_plan_and_counts() -> None:
    """Catches a wrong width, mean and max exchanged, normalisation after the third pool, and 15 or 17 places."""
    table = layer_table(get_model("cuda_convnet_18pct"), (3, 32, 32))
    rows = [(row.name.split(".")[1], row.kind, row.output_shape) for row in table]
    assert rows == [
        ("conv1", "Conv2d 5×5", (32, 32, 32)),
        ("relu1", "ReLU", (32, 32, 32)),
        ("pool1", "MaxPool2d 3×3", (32, 16, 16)),
        ("norm1", "ResponseNormWithinMap", (32, 16, 16)),
        ("conv2", "Conv2d 5×5", (32, 16, 16)),
        ("relu2", "ReLU", (32, 16, 16)),
        ("pool2", "AvgPool2d 3×3", (32, 8, 8)),
        ("norm2", "ResponseNormWithinMap", (32, 8, 8)),
        ("conv3", "Conv2d 5×5", (64, 8, 8)),
        ("relu3", "ReLU", (64, 8, 8)),
        ("pool3", "AvgPool2d 3×3", (64, 4, 4)),
        ("fc10", "Linear", (10,)),
    ]
    by_hand = [32 * 75 + 32, 32 * 25 * 32 + 32, 64 * 25 * 32 + 64, 1024 * 10 + 10]
    assert [row.parameters for row in table if row.parameters] == by_hand
    assert f"{sum(by_hand):,}" in str(model_info("cuda_convnet_18pct").build.__doc__)


def test_the_13_percent_net_has_its_plan_and_counts() -> None:
    """Catches shared weights in the local layers, one bias for all places, and 32×32 pictures by default."""
    table = layer_table(get_model("cuda_convnet_13pct"), (3, 24, 24))
    rows = [(row.name.split(".")[1], row.output_shape) for row in table if "relu" not in row.name]
    assert rows == [
        ("conv1", (64, 24, 24)),
        ("pool1", (64, 12, 12)),
        ("conv2", (64, 12, 12)),
        ("pool2", (64, 6, 6)),
        ("local3", (32, 6, 6)),
        ("local4", (32, 6, 6)),
        ("fc10", (10,)),
    ]
    by_hand = [
        64 * 75 + 64,
        64 * 25 * 64 + 64,
        36 * (9 * 64 * 32 + 32),
        36 * (9 * 32 * 32 + 32),
        1152 * 10 + 10,
    ]
    assert [row.parameters for row in table if row.parameters] == by_hand
    assert f"{sum(by_hand):,}" in str(model_info("cuda_convnet_13pct").build.__doc__)
    local3 = next(row for row in table if row.name == "features.local3")
    assert local3.multiply_adds == 36 * 9 * 64 * 32, "each place applies its own kernels, not those of all places"
    assert local3.connections == 36 * 9 * 64 * 32 + 36 * 32


@pytest.mark.parametrize("name", NETS)
def test_starting_weights_are_those_of_the_layer_files(name: str) -> None:
    """Catches PyTorch's own starting values, and two layers' deviations exchanged."""
    published = {
        "cuda_convnet_18pct": {"conv1": 1e-4, "conv2": 1e-2, "conv3": 1e-2, "fc10": 1e-2},
        "cuda_convnet_13pct": {"conv1": 1e-4, "conv2": 1e-2, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
    }[name]
    torch.manual_seed(0)
    layers = {key.split(".")[-1]: layer for key, layer in get_model(name).named_modules()}
    weighted = {key for key, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected2d)}
    assert weighted == set(published)
    for key, sigma in published.items():
        weight = layers[key].get_parameter("weight")
        assert weight.std().item() == pytest.approx(sigma, abs=5 * sigma / math.sqrt(2 * weight.numel()))
        assert (weight.abs() > 3 * sigma).any(), "a normal distribution has tails"
        assert not layers[key].get_parameter("bias").any()


@pytest.mark.parametrize("name", NETS)
def test_the_first_loss_is_that_of_guessing(name: str) -> None:
    """Catches starting weights too large for pixels of the scale 0…255 less their mean."""
    torch.manual_seed(0)
    with torch.no_grad():
        logits = get_model(name)(60 * torch.randn(1, *model_info(name).input_size))
    assert (logits.logsumexp(1) - logits.mean(1)).item() == pytest.approx(math.log(10), rel=0.05)


def strong(name: str, **options: object) -> nn.Module:
    """The net in float64 with weights that make every layer count, the same for all its variants."""
    net = get_model(name, **options).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return net


@pytest.mark.parametrize("norm", ["within-map", "across", "none"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("overlapping", [True, False])
def test_the_18_percent_net_written_out(norm: str, activation: str, overlapping: bool) -> None:
    """Catches α divided by 3 within maps or by 9 across them, k = 2, and an option that is accepted and dropped."""

    def normalise(x: Tensor) -> Tensor:
        maps, side = x.shape[1], x.shape[-1]
        if norm == "within-map":
            squares = F.pad(x.square(), (1, 1, 1, 1))
            sums = sum(squares[..., i : i + side, j : j + side] for i in range(3) for j in range(3)) / 9
        else:
            sums = torch.stack([x[:, max(0, i - 1) : i + 2].square().sum(1) for i in range(maps)], dim=1) / 3
        return x if norm == "none" else x / (1 + 5e-5 * sums) ** 0.75

    net = strong("cuda_convnet_18pct", norm=norm, activation=activation, overlapping=overlapping)
    x = 60 * torch.randn(2, 3, 32, 32, dtype=torch.float64)
    signal = x
    for number, kind in enumerate(("max", "mean", "mean"), 1):
        conv = net.get_submodule(f"features.conv{number}")
        signal = F.conv2d(signal, conv.get_parameter("weight"), conv.get_parameter("bias"), padding=2)
        signal = signal.relu() if activation == "relu" else signal.tanh()
        signal = pool_by_hand(signal, kind, 3 if overlapping else 2)
        signal = normalise(signal) if number < 3 else signal
    fc10 = net.get_submodule("classifier.fc10")
    expected = signal.flatten(1) @ fc10.get_parameter("weight").T + fc10.get_parameter("bias")
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("side", [24, 32])
def test_crops_and_whole_pictures_each_have_a_net(name: str, side: int) -> None:
    """Catches a last layer that is made for one size whatever the option says."""
    net = get_model(name, input_size=side)
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 10)
    other = 56 - side
    with pytest.raises(InputShapeError, match=f"{name} expects .* N×3×{side}×{side}, found 2×3×{other}×{other}"):
        net(torch.zeros(2, 3, other, other))


@pytest.mark.parametrize(("name", "smallest"), [("cuda_convnet_18pct", 12), ("cuda_convnet_13pct", 6)])
def test_the_smallest_picture_works_and_a_smaller_one_is_named(name: str, smallest: int) -> None:
    """Catches a linear layer without inputs, which PyTorch builds with a warning, and a bound one pixel off."""
    assert get_model(name, input_size=smallest)(torch.zeros(1, 3, smallest, smallest)).shape == (1, 10)
    with pytest.raises(OptionError, match=f"{name}: option input_size is at least {smallest}, found {smallest - 1}"):
        get_model(name, input_size=smallest - 1)
