"""Weights destroyed layer by layer: which, in which order, on a copy; and the measures against written-out sums."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

from repro import weights
from repro.errors import UnknownName
from repro.visualization.attribution import attribute
from repro.visualization.probe import ProbeError
from repro.visualization.sanity import rank_correlation, sanity_check, ssim, stages_of

STAGES = ("head", "second", "first")


class Net(nn.Module):
    """Layers that are used in another order than they are defined in, one of them never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.unused = nn.Linear(8, 4), nn.Conv2d(3, 3, 3)
        self.norm, self.second, self.first = nn.BatchNorm2d(8), nn.Conv2d(6, 8, 3), nn.Conv2d(3, 6, 3)
        nn.init.normal_(self.norm.running_mean, std=0.1)
        nn.init.normal_(self.norm.weight, mean=1.0, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))


def destroyed(original: nn.Module, now: nn.Module) -> set[str]:
    """The layers whose weights are not the original ones."""
    own, other = original.state_dict(), now.state_dict()
    return {name.split(".")[0] for name, value in own.items() if not torch.equal(value, other[name])}


def test_stages_go_from_the_top_in_the_order_of_use(images):
    """Catches the order of definition, layers never used, and normalisation that is a stage by itself."""
    assert stages_of(Net(), images) == [("head",), ("second", "norm"), ("first",)]


