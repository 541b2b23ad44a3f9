"""The layers of 1998 and of 2012, each against loops that follow the papers' words."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from repro.models.layers import (
    Dropout2012,
    LocallyConnected2d,
    RBFOutput,
    RoundUpConv2d,
    ScaledTanh,
    SparseConv2d,
    TrainableSubsampling,
    init_by_fan_in,
    init_normal,
    rounded_up_size,
)
from repro.models.lenet import C3_TABLE

SMALL_TABLE = ((0, 1), (2,), (0, 2))


def test_scaled_tanh_maps_one_to_one_and_saturates_at_its_amplitude() -> None:
    """Catches a plain tanh, or amplitude and slope exchanged (f(1) would be 0.76 or 0.58)."""
    squash = ScaledTanh()
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(squash(x), x.new_tensor([-1.0, 0.0, 1.0, 1.7159]), atol=2e-5, rtol=0)


def test_subsampling_is_the_sum_of_four_times_a_coefficient_plus_a_bias() -> None:
    """Catches the mean for the sum (a factor 4), overlapping blocks, and one map's coefficient used for another."""
    layer = TrainableSubsampling(3)
    x = torch.randn(2, 3, 6, 4)
    for n in range(2):
        for c in range(3):
            for row in range(3):
                for column in range(2):
                    block = x[n, c, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    expected = block.sum() * layer.coefficient[c] + layer.bias[c]
                    torch.testing.assert_close(layer(x)[n, c, row, column], expected)


def test_sparse_convolution_equals_one_small_convolution_per_output_map() -> None:
    """Catches kernels laid into the wrong place of the dense weight, and unconnected maps that leak in."""
    layer = SparseConv2d(3, SMALL_TABLE, kernel_size=3)
    x = torch.randn(2, 3, 6, 5)
    first = 0
    for o, inputs in enumerate(SMALL_TABLE):
        kernels = layer.weight[first : first + len(inputs)]
        first += len(inputs)
        expected = nn.functional.conv2d(x[:, list(inputs)], kernels[None], layer.bias[o : o + 1])[:, 0]
        torch.testing.assert_close(layer(x)[:, o], expected)


def test_an_unconnected_input_map_never_reaches_the_output() -> None:
    """Catches a mask applied to the weights at the start only, which training would fill in."""
    layer = SparseConv2d(3, SMALL_TABLE, kernel_size=3)
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    layer(x)[:, 1].sum().backward()  # output map 1 reads input map 2 alone
    assert x.grad is not None
    assert x.grad[:, :2].abs().max() == 0
    assert x.grad[:, 2].abs().max() > 0


@pytest.mark.parametrize("table", [((0, 0),), ((3,),), ((-1,),)])
def test_a_table_that_cannot_be_wired_is_refused(table: tuple[tuple[int, ...], ...]) -> None:
    """Catches a repeated connection counted twice, and indices that wrap around to another map."""
    with pytest.raises(ValueError, match="at most once"):
        SparseConv2d(3, table, kernel_size=3)


def test_sparse_convolution_starts_each_map_by_its_own_fan_in() -> None:
    """Catches one bound for all maps: the map that reads six gets half the range of those that read three."""
    layer = SparseConv2d(6, C3_TABLE, kernel_size=5)
    three, six = layer.weight[:18], layer.weight[54:]
    assert three.abs().max() <= 2.4 / 75
    assert six.abs().max() <= 2.4 / 150
    assert three.abs().max() > 2.4 / 150


def test_rbf_logits_are_negative_squared_distances() -> None:
    """Catches the distance instead of its square, the sign, and a mean in place of the sum."""
    codes = torch.randn(4, 7)
    x = torch.randn(3, 7)
    expected = torch.tensor(
        [[-sum((x[n, k] - codes[c, k]).item() ** 2 for k in range(7)) for c in range(4)] for n in range(3)]
    )
    torch.testing.assert_close(RBFOutput(codes)(x), expected)
    assert not list(RBFOutput(codes).parameters())


def test_rbf_keeps_float32_under_autocast() -> None:
    """Catches distances computed in bfloat16, whose eight bits lose differences below 1 at 84 units."""
    codes = torch.randint(0, 2, (10, 84)) * 2.0 - 1
    x = codes[:2] + 0.01
    layer = RBFOutput(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, layer(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ScaledTanh(), (2, 3)),
        (TrainableSubsampling(2), (1, 2, 4, 4)),
        (SparseConv2d(3, SMALL_TABLE, kernel_size=3), (1, 3, 4, 4)),
        (RBFOutput(torch.randn(3, 5)), (2, 5)),
        (RoundUpConv2d(2, 3, 3, stride=2), (1, 2, 6, 5)),
        (LocallyConnected2d(2, 3, input_size=4, kernel_size=3, padding=1), (2, 2, 4, 4)),
        (Dropout2012().eval(), (2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_gradients_of_input_and_parameters_agree_with_finite_differences(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    """Catches a parameter cut off from the output, or an in-place step that spoils the backward pass."""
    layer = layer.double()
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (x, *values))


def test_starting_weights_fill_the_paper_s_interval() -> None:
    """Catches a normal distribution, or a bound of 2.4/√fan_in."""
    weight = init_by_fan_in(torch.empty(100_000), fan_in=24)
    assert 0.0999 < weight.max() <= 0.1
    assert -0.1 <= weight.min() < -0.0999
    assert math.isclose(weight.std().item(), 0.1 / math.sqrt(3), rel_tol=0.01)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        (224, 11, 4, 0, 55),
        (227, 11, 4, 0, 55),
        (228, 11, 4, 0, 56),
        (55, 3, 2, 0, 27),
        (32, 3, 2, 0, 16),
        (9, 3, 4, 1, 3),
    ],
)
def test_sizes_round_up(size: int, kernel: int, stride: int, padding: int, expected: int) -> None:
    """Catches rounding down (54), and one window too many where the last one ends on the border."""
    assert rounded_up_size(size, kernel, stride, padding) == expected


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_pytorch_s_ceil_mode_gives_the_sizes_of_2012(kernel: int) -> None:
    """Catches PyTorch's rule that a window must start inside the map, should it ever drop one that 2012 had."""
    for stride in range(1, kernel + 1):
        for side in range(kernel, 40):
            pooled = nn.MaxPool2d(kernel, stride, ceil_mode=True)(torch.zeros(1, 1, side, side))
            assert pooled.shape[-1] == rounded_up_size(side, kernel, stride), (side, stride)


def test_a_kernel_wider_than_its_map_has_no_places() -> None:
    """Catches a size of 0 or 1 for a window of which no part fits as a whole."""
    with pytest.raises(ValueError, match="does not fit"):
        rounded_up_size(10, 11, 4)


@pytest.mark.parametrize(("height", "width"), [(9, 9), (10, 12), (11, 8)])
@pytest.mark.parametrize(("padding", "groups"), [(0, 1), (1, 2)])
def test_a_rounded_up_convolution_reads_zeros_past_the_border(
    height: int, width: int, padding: int, groups: int
) -> None:
    """Catches zeros on the left, height and width exchanged, a bias left out past the border, and groups ignored."""
    conv = RoundUpConv2d(2, 4, 3, stride=4, padding=padding, groups=groups).double()
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    y = conv(x)
    rows, columns = (1 + math.ceil((n + 2 * padding - 3) / 4) for n in (height, width))
    assert y.shape == (2, 4, rows, columns)
    endless = torch.zeros(2, 2, 40, 40, dtype=torch.float64)
    endless[:, :, padding : padding + height, padding : padding + width] = x
    for o in range(4):
        inputs = slice(0, 2) if groups == 1 else slice(o // 2, o // 2 + 1)
        for i in range(rows):
            for j in range(columns):
                window = endless[:, inputs, 4 * i : 4 * i + 3, 4 * j : 4 * j + 3]
                expected = (window * conv.weight[o]).sum((1, 2, 3)) + conv.bias[o]  # type: ignore[index]
                torch.testing.assert_close(y[:, o, i, j], expected)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_locally_connected_layer_is_a_dot_product_per_place(padding: int) -> None:
    """Catches kernels shared between places, places read column by column, and one bias for a whole map."""
    layer = LocallyConnected2d(2, 3, input_size=5, kernel_size=3, padding=padding).double()
    side = 5 + 2 * padding - 2
    assert [tuple(p.shape) for p in layer.parameters()] == [(side * side, 18, 3), (3, side, side)]
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    padded = nn.functional.pad(x, (padding,) * 4)
    y = layer(x)
    assert y.shape == (2, 3, side, side)
    for i in range(side):
        for j in range(side):
            for o in range(3):
                kernel = layer.weight[i * side + j, :, o].view(2, 3, 3)
                expected = (padded[:, :, i : i + 3, j : j + 3] * kernel).sum((1, 2, 3)) + layer.bias[o, i, j]
                torch.testing.assert_close(y[:, o, i, j], expected)


def test_a_locally_connected_layer_with_equal_kernels_is_a_convolution() -> None:
    """Catches a kernel read in another order than a convolution's: input maps first, then rows, then columns."""
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    layer = LocallyConnected2d(2, 3, input_size=4, kernel_size=3, padding=1).double()
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1).T.expand_as(layer.weight))
        layer.bias.copy_(conv.bias.view(3, 1, 1).expand_as(layer.bias))  # type: ignore[union-attr]
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x))


