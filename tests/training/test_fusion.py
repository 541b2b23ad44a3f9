"""`fuse`: another order of computation, the same function, gradients and winners."""

import pytest
import torch
from torch import Tensor, nn

from repro.models import get_model, model_info
from repro.models.layers import Dropout2012
from repro.models.normalization import LocalResponseNorm
from repro.training.fusion import ByteDropout, ConvPoolReLU, PoolReLU, fuse


def outputs_and_gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    y = net(x)
    weights = (torch.arange(y.numel()) % 7 - 3).view(y.shape)  # whole numbers: sums of them are exact in any order
    return y, list(torch.autograd.grad((y * weights).sum(), [x, *net.parameters()]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("side", [12, 13])
def test_first_block_is_the_plain_one(size: int, padding: int, side: int) -> None:
    """Catches a kernel moved the wrong way, phases in another order, a lost border, and sizes rounded up."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 6, 5, padding=padding), nn.ReLU(inplace=True), nn.MaxPool2d(size)).double()
    fused = fuse(plain)
    assert [type(layer) for layer in fused.children()] == [ConvPoolReLU]
    x = torch.randn(3, 1, side, side, dtype=torch.float64)
    expected, found = outputs_and_gradients(plain, x), outputs_and_gradients(fused, x)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_of_equals_wins(channels: int) -> None:
    """Catches a gradient shared among equal maxima, or given to the last: MNIST's paper is all ties.

    The pictures have two grey levels and the weights two values, so that most windows are tied, and sums are exact.
    """
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.where(torch.rand_like(parameter) < 0.5, -1.0, 1.0))
    x = (torch.rand(5, channels, 12, 12) < 0.3).float()
    expected, found = outputs_and_gradients(plain, x), outputs_and_gradients(fuse(plain), x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][0], expected[1][0])  # the gradient of the pictures tells the winners apart


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_keeps_the_right_share_at_the_right_scale(p: float) -> None:
    """Catches bytes compared the wrong way round, a missing or doubled scale, and dropout in evaluation."""
    torch.manual_seed(0)
    (dropout,) = fuse(nn.Sequential(nn.Dropout(p))).children()
    assert isinstance(dropout, ByteDropout)
    x = torch.ones(1001, 999)
    y = dropout(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    standard_error = (p * (1 - p) / x.numel()) ** 0.5
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=4 * standard_error)
    neighbours = torch.corrcoef(torch.stack([y.flatten()[:-1], y.flatten()[1:]]))[0, 1]
    assert abs(neighbours) < 4 / x.numel() ** 0.5
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_of_2012_keeps_its_scales_and_draws_the_masks_of_the_other(p: float) -> None:
    """Catches one dropout's scale given to the other, in training or in evaluation."""
    x = torch.randn(301, 99)
    plain = Dropout2012(p)
    published, inverted = fuse(nn.Sequential(plain, nn.Dropout(p))).children()
    torch.manual_seed(0)
    y = published(x)
    torch.manual_seed(0)
    torch.testing.assert_close(inverted(x), y / (1 - p))
    assert ((y == x) | (y == 0)).all()
    assert torch.equal(published.eval()(x), plain.eval()(x))


def test_dropout_of_another_probability_is_left_alone() -> None:
    """Catches a probability rounded to 1/256 in silence."""
    layers = nn.Sequential(nn.Dropout(0.3), Dropout2012(0.3))
    assert list(fuse(layers).children()) == list(layers.children())


def test_nan_is_not_hidden() -> None:
    """Catches a maximum that skips NaN: the loop stops on a loss that is not finite, so it has to arrive there."""
    fused = fuse(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 2] = torch.nan
    assert fused(x).isnan().any()


def test_nets_keep_their_parameters_and_their_drawing() -> None:
    """Catches a copy that trains weights of its own, and a net that no longer prints as its paper draws it."""
    for name in ("lenet5_modern", "alexnet_cifar10"):
        net = get_model(name)
        drawn = str(net)
        fused = fuse(net)
        assert str(net) == drawn
        assert {id(p) for p in fused.parameters()} == {id(p) for p in net.parameters()}
        assert any(isinstance(layer, PoolReLU) for layer in fused.modules())


def test_other_poolings_are_left_alone() -> None:
    """Catches a fusion across layers that do not commute with ReLU, or that return more than values."""
    for pool in (nn.AvgPool2d(2), nn.MaxPool2d(2, return_indices=True)):
        layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), pool)
        assert [type(layer) for layer in fuse(layers).children()] == [nn.Conv2d, nn.ReLU, type(pool)]
    overlapping = fuse(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2)))
    assert [type(layer) for layer in overlapping.children()] == [nn.Conv2d, PoolReLU]


def test_a_normalisation_between_relu_and_pool_keeps_its_place() -> None:
    """Catches ReLU moved past a layer with which it does not commute, and pools that round up rounded down."""
    torch.manual_seed(0)
    x = 60 * torch.randn(2, 3, 15, 15, dtype=torch.float64)
    norm = LocalResponseNorm(5, alpha=1e-2)
    for layers, fused_kinds in [
        ((nn.ReLU(), norm, nn.MaxPool2d(3, 2)), [nn.Conv2d, nn.ReLU, LocalResponseNorm, nn.MaxPool2d]),
        ((norm, nn.MaxPool2d(3, 2), nn.ReLU()), [nn.Conv2d, LocalResponseNorm, nn.MaxPool2d, nn.ReLU]),
        ((norm, nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)), [nn.Conv2d, LocalResponseNorm, PoolReLU]),
    ]:
        plain = nn.Sequential(nn.Conv2d(3, 8, 4), *layers).double()
        fused = fuse(plain)
        assert [type(layer) for layer in fused.children()] == fused_kinds
        expected, found = outputs_and_gradients(plain, x), outputs_and_gradients(fused, x)
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize(
    ("name", "options", "fused_pools"),
    [
        ("alexnet_2012", {}, [5]),
        ("alexnet_2012", {"lrn": "none"}, [1, 2, 5]),
        ("alexnet_2012_code", {}, [5]),
        ("alexnet", {}, [1, 2, 5]),
        ("alexnet_flowers", {}, [1, 2, 5]),
        ("cuda_convnet_18pct", {}, [1]),
        ("cuda_convnet_13pct", {}, [1, 2]),
    ],
)
def test_nets_give_the_same_maps_by_either_way(name: str, options: dict[str, str], fused_pools: list[int]) -> None:
    """Catches a pool fused that another layer precedes, a mean-pool fused, and one that could be and is not."""
    with torch.device("meta"):
        features = get_model(name, **options).get_submodule("features")
    features = features.to_empty(device="cpu").double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.normal_(0, max(parameter[0].numel(), 10) ** -0.5)
        fused = fuse(features)
        pools = [m for m in fused.children() if isinstance(m, PoolReLU | nn.MaxPool2d | nn.AvgPool2d)]
        numbers = [1, 2, 5] if name.startswith("alexnet") else [1, 2, 3]
        found = [n for n, pool in zip(numbers, pools, strict=False) if isinstance(pool, PoolReLU)]
        assert found == fused_pools
        x = 60 * torch.randn(1, *model_info(name).input_size, dtype=torch.float64)
        torch.testing.assert_close(fused(x), features(x))