@pytest.mark.parametrize("redraw", ["initialize", "permute"])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("cascading", [set(), {"head"}, {"head", "second", "norm"}, {"head", "second", "norm", "first"}]),
        ("independent", [set(), {"head"}, {"second", "norm"}, {"first"}]),
    ],
)
def test_what_is_destroyed_at_each_stage(order, expected, redraw, images):
    """Catches a cascade from below, and layers that stay destroyed where each has its turn."""
    net, seen = Net(), []

    def watch(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        seen.append(copy.deepcopy(model))
        return inputs

    check = sanity_check(net, images, {"watch": watch}, seed=1, order=order, redraw=redraw)
    assert check.stages == STAGES
    assert [destroyed(net, model) for model in seen] == expected
    if redraw == "permute":
        values = [model.first.weight.detach().flatten().sort().values for model in (net, seen[-1])]
        assert torch.equal(*values)


@pytest.mark.parametrize("redraw", ["initialize", "permute"])
def test_new_weights_follow_from_the_seed(redraw, images):
    """Catches weights from the global generator, and others for the two orders."""
    net, seen = Net(), []

    def watch(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        seen.append(model.second.weight.clone())
        return inputs

    before = torch.get_rng_state()
    for seed, order in ((1, "cascading"), (1, "independent"), (2, "cascading")):
        sanity_check(net, images, {"watch": watch}, seed=seed, order=order, redraw=redraw)
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = seen[2], seen[6], seen[10]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_net_is_left_as_it_was(images):
    """Catches weights drawn anew in the net itself, and hooks or modes left behind."""
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sanity_check(net, images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())


def test_a_map_that_is_the_image_never_changes(images):
    """An edge detector passes every look and fails this check. Catches maps compared with those of another image."""
    edges = {"image": lambda model, x, target: x, "edges": lambda model, x, target: x - x.roll(1, 3)}
    check = sanity_check(Net(), images, edges)
    for values in (check.rank, check.signed, check.ssim):
        assert values.shape == (2, 3, 2)
        assert torch.allclose(values, torch.ones(2, 3, 2), atol=1e-6)


def test_the_measures_are_taken_of_the_right_maps(images):
    """Each number again, from maps computed outside. Catches methods, stages or images exchanged."""
    net, models = Net(), []

    def watch(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        models.append(copy.deepcopy(model))
        return inputs

    sanity_check(net, images, {"watch": watch}, target=[1, 3], seed=4)
    check = sanity_check(net, images, ["saliency", "guided", "gradcam"], target=[1, 3], seed=4, layer="second")
    assert check.methods == ("saliency", "guided", "gradcam")
    assert check.target.tolist() == [1, 3]
    for m, method in enumerate(check.methods):
        layer = "second" if method == "gradcam" else None
        maps = [attribute(model, images, [1, 3], method, layer=layer).maps for model in models]
        for s in range(3):
            for n in range(2):
                first, now = maps[0][n], maps[s + 1][n]
                flat = [values.abs().max(dim=0).values.numpy() for values in (first, now)]
                expected = [spearmanr(first.abs().flatten(), now.abs().flatten()).statistic]
                expected += [spearmanr(first.flatten(), now.flatten()).statistic, ssim(*flat)]
                found = [float(values[m, s, n]) for values in (check.rank, check.signed, check.ssim)]
                if np.isnan(expected).any():  # a Grad-CAM of zeros everywhere
                    assert found[:2] == [0, 0]
                else:
                    np.testing.assert_allclose(found, expected, atol=1e-5)
        stacked = torch.stack([values[0].abs().amax(0) for values in maps])
        assert torch.allclose(check.maps[m], stacked)


def test_the_classes_are_those_of_the_original_net(images):
    """Catches a class chosen anew after each stage: maps would differ because the question does."""
    net, asked = Net().eval(), []

    def watch(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        asked.append(target.tolist())
        return inputs

    sanity_check(net, images, {"watch": watch})
    assert asked == [net(images).argmax(1).tolist()] * 4


def test_structural_similarity_window_by_window():
    """Equation 13 of Wang et al. 2004, written out. Catches windows over the border, and a variance for a deviation."""
    rng = np.random.default_rng(0)
    first, second = rng.random((11, 9)), rng.random((11, 9)) * 3
    a, b = first / first.max(), second / second.max()
    values = []
    for y in range(11 - 6):
        for x in range(9 - 6):
            p, q = a[y : y + 7, x : x + 7], b[y : y + 7, x : x + 7]
            covariance = ((p - p.mean()) * (q - q.mean())).mean()
            above = (2 * p.mean() * q.mean() + 0.0001) * (2 * covariance + 0.0009)
            values.append(above / ((p.mean() ** 2 + q.mean() ** 2 + 0.0001) * (p.var() + q.var() + 0.0009)))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(first, 2 * first) == pytest.approx(1)
    assert ssim(first[:3, :3], first[:3, :3]) == pytest.approx(1)  # smaller than a window
    nothing = np.zeros((11, 9), np.float32)
    assert ssim(first, nothing) == pytest.approx(0, abs=0.05)


def test_rank_correlation_is_spearmans():
    """With ties, as maps full of zeros have them. Catches ranks that depend on the order of equal values."""
    rng = np.random.default_rng(0)
    first = np.maximum(rng.normal(size=(9, 9)), 0)
    second = np.maximum(first + rng.normal(size=(9, 9)), 0)
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert 0 < expected < 1
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, np.zeros_like(first)) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": "cascade"}, UnknownName, "cascading"),
        ({"redraw": "init"}, UnknownName, "initialize"),
        ({"methods": ["guide"]}, UnknownName, "guided"),
        ({"methods": {"flat": lambda model, x, target: x[:, 0]}}, ProbeError, r"'flat': maps \(N, C, H, W\)"),
        ({"model": nn.Sequential(nn.Flatten())}, ProbeError, "no weights"),
    ],
)
def test_what_cannot_be_checked_is_refused(change, error, message, images):
    """Catches a misspelt order that is taken for the other one."""
    with pytest.raises(error, match=message):
        sanity_check(**({"model": Net(), "images": images} | change))


def test_a_layer_without_initialisation_of_its_own(images):
    """Catches trained weights that stay where all should be gone."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(1, 2, 3).view(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    net = nn.Sequential(Scale(), Net())
    with pytest.raises(ProbeError, match="redraw='permute'"):
        sanity_check(net, images)
    check = sanity_check(net, images, redraw="permute")
    assert check.stages == ("1.head", "1.second", "1.first", "0")


def test_the_figure_shows_curves_and_maps(images):
    """Catches curves without their start at 1, and maps in the row of another method."""
    check = sanity_check(Net(), images, ["saliency", "guided"])
    figure = check.figure()
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    panels, grid = figure.axes[:3], np.array(figure.axes[3:]).reshape(2, 5)
    for ax, values in zip(panels, (check.rank, check.signed, check.ssim), strict=True):
        for line, curve in zip(ax.lines, values.mean(2).tolist(), strict=False):
            np.testing.assert_allclose(line.get_ydata(), [1, *curve], rtol=1e-6)
    assert [ax.get_title() for ax in grid[0]] == ["image", "original", *STAGES]
    for row, maps in zip(grid, check.maps, strict=True):
        for ax, drawn in zip(row[1:], maps, strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), drawn.numpy())


def test_guided_backpropagation_fails_as_published():
    """On a trained LeNet: Adebayo et al. 2018, figure 2. Catches a check that no method can fail, or that all fail.

    With the top layer drawn anew little is left of the signed gradient (0.3 at most for these draws); the map of guided
    backpropagation is still much the same, and stays nearer to its original at every stage.
    """
    net = weights.load("lenet5-modern")
    digits = load_digits()
    places = [int(np.flatnonzero(digits.target == digit)[0]) for digit in range(10)]
    pictures = [(digits.images[i] * 15.9375).astype(np.uint8) for i in places]
    for seed in (0, 1):
        for redraw in ("initialize", "permute"):
            check = sanity_check(net.model, net.prepare(pictures), seed=seed, redraw=redraw)
            for values in (check.rank, check.signed, check.ssim):
                gradient, guided = values.mean(2)
                assert (guided > gradient).all()
            gradient, guided = check.signed.mean(2)
            assert gradient.abs()[0] < 0.5 < guided[0]


@pytest.mark.parametrize("name", ["flowers-report", "vgg16-bn-cifar10-5"])
def test_guided_backpropagation_fails_on_deep_nets_too(name):
    """A photograph, half of the layers drawn anew from the top. Catches a failure that is the small LeNet's own."""
    net = weights.load(name)
    check = sanity_check(net.model, net.prepare(load_sample_image("flower.jpg")))
    half = len(check.stages) // 2
    for values in (check.rank, check.signed, check.ssim):
        gradient, guided = values.mean(2)[:, :half]
        assert (guided > gradient + 0.1).all()
    gradient, guided = check.signed.mean(2)[:, half - 1]
    assert abs(gradient) < 0.5 < guided
