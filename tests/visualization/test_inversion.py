"""Inversions: of layers that lose nothing, or a known part, and by a loop written out."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UnknownName
from repro.visualization.inversion import invert, invert_code, typical_distance
from repro.visualization.probe import ProbeError


def rotation(channels: int = 3) -> nn.Conv2d:
    """A 1×1 convolution that turns the channels and loses nothing."""
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.orthogonal_(conv.weight)
    return conv


def images(count: int, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def test_a_layer_that_loses_nothing_is_inverted_whole() -> None:
    """Catches an ascent, a code of the wrong layer, and one image's code used for another."""
    net = nn.Sequential(rotation(), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    found = invert(net, images(3), "0", steps=300, alpha=0.0, variation=0.0)
    assert torch.allclose(found.inverted, images(3), atol=0.02)
    assert found.code_error.max() < 0.01
    assert found.image_error.max() < 0.01


def test_what_a_layer_loses_is_not_found_again() -> None:
    """Catches an image error that measures the code: a mean over 2×2 leaves the code exact and the image far off.

    What is lost stays as the start had it, so the image is off by at least its own part that the means do not see.
    """
    net = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 4))
    found = invert(net, images(4), "0", steps=300, alpha=0.0, variation=0.0)
    assert found.code_error.max() < 0.01
    means = nn.functional.interpolate(nn.functional.avg_pool2d(images(4), 2), scale_factor=2)
    unseen = (images(4) - means).flatten(1).norm(dim=1) / typical_distance(images(4))
    assert (found.image_error > 0.95 * unseen).all()
    assert (found.image_error < 1.1 * unseen).all()


def test_errors_written_out() -> None:
    """Catches squared distances, a norm over the batch, and distances divided by the length of the code."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    reference = images(5)
    found = invert(net, images(2), "1", reference=reference, steps=3)
    with torch.no_grad():
        for distance, a, b, others in (
            (found.code_error, net(found.inverted), net(images(2)), net(reference)),
            (found.image_error, found.inverted, images(2), reference),
        ):
            pairs = [
                math.dist(p.flatten().tolist(), q.flatten().tolist()) for p, q in itertools.combinations(others, 2)
            ]
            assert typical_distance(others) == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)
            for i in range(2):
                apart = math.dist(a[i].flatten().tolist(), b[i].flatten().tolist())
                assert distance[i].item() == pytest.approx(apart * len(pairs) / sum(pairs), rel=1e-4)


def test_what_is_minimised() -> None:
    """Catches a term that is missing, of the wrong weight, or a sum for a mean: at the end all forces cancel.

    The gradient of the objective, written out here, at the inversion is a small part of what it is at the image.
    """
    net = nn.Sequential(rotation())
    image = images(1).double()
    net.double()
    code = net(image).detach()
    x = invert_code(net, code, "0", (3, 8, 8), steps=3000, alpha=0.02, variation=0.1, rate=0.02)

    def objective(x: Tensor) -> Tensor:
        misfit = ((net(x) - code) ** 2).sum() / (code**2).sum()
        energy = 0.02 * (x**6).mean()
        down, right = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
        return misfit + energy + 0.1 * (down**2 + right**2).sum() / 64

    def force(x: Tensor) -> float:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(objective(x), x)[0].norm().item()

    assert force(x) < 0.01 * force(image)
    assert objective(x) < objective(image)


def test_the_prior_makes_it_smoother() -> None:
    """Catches a prior that is not used: neighbours differ less than half as much under ten times the weight."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

    def roughness(variation: float) -> float:
        x = invert(net, images(2), "2", variation=variation).inverted
        return (x[..., 1:] - x[..., :-1]).square().mean().item()

    assert roughness(0.3) < 0.5 * roughness(0.03)


def test_bounds_seed_and_the_net() -> None:
    """Catches pixels outside the bounds, global random numbers, and a net left changed, after an error too."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)).train()
    bounds = torch.full((1, 3, 1, 1), -0.5), torch.full((1, 3, 1, 1), 0.5)
    state, weights = torch.get_rng_state(), {name: t.clone() for name, t in net.state_dict().items()}
    first, second, other = (invert(net, images(2), "2", steps=5, bounds=bounds, seed=s).inverted for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 0.5
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError):
        invert(net, images(2)[:, :2], "2")
    assert all(module.training for module in net.modules())
    assert net[2].inplace
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(weights[name], t) for name, t in net.state_dict().items())


def test_the_memory_bound_changes_nothing() -> None:
    """Catches codes given to other images when there are several batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    at_once, singly = (invert(net, images(3), "1", steps=5, memory=m).inverted for m in (1 << 30, 1))
    torch.testing.assert_close(singly, at_once, atol=1e-4, rtol=0)


def test_refusals() -> None:
    """Catches errors without a scale, a code of another layer, and NaN taken for a code."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ProbeError, match="two pictures at least"):
        invert(net, images(1), "1")
    with pytest.raises(ProbeError, match="says the same of all"):
        invert(net, images(1).expand(2, -1, -1, -1), "1")
    with pytest.raises(UnknownName, match="layer 'relu'"):
        invert(net, images(2), "relu")
    for code in (torch.zeros(1, 4, 5, 5), torch.full((1, 4, 6, 6), torch.nan)):
        with pytest.raises(ProbeError, match="code: finite numbers"):
            invert_code(net, code, "1", (3, 8, 8))


def test_figure_shows_images_above_inversions() -> None:
    """Catches rows that are exchanged."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    found = invert(net, images(2), "1", steps=2)
    axes = found.figure().axes
    assert [ax.get_title(loc="left") for ax in axes] == ["image", "", "1", ""]
    drawn = torch.from_numpy(axes[1].images[0].get_array().data.copy()).permute(2, 0, 1)
    low, high = found.images[1].min(), found.images[1].max()
    assert torch.allclose(drawn, (found.images[1] - low) / (high - low), atol=1e-6)
