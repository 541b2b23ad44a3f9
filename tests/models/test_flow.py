"""Sizes of signals and gradients, against backward() on the net itself and sums written out."""

import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import DataError
from repro.models import get_model
from repro.models.flow import picture_share, signal_flow
from repro.models.layers import Dropout2012


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures (N, 2, 6, 6) and classes 0…2."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, 6, 6, generator=generator), torch.arange(n) % 3


def small_net(*after_relu: nn.Module) -> nn.Sequential:
    """A convolution, a ReLU that works in place, `after_relu` and a linear layer, always with the same weights."""
    torch.manual_seed(1)
    conv, linear = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)
    return nn.Sequential(conv, nn.ReLU(inplace=True), *after_relu, nn.Flatten(), linear)


def test_rows_are_those_of_the_net_s_own_pass() -> None:
    """Catches sizes taken after the ReLU that works in place, a sum for a mean, and the gradient of another weight."""
    images, labels = batch()
    net = small_net()
    before_relu = F.conv2d(images, net[0].weight, net[0].bias)
    logits = net(images)
    F.cross_entropy(logits, labels).backward()
    rows = signal_flow(net, images, labels)
    assert [row.name for row in rows] == ["0", "3"]
    for row, output, layer in zip(rows, (before_relu, logits), (net[0], net[3]), strict=True):
        assert row.std == pytest.approx(statistics.pstdev(output.flatten().tolist()), rel=1e-5)
        assert row.picture_share == picture_share(output)
        squares = [g * g for g in layer.weight.grad.flatten().tolist()]
        assert row.gradient_rms == pytest.approx(statistics.fmean(squares) ** 0.5, rel=1e-5)


def test_share_of_the_picture_by_hand() -> None:
    """Catches the variance between units taken for that between pictures, and n − 1 in one of the two variances.

    Two pictures, two units: unit 1 gives 0 and 2, unit 2 gives 10 and 14. The variances at the units are 1 and 4, in
    the mean 2.5; the four numbers have the mean 6.5 and the variance (42.25 + 20.25 + 12.25 + 56.25) / 4 = 32.75.
    """
    assert picture_share(torch.tensor([[0.0, 10.0], [2.0, 14.0]])) == pytest.approx(2.5 / 32.75)


def test_share_of_the_picture_at_its_ends() -> None:
    """Catches a share that is not 0 where nothing depends on the picture, nor 1 where everything does, nor a number."""
    same = torch.arange(6.0).expand(4, 6)
    assert picture_share(same) == 0
    assert picture_share(same.T) == pytest.approx(1)
    assert picture_share(torch.zeros(4, 6)) == 0


@pytest.mark.parametrize("dropout", [nn.Dropout(0.9), Dropout2012(0.5)], ids=["inverted", "2012"])
def test_no_mask_of_dropout_counts_as_the_picture(dropout: nn.Module) -> None:
    """Catches dropout at work: every row of a net that sees one picture twice would differ between the two."""
    images, labels = batch(1)
    twice = images.expand(2, -1, -1, -1)
    rows = signal_flow(small_net(dropout).train(), twice, labels.expand(2))
    assert max(row.picture_share for row in rows) < 1e-12


def test_batch_normalisation_takes_the_statistics_of_the_batch() -> None:
    """Catches evaluation mode, in which a fresh normalisation changes next to nothing."""
    images, labels = batch()
    net = nn.Sequential(nn.BatchNorm2d(2), *small_net()).eval()
    rows = signal_flow(net, 100 + 50 * images, labels)
    normal = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), correction=0, keepdim=True)
    expected = F.conv2d(normal, net[1].weight, net[1].bias).std(correction=0).item()
    assert rows[0].std == pytest.approx(expected, rel=1e-3)


def test_the_model_is_left_as_it_was() -> None:
    """Catches statistics, gradients, a mode or a hook left behind, after a pass and after one that failed."""
    images, labels = batch()
    net = nn.Sequential(nn.BatchNorm2d(2), *small_net()).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    signal_flow(net, images, labels)
    with pytest.raises(RuntimeError):
        signal_flow(net, images[:, :1], labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_it_works_where_gradients_are_off() -> None:
    """Catches a pass that keeps no graph because the caller, a notebook say, has switched gradients off."""
    images, labels = batch()
    expected = signal_flow(small_net(), images, labels)
    with torch.no_grad():
        assert signal_flow(small_net(), images, labels) == expected


def test_one_image_is_refused() -> None:
    """Catches a share of 0, or of NaN, reported for a single picture."""
    images, labels = batch(1)
    with pytest.raises(DataError, match=r"1 image.*at least two"):
        signal_flow(small_net(), images, labels)


def test_batch_normalisation_keeps_a_deep_net_s_gradient_alive() -> None:
    """Catches a gradient that is not of the net: VGG-16's first layer gets a millionth of what it gets with BN."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)
    first, logits = {}, {}
    for name in ("vgg16_cifar10", "vgg16_bn_cifar10"):
        torch.manual_seed(0)
        rows = signal_flow(get_model(name), images, labels)
        assert len(rows) == 16
        first[name], logits[name] = rows[0].gradient_rms, rows[-1].picture_share
    assert first["vgg16_cifar10"] < 1e-4 * first["vgg16_bn_cifar10"]
    assert logits["vgg16_cifar10"] < 1e-6 < 1e-2 < logits["vgg16_bn_cifar10"]