def test_a_locally_connected_layer_refuses_another_size() -> None:
    """Catches a larger map read in part, or a product of matrices that do not fit."""
    with pytest.raises(ValueError, match=r"N×2×5×5, found 1×2×6×6"):
        LocallyConnected2d(2, 3, input_size=5, kernel_size=3)(torch.zeros(1, 2, 6, 6))


def test_both_dropouts_pass_on_in_expectation_what_they_pass_on_in_evaluation() -> None:
    """Catches a scale on the wrong side: summed over all masks with their probabilities, each keeps its own mean.

    PyTorch's is that of 2012 over 1 − p, mask for mask, so the next layer's weights take up the factor.
    """
    torch.manual_seed(0)
    p, x = 0.25, torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    probabilities = (p + (1 - 2 * p) * masks).prod(1)
    torch.testing.assert_close(probabilities @ (masks * x), Dropout2012(p).eval()(x))
    torch.testing.assert_close(probabilities @ (masks * x / (1 - p)), nn.Dropout(p).eval()(x))
    drawn = torch.stack([Dropout2012(p).train()(x) for _ in range(200)])
    inverted = torch.stack([nn.Dropout(p).train()(x) for _ in range(200)])
    for outputs, scale in ((drawn, 1), (inverted, 1 / (1 - p))):
        assert outputs.unique(dim=0).shape == (8, 3), "all masks are drawn"
        assert torch.isclose(outputs[:, None], scale * masks * x).all(2).any(1).all(), "and nothing else"


def test_the_gradient_of_dropout_passes_where_the_unit_was_kept() -> None:
    """Catches a gradient that is scaled, or that flows through dropped units."""
    torch.manual_seed(0)
    x = torch.randn(50, 50, requires_grad=True)
    y = Dropout2012()(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (y != 0).float())


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_of_everything_is_refused(p: float) -> None:
    """Catches a net that can pass on nothing."""
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Dropout2012(p)


def test_starting_values_of_2012_are_normal_with_one_bias_for_all() -> None:
    """Catches the variance passed for the deviation, and a bias drawn too."""
    torch.manual_seed(0)
    layer = nn.Linear(300, 300)
    init_normal(layer, 0.02, bias=1.0)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert (layer.bias == 1).all()
