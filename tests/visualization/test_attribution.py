"""Six attributions against written-out sums, hand-worked nets and captum, and the net left as it was."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import Deconvolution, GuidedBackprop, NoiseTunnel, Saliency
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UnknownName
from repro.visualization.attribution import METHODS, TITLES, Attribution, attribute, attribution_figure
from repro.visualization.probe import ProbeError, batch_size


class Net(nn.Module):
    """Convolutions with batch norm, pooling, dropout and a ReLU called as a function: (N, 3, 8, 8) to (N, 5)."""

    def __init__(self, functional: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.dropout, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Dropout(0.5), nn.Linear(8 * 16, 5)
        self.relu1, self.relu2, self.functional = nn.ReLU(), nn.ReLU(inplace=True), functional
        nn.init.normal_(self.norm.running_mean, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x))
        x = F.max_pool2d(F.relu(x) if self.functional else self.relu1(x), 2)
        x = self.conv2(x)
        x = F.relu(x, inplace=True) if self.functional else self.relu2(x)
        return self.head(self.dropout(x).flatten(1))


class Smooth(nn.Module):
    """No kinks, so that a path integral converges fast."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[True, False], ids=["functional", "modules"])
def net(request) -> Net:
    return Net(request.param).eval()


def options(method: str) -> dict:
    return {"method": method, "layer": "conv2" if method == "gradcam" else None}


def gradient(net: nn.Module, image: Tensor, target: int) -> Tensor:
    """The gradient of one score with respect to one image (C, H, W)."""
    image = image.clone().requires_grad_()
    return torch.autograd.grad(net(image[None])[0, target], image)[0]


