"""The effective receptive field against convolutions written out with numpy, and against theory."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from repro.errors import ReproError
from repro.models import get_model
from repro.receptive_field import Box, EffectiveField, effective_receptive_field, receptive_field


def stack(depth: int, kernel_size: int = 3, padding: int = 0) -> nn.Sequential:
    """Convolutions of one map whose weights are all equal, and no biases."""
    layers = [nn.Conv2d(1, 1, kernel_size, padding=padding, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.constant_(layer.weight, 0.3)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize(("depth", "kernel_size"), [(1, 3), (2, 3), (5, 3), (3, 5), (4, 2)])
def test_stack_of_equal_kernels_is_a_box_convolved_with_itself(depth: int, kernel_size: int) -> None:
    """Catches a gradient of another unit, squares for magnitudes, and moments taken about the wrong pixel."""
    profile = np.ones(1)
    for _ in range(depth):
        profile = np.convolve(profile, np.ones(kernel_size) / kernel_size)
    size = len(profile)
    field = effective_receptive_field(stack(depth, kernel_size), str(depth - 1), input_size=(1, size, size), draws=3)
    np.testing.assert_allclose(field.map.numpy(), np.outer(profile, profile), atol=1e-15)
    variance = depth * (kernel_size**2 - 1) / 12
    assert field.sigma == pytest.approx((math.sqrt(variance),) * 2, abs=1e-12)
    assert field.center == pytest.approx(((size - 1) / 2,) * 2, abs=1e-12)
    assert field.share(field.box) == pytest.approx(1)
    counted = np.outer(profile, profile) > (1 - 0.954499736) * profile.max() ** 2
    assert field.size == pytest.approx(math.sqrt(counted.sum()))
    assert field.ratio == pytest.approx(field.size / size)


def test_one_layer_is_its_window() -> None:
    """Catches a unit counted from the wrong corner, and a field that is not clipped to the image."""
    field = effective_receptive_field(stack(1, 3, padding=1), "0", row=0, col=2, input_size=(1, 6, 7))
    expected = torch.zeros(6, 7, dtype=torch.float64)
    expected[0:2, 1:4] = 1 / 6
    torch.testing.assert_close(field.map, expected)
    assert field.box == Box(0, 1, 2, 4)
    assert field.center == pytest.approx((0.5, 2.0))
    assert field.sigma == pytest.approx((0.5, math.sqrt(2 / 3)))
    assert field.radius == pytest.approx(math.hypot(0.5, 1.0))


def test_width_grows_with_the_square_root_of_the_depth() -> None:
    """Catches a width that follows the theoretical size. The paper's result: √n against n, a shrinking share."""
    depths = (4, 16, 64)
    fields = []
    for depth in depths:
        side = 2 * depth + 1
        fields.append(effective_receptive_field(stack(depth), str(depth - 1), input_size=(1, side, side), draws=1))
    assert [f.sigma[0] for f in fields] == pytest.approx([math.sqrt(2 * depth / 3) for depth in depths])
    for small, large in pairwise(fields):
        assert large.size / small.size == pytest.approx(2, rel=0.12)
        assert large.ratio == pytest.approx(small.ratio / 2, rel=0.2)
    # Over 4.55 % of a Gaussian's peak lie π · 2 ln(1 / 0.0455) · σ² pixels.
    assert fields[-1].size == pytest.approx(
        fields[-1].sigma[0] * math.sqrt(2 * math.pi * math.log(1 / 0.0455)), rel=0.02
    )
    assert fields[-1].radius == pytest.approx(fields[-1].sigma[0] * math.sqrt(2 * math.log(1 / 0.0455)), rel=0.02)
    assert fields[0].overlap < fields[1].overlap < fields[2].overlap < 1
    assert fields[2].overlap > 0.99


def test_fit_of_a_gaussian_is_the_gaussian() -> None:
    """Catches axes that are exchanged, and a fit that is not normalised: a map of known moments, wider than tall."""
    rows, cols = torch.arange(81, dtype=torch.float64), torch.arange(101, dtype=torch.float64)
    down, across = torch.exp(-((rows - 40) ** 2) / 32), torch.exp(-((cols - 47) ** 2) / 72)
    values = torch.outer(down, across)
    field = EffectiveField(values / values.sum(), Box(0, 0, 81, 101))
    assert field.center == pytest.approx((40, 47), abs=1e-6)
    assert field.sigma == pytest.approx((4, 6), abs=1e-6)
    assert field.overlap == pytest.approx(1, abs=1e-5)
    assert field.share(Box(-5, 0, 41, 101)) == pytest.approx(0.5 + down[40].item() / down.sum().item() / 2)


def test_real_weights_and_maxima_decide() -> None:
    """Catches averages in the place of maxima: the one bright pixel of a window has all the gradient."""
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 3, 2] = 1
    field = effective_receptive_field(nn.Sequential(nn.MaxPool2d(4)), "0", image)
    assert field.map[3, 2] == 1
    assert field.map.sum() == 1
    assert field.radius == 0
    assert field.overlap == pytest.approx(1)


def test_signal_is_drawn_for_every_map_and_image() -> None:
    """Catches a signal of ones: two maps of opposite weights cancel under it, and the unit would seem blind."""
    opposite = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        opposite.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    field = effective_receptive_field(nn.Sequential(opposite), "0", torch.ones(2, 1, 3, 3))
    assert field.map[1, 1] == 1


def test_a_net_of_the_book() -> None:
    """Catches weights or modes that are changed, a draw from the global generator, images that are ignored."""
    torch.manual_seed(1)
    model = get_model("vgg8_cifar10").train()
    layer = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][2]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    field = effective_receptive_field(model, layer, draws=10)
    again = effective_receptive_field(model, layer, draws=10)
    assert torch.equal(field.map, again.map)
    other = effective_receptive_field(model, layer, torch.rand(10, 3, 32, 32))
    assert not torch.equal(field.map, other.map)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    rows, cols = receptive_field(model)[layer].output_size
    assert field.box == receptive_field(model).box(layer, rows // 2, cols // 2).clipped
    assert field.share(field.box) == pytest.approx(1)
    assert 0 < field.size <= math.sqrt(field.box.height * field.box.width)


def test_a_dead_unit_is_named() -> None:
    """Catches a division by zero where no gradient arrives, and an unknown layer or unit."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100)  # type: ignore[union-attr,operator]
    with pytest.raises(ReproError, match="no gradient arrives from 1"):
        effective_receptive_field(model, "1", input_size=(1, 8, 8))
    for layer, row in (("7", 0), ("0", 6)):
        with pytest.raises(ReproError):
            effective_receptive_field(model, layer, row=row, input_size=(1, 8, 8))
