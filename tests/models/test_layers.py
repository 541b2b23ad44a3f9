"""The layers of 1998, each against loops that follow the paper's words."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from repro.models.layers import RBFOutput, ScaledTanh, SparseConv2d, TrainableSubsampling, init_by_fan_in
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