def close(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def test_saliency_is_the_gradient_image_by_image(net, images):
    """Catches gradients that are mixed between images, |gradients|, and those of another class or of probabilities."""
    found = attribute(net, images, [0, 4, 2])
    expected = torch.stack([gradient(net, image, t) for image, t in zip(images, (0, 4, 2), strict=True)])
    assert close(found.maps, expected)
    assert found.map.tolist() == found.maps.abs().max(dim=1).values.tolist()
    assert close(found.score, net(images)[torch.arange(3), torch.tensor([0, 4, 2])].detach())
    assert found.target.tolist() == [0, 4, 2]


def test_the_most_probable_class_is_the_default(net, images):
    """Catches a default class that is chosen with dropout on, or once for all images."""
    images = images * 20
    best = net(images).argmax(1)
    assert len(set(best.tolist())) > 1
    found = attribute(net.train(), images)
    assert torch.equal(found.target, best)
    assert torch.equal(found.maps, attribute(net, images, best).maps)
    assert torch.equal(attribute(net, images, 3).maps, attribute(net, images, torch.tensor([3, 3, 3])).maps)


@pytest.mark.parametrize(("method", "captum"), [("guided", GuidedBackprop), ("deconvnet", Deconvolution)])
def test_the_relu_rules_give_captums_maps(method, captum, images):
    """For ReLU modules, where captum is right. Catches a rule that is lost on the way, or not applied to functions."""
    reference = Net(functional=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum(reference).attribute(images.clone(), target=1)
    for functional in (True, False):
        assert close(attribute(Net(functional), images, 1, method).maps, expected)
    assert not close(attribute(reference, images, 1).maps, expected)


@pytest.mark.parametrize(("method", "captum"), [("guided", GuidedBackprop), ("deconvnet", Deconvolution)])
def test_a_net_of_torchvision(method, captum):
    """ResNet-18: in-place ReLUs, each used twice. Catches nets other than our own left out."""
    torch.manual_seed(0)
    resnet, image = torchvision.models.resnet18().eval(), torch.randn(1, 3, 40, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum(resnet).attribute(image.clone(), target=7)
    assert close(attribute(resnet, image, 7, method).maps, expected)


def test_smoothgrad_gives_captums_map_for_the_same_noise(net, images):
    """One image, one batch, our seed. Catches noise of another strength, or a sum for a mean."""
    image = images[:1]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        deviation = float(0.2 * (image.max() - image.min()))
        tunnel = NoiseTunnel(Saliency(net))
        expected = tunnel.attribute(image, nt_samples=12, stdevs=deviation, target=2, abs=False)
    assert close(attribute(net, image, 2, "smoothgrad", samples=12, noise=0.2, seed=5).maps, expected)


def test_smoothgrad_follows_from_its_seed(net, images):
    """Catches noise from the global generator, and maps that depend on the memory bound or on the other images."""
    images = images[:, :, :7, :5]  # 105 values, an odd number: torch draws those differently in one go
    net.head = nn.Linear(8 * 3 * 2, 5)
    before = torch.get_rng_state()
    found = attribute(net, images, 2, "smoothgrad", samples=6, seed=3).maps
    assert torch.equal(before, torch.get_rng_state())
    assert close(attribute(net, images, 2, "smoothgrad", samples=6, seed=3, memory=1).maps, found)
    assert close(attribute(net, images[1:2], 2, "smoothgrad", samples=6, seed=3).maps, found[1:2])
    assert not close(attribute(net, images, 2, "smoothgrad", samples=6, seed=4).maps, found)
    assert close(attribute(net, images, 2, "smoothgrad", noise=0).maps, attribute(net, images, 2).maps)


def test_integrated_gradients_are_the_sum_along_the_path(net, images):
    """Catches another baseline, an average over the wrong points, and a factor (image − baseline) that is left out."""
    points, weights = np.polynomial.legendre.leggauss(20)
    baseline = torch.full((3, 1, 1), -0.4)
    found = attribute(net, images, 1, "integrated", baseline=baseline, steps=20)
    for image, maps in zip(images, found.maps, strict=True):
        expected = torch.zeros_like(image)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            expected += weight * gradient(net, baseline + point * (image - baseline), 1)
        assert close(maps, expected * (image - baseline))


def test_integrated_gradients_converge_to_the_integral(images):
    """A midpoint sum in 1000 steps is the oracle. Catches points that crowd to one end of the path."""
    smooth = Smooth().double()
    images = images[:1].double()
    expected = torch.zeros_like(images[0])
    for k in range(1000):
        expected += gradient(smooth, images[0] * (k + 0.5) / 1000, 2) / 1000
    assert close(attribute(smooth, images, 2, "integrated").maps[0], expected * images[0])


@pytest.mark.parametrize("baseline", [0.0, 1.5])
def test_integrated_gradients_are_complete(baseline, images):
    """Catches maps that do not add up to the score's rise, and an error that is not the gap left to it."""
    smooth = Smooth()
    rise = (smooth(images) - smooth(torch.full_like(images, baseline)))[:, 1].detach()
    found = attribute(smooth, images, 1, "integrated", baseline=baseline)
    assert torch.allclose(found.maps.sum((1, 2, 3)), rise, atol=1e-5)
    assert torch.allclose(found.map.sum((1, 2)), rise, atol=1e-5)
    coarse = attribute(smooth, images, 1, "integrated", baseline=baseline, steps=1)
    gap = coarse.maps.sum((1, 2, 3)) - rise
    assert gap.abs().min() > 1e-4
    assert coarse.error is not None
    assert torch.allclose(coarse.error, gap, atol=1e-5)


def test_a_linear_net_by_hand(images):
    """The gradient of a linear score is its weights, and each pixel's share its weight times its value."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    weights = linear[1].weight[1].detach().view(3, 8, 8).expand(3, 3, 8, 8)
    assert close(attribute(linear, images, 1).maps, weights)
    assert close(attribute(linear, images, 1, "smoothgrad", samples=4).maps, weights)
    assert close(attribute(linear, images, 1, "integrated", baseline=0.5, steps=1).maps, weights * (images - 0.5))


@pytest.mark.parametrize("layer", ["conv1", "norm", "conv2"])
def test_gradcam_is_its_formula(layer, net, images):
    """Selvaraju et al. 2017, equations 1 and 2. Catches a sum for a mean, |maps|, and maps after an in-place ReLU."""
    maps = []

    def keep(_module, _inputs, output):
        maps.append(output)
        return output.clone()  # what works in place after it writes over a copy

    handle = net.get_submodule(layer).register_forward_hook(keep)
    score = net(images)[:, 4].sum()
    handle.remove()
    (gradients,) = torch.autograd.grad(score, maps)
    alpha = gradients.sum((2, 3)) / (gradients.shape[2] * gradients.shape[3])
    expected = torch.zeros(3, *gradients.shape[2:])
    for n in range(3):
        for k in range(gradients.shape[1]):
            expected[n] += alpha[n, k] * maps[0][n, k].detach()
    expected = expected.clamp(min=0)
    assert 0 < (expected == 0).float().mean() < 1
    large = F.interpolate(expected[:, None], (8, 8), mode="bilinear", align_corners=False)
    found = attribute(net, images, 4, "gradcam", layer=layer)
    assert close(found.maps, large)
    assert torch.equal(found.map, found.maps[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_one_image_at_a_time_gives_the_same(method, net, images):
    """Catches batches that are put together wrongly, and more images at once than the memory bound allows."""
    whole = attribute(net, images, [1, 2, 3], **options(method))
    passed = []
    net.conv1.register_forward_pre_hook(lambda _module, inputs: passed.append(len(inputs[0])))
    single = attribute(net, images, [1, 2, 3], **options(method), memory=1)
    assert max(passed) == 1
    assert close(single.maps, whole.maps)
    memory = next(m for m in range(0, 1 << 20, 1024) if batch_size(net, (3, 8, 8), m, gradients=True) == 2)
    passed.clear()
    with torch.no_grad():  # the caller's own setting does not matter
        pair = attribute(net, images, [1, 2, 3], **options(method), memory=memory)
    assert max(passed) == 2
    assert close(pair.maps, whole.maps)


def state(net: nn.Module) -> list:
    hooks = [{k: list(v) for k, v in vars(m).items() if "_hooks" in k and v} for m in net.modules()]
    modes = [(m.training, getattr(m, "inplace", None)) for m in net.modules()]
    return [hooks, modes, [(p.requires_grad, p.grad is None) for p in net.parameters()]]


@pytest.mark.parametrize("method", METHODS)
def test_the_net_is_left_as_it_was(method, net, images):
    """In training mode, with an own hook, after an error too. Catches hooks, modes and statistics left changed."""
    net.train()
    net.dropout.eval()
    net.head.bias.requires_grad_(False)
    net.conv2.register_forward_hook(lambda *_: None)
    before, weights = state(net), {name: t.clone() for name, t in net.state_dict().items()}
    given = images.clone()
    found = attribute(net, images, 1, **options(method))
    assert state(net) == before
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) > 3:
            raise ZeroDivisionError

    handle = net.head.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        attribute(net, images, 1, **options(method))
    handle.remove()
    assert state(net) == before
    assert all(torch.equal(t, weights[name]) for name, t in net.state_dict().items())
    assert torch.equal(given, images)
    assert not images.requires_grad
    assert not found.maps.requires_grad
    assert torch.equal(attribute(net, images, 1, **options(method)).maps, found.maps)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gradcam"])
def test_a_net_that_writes_over_its_input(method, net, images):
    """Catches images that are changed by the net, or a leaf that must not be written to."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.25)

    given = images.clone()
    found = attribute(nn.Sequential(Centred(), net), images, 1, method, baseline=0.25, noise=0)
    assert torch.equal(images, given)
    assert close(found.maps, attribute(net, images - 0.25, 1, method, noise=0).maps)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "guide"}, UnknownName, "did you mean guided"),
        ({"target": 5}, ProbeError, "classes are 0 to 4"),
        ({"target": -1}, ProbeError, "classes are 0 to 4"),
        ({"target": [1, 2]}, ProbeError, "one for each of 3 images"),
        ({"target": 1.5}, ProbeError, "one class"),
        ({"method": "gradcam"}, ProbeError, "last convolution is 'conv2'"),
        ({"layer": "conv2"}, ProbeError, "'gradcam' and no other"),
        ({"method": "gradcam", "layer": "head"}, ProbeError, "not maps"),
        ({"method": "gradcam", "layer": "conv3"}, UnknownName, "conv2"),
        ({"method": "integrated", "steps": 0}, ProbeError, "at least 1"),
        ({"method": "integrated", "baseline": torch.zeros(3, 7, 8)}, ProbeError, r"spreads to \(3, 3, 8, 8\)"),
        ({"method": "integrated", "baseline": float("nan")}, ProbeError, "NaN"),
        ({"method": "smoothgrad", "noise": -1.0}, ProbeError, "noise=-1"),
        ({"images": torch.zeros(1, 3, 9, 12)}, ProbeError, r"does not take \(3, 9, 12\)"),
        ({"images": torch.full((1, 3, 8, 8), float("inf"))}, ProbeError, "infinity"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, ProbeError, "standardised floats"),
        ({"model": nn.Conv2d(3, 4, 3)}, ProbeError, "a net with its head"),
        ({"model": Net().half()}, ProbeError, "float16"),
        ({"model": Smooth(), "method": "guided", "target": 1}, ProbeError, "no ReLU"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, error, message, net, images):
    """Catches a wrong answer, or an error from the depths of torch, in place of one line that helps."""
    with pytest.raises(error, match=message) as found:
        attribute(**({"model": net, "images": images} | change))
    assert "\n" not in str(found.value)


def test_the_figure_shows_the_maps(net, images):
    """Catches maps in the wrong row or column, and a range of colours that hides their sign."""
    found = [attribute(net, images, [0, 1, 2], **options(method)) for method in METHODS]
    figure = attribution_figure(found, classes=["cat", "dog", "owl", "elk", "bee"])
    assert isinstance(figure, Figure)
    grid = np.array(figure.axes).reshape(3, 7)
    assert [row[0].get_ylabel() for row in grid] == ["cat", "dog", "owl"]
    assert [ax.get_title() for ax in grid[0, 1:]] == [TITLES[method] for method in METHODS]
    for i, row in enumerate(grid):
        for ax, one in zip(row[1:], found, strict=True):
            drawn = ax.images[-1]
            np.testing.assert_array_equal(drawn.get_array(), one.map[i].numpy())
            low, high = drawn.get_clim()
            assert low == (-high if one.method == "integrated" else 0)
    assert isinstance(found[0].figure(), Figure)


def test_a_figure_of_different_images_is_refused(net, images):
    """Catches maps beside an image that they are not of."""
    first, second = attribute(net, images[:2]), attribute(net, images[1:])
    with pytest.raises(ProbeError, match="different images"):
        attribution_figure([first, second])


def test_a_map_of_zeros_can_be_drawn(images):
    """Catches a division by a largest value of 0."""
    zeros = torch.zeros(3, 1, 8, 8)
    nothing = Attribution("gradcam", zeros, images, torch.zeros(3, dtype=torch.long), torch.zeros(3))
    nothing.figure().canvas.draw()
