"""The deconvnet against one that is written out in loops, against captum, and against what must not change."""

import itertools
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import Deconvolution
from torch import nn
from torch.nn import functional as F

from repro.errors import UnknownName
from repro.models import get_model
from repro.models.layers import RoundUpConv2d, ScaledTanh
from repro.models.normalization import LocalResponseNorm
from repro.receptive_field import receptive_field
from repro.visualization.deconvnet import as_patterns, deconvnet
from repro.visualization.probe import ProbeError


def chain(**changes: nn.Module) -> nn.Sequential:
    """Overlapping pools that hang over the border, two groups, and a normalisation; double precision, weights drawn."""
    torch.manual_seed(1)
    layers = {
        "conv1": nn.Conv2d(2, 4, 3, stride=2, padding=1),
        "relu1": nn.ReLU(inplace=True),
        "norm1": LocalResponseNorm(3, alpha=0.5),
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "conv2": nn.Conv2d(4, 6, 3, padding=1, groups=2),
        "relu2": nn.ReLU(inplace=True),
        "pool2": nn.MaxPool2d(2),
    }
    layers["conv2"].bias.data += 0.5  # so that most units are on
    return nn.Sequential(OrderedDict(layers | changes)).double().eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pooled(maps: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, dict]:
    """Maximum and switch of every window that starts inside, those over the border cut off."""
    rows, columns = (-(-(n - size) // stride) + 1 for n in maps.shape[1:])
    out, switches = np.zeros((len(maps), rows, columns)), {}
    for c, i, j in itertools.product(range(len(maps)), range(rows), range(columns)):
        window = maps[c, i * stride : i * stride + size, j * stride : j * stride + size]
        a, b = np.unravel_index(window.argmax(), window.shape)
        out[c, i, j], switches[c, i, j] = window[a, b], (i * stride + a, j * stride + b)
    return out, switches


def unpooled(signal: np.ndarray, switches: dict, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape)
    for (c, i, j), (a, b) in switches.items():
        out[c, a, b] += signal[c, i, j]
    return out


def filtered(signal: np.ndarray, layer: nn.Conv2d, shape: tuple[int, ...]) -> np.ndarray:
    """Each value laid down as its filter, times the value, at the place that it was read from."""
    weight, (s, _), (p, _) = layer.weight.detach().numpy(), layer.stride, layer.padding
    below = np.zeros((shape[0], shape[1] + 2 * p, shape[2] + 2 * p))
    out_of_group, in_of_group = len(weight) // layer.groups, weight.shape[1]
    for c, i, j in itertools.product(*map(range, signal.shape)):
        first = c // out_of_group * in_of_group
        rows, columns = slice(i * s, i * s + weight.shape[2]), slice(j * s, j * s + weight.shape[3])
        below[first : first + in_of_group, rows, columns] += signal[c, i, j] * weight[c]
    return below[:, p : p + shape[1], p : p + shape[2]]


def written_out(net: nn.Sequential, image: torch.Tensor, unit: tuple[int, int, int]) -> np.ndarray:
    """Section 2.1 step by step for `chain()`, from one unit of its last pool to the pixels."""
    with torch.no_grad():
        conv1 = net.conv1(image[None])[0].numpy()
        normed = net.norm1(net.relu1(torch.from_numpy(conv1)[None]))[0].numpy()
        one, switches1 = pooled(normed, 3, 2)
        conv2 = net.conv2(torch.from_numpy(one)[None])[0].numpy()
    top, switches2 = pooled(np.maximum(conv2, 0), 2, 2)
    signal = np.zeros_like(top)
    signal[unit] = top[unit]
    signal = np.maximum(unpooled(signal, switches2, conv2.shape), 0)
    signal = filtered(signal, net.conv2, one.shape)
    signal = np.maximum(unpooled(signal, switches1, conv1.shape), 0)
    return filtered(signal, net.conv1, tuple(image.shape))


@pytest.mark.parametrize("unit", [(0, 1, 1), (4, 0, 2), (5, 1, 0)])
def test_it_is_what_the_paper_says_step_by_step(unit):
    """Catches the gradient's rule at a ReLU, a filter that is not transposed (or flipped), groups that mix,
    a normalisation that scales the signal, a switch that is overwritten where windows overlap, an activation of 1.
    """
    net, image = chain(), drawn(2, 22, 25)
    found = deconvnet(net, image, "pool2", unit)
    expected = written_out(net, image, unit)
    assert np.abs(expected).max() > 1e-3  # the case is not an empty one
    assert np.allclose(found.pixels[0].numpy(), expected, atol=1e-12)
    assert found.activations.item() == net(image[None])[(0, *unit)].item()
    assert found.places.tolist() == [list(unit[1:])]


def test_overlapping_windows_with_one_switch_add_up():
    """One large value is the maximum of four windows. Catches `max_unpool2d`, which keeps one of the four."""
    image = torch.zeros(1, 5, 5, dtype=torch.float64)
    image[0, 2, 2] = 3.0
    pool = nn.Sequential(nn.MaxPool2d(3, 2))
    found = deconvnet(pool, image, "0", 0, whole_map=True)
    assert found.pixels[0, 0, 2, 2] == 12.0
    assert found.pixels.count_nonzero() == 1
    assert found.places is None
    assert found.activations.item() == 12.0


def test_values_are_put_back_at_the_switches_alone():
    """Catches an unpooling that spreads a value over its window, or puts it into a corner of it."""
    image = drawn(2, 3, 8, 8).abs().float()  # a net without weights reads float32
    found = deconvnet(nn.Sequential(nn.MaxPool2d(2)), image, "0", 1, whole_map=True)
    _, switches = F.max_pool2d(image, 2, return_indices=True)
    expected = torch.zeros_like(image)
    for n in range(2):
        places = switches[n, 1].flatten()
        expected[n, 1].view(-1)[places] = image[n, 1].view(-1)[places]
    assert torch.equal(found.pixels, expected)


def test_without_relus_it_is_the_gradient_times_the_activation():
    """Catches a rectification where the net has none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.AvgPool2d(2)).double()
    image = drawn(1, 3, 14, 14).requires_grad_()
    value = net(image)[0, 2, 1, 1]
    (gradient,) = torch.autograd.grad(value, image)
    found = deconvnet(net, image, "3", (2, 1, 1))
    assert torch.allclose(found.pixels, gradient * value.detach(), atol=1e-14)


def test_another_rule_at_the_relus():
    """The gradient, times the activation. Catches a rule that is asked for and not followed."""
    net, image = chain(norm1=nn.Identity()), drawn(1, 2, 22, 22).requires_grad_()
    net.relu1.inplace = net.relu2.inplace = False
    value = net(image)[0, 3, 1, 1]
    (gradient,) = torch.autograd.grad(value, image)
    found = deconvnet(net, image.detach(), "pool2", (3, 1, 1), rule="gradient")
    assert gradient.any()
    assert torch.allclose(found.pixels, gradient * value.detach(), atol=1e-14)
    assert not torch.allclose(deconvnet(net, image.detach(), "pool2", (3, 1, 1)).pixels, found.pixels)


def test_linear_steps_are_transposed():
    """⟨deconv(y), x⟩ = ⟨y, conv(x)⟩, with y = conv(x) the sum of its squares. Catches another stride or padding on the
    way back.
    """
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 5, stride=3, padding=2, dilation=2, bias=False).double()
    image = drawn(1, 3, 23, 20)
    found = deconvnet(nn.Sequential(conv), image, "0", 3, whole_map=True)
    assert torch.isclose((found.pixels * image).sum(), conv(image)[:, 3].square().sum(), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_it_agrees_with_captum_where_captum_can():
    """torchvision's AlexNet, every ReLU a module. Catches a rule that is applied to some ReLUs only."""
    torch.manual_seed(0)
    net = torchvision.models.alexnet().eval()
    features = net.features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    images = torch.rand(2, 3, 96, 96)
    place = (7, 1, 0)
    theirs = Deconvolution(features).attribute(images.clone().requires_grad_(), target=place)
    found = deconvnet(net, images, "features.12", place)
    value = features(images)[:, *place].detach()
    assert (value > 0).any()
    assert torch.allclose(found.pixels, theirs * value.view(-1, 1, 1, 1), atol=1e-6 * theirs.abs().max().item())


def test_batch_normalisation_is_part_of_the_filters():
    """Against the same net with its normalisation folded into the convolution. Catches a normalisation that is passed
    over, and one that uses the statistics of the batch.
    """
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    nn.init.normal_(norm.weight)
    folded = nn.Conv2d(2, 4, 3)
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    folded.weight.data = conv.weight.data * factor.view(-1, 1, 1, 1)
    folded.bias.data = norm.bias.data - norm.running_mean * factor
    tail = nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.ReLU()
    image = drawn(3, 2, 12, 12)
    found = deconvnet(nn.Sequential(conv, norm, *tail).double(), image, "5", 1)
    expected = deconvnet(nn.Sequential(folded, *tail).double(), image, "4", 1)
    assert torch.equal(found.places, expected.places)
    assert torch.allclose(found.pixels, expected.pixels, atol=1e-12)


def test_windows_that_round_up_leave_no_signal_outside():
    """A net of 2012 against one without that reads an image with zeros to the right and below. Catches a pattern
    that is shifted by the padding.
    """
    torch.manual_seed(0)
    rounded = RoundUpConv2d(2, 3, 5, stride=4).double()
    plain = nn.Conv2d(2, 3, 5, stride=4).double()
    plain.load_state_dict(rounded.state_dict())
    image = drawn(1, 2, 16, 15)
    wide = F.pad(image, (0, 2, 0, 1))
    found = deconvnet(nn.Sequential(rounded), image, "0", (1, 3, 3))
    expected = deconvnet(nn.Sequential(plain), wide, "0", (1, 3, 3))
    assert found.pixels.shape == image.shape
    assert torch.equal(found.pixels, expected.pixels[:, :, :16, :15])


def test_a_unit_of_one_column_knows_nothing_of_the_other():
    """Catches groups that are not kept apart on the way back."""
    net, image = chain(), drawn(2, 22, 22)
    with torch.no_grad():
        net.norm1 = nn.Identity()  # the one layer that mixes the columns below
        before = deconvnet(net, image, "pool2", (0, 1, 1)).pixels
        net.conv1.weight[2:] = 0  # maps of the second column
        net.conv2.weight[3:] *= 5
        assert torch.equal(deconvnet(net, image, "pool2", (0, 1, 1)).pixels, before)
        net.conv1.weight[:2] *= 2
        assert not torch.equal(deconvnet(net, image, "pool2", (0, 1, 1)).pixels, before)


@pytest.mark.parametrize("norm", [nn.LocalResponseNorm(3, alpha=2.0), nn.CrossMapLRN2d(3, alpha=2.0)])
def test_the_normalisations_of_torch_are_passed_over(norm):
    """Catches a rule for this package's own normalisation alone."""
    net = chain(norm1=norm, pool1=nn.Identity())  # without switches below, nothing but the scale can differ
    image = drawn(2, 16, 16)
    found = deconvnet(net, image, "norm1", (1, 3, 3))
    value = net.norm1(net.relu1(net.conv1(image[None])))[0, 1, 3, 3]
    signal = np.zeros((4, 8, 8))
    signal[1, 3, 3] = value.item()
    assert value > 0.01
    assert np.allclose(found.pixels[0].numpy(), filtered(signal, net.conv1, (2, 16, 16)), atol=1e-12)


def test_the_strongest_place_is_taken_in_each_image():
    """Catches one place for the whole batch, and rows taken for columns."""
    net, images = chain(), drawn(5, 2, 22, 30)
    found = deconvnet(net, images, "relu2", 2)
    maps = net[:6](images)[:, 2]
    for n, (row, column) in enumerate(found.places.tolist()):
        assert maps[n, row, column] == maps[n].max() == found.activations[n]
        alone = deconvnet(net, images[n], "relu2", (2, row, column))
        assert torch.allclose(alone.pixels[0], found.pixels[n], atol=1e-14)
    assert len({tuple(p) for p in found.places.tolist()}) > 1


def test_memory_splits_the_batch_and_changes_nothing():
    """Catches batches that are lost or out of order."""
    net, images = chain(), drawn(5, 2, 22, 22)
    batch = deconvnet(net, images, "pool2", 3)
    singly = deconvnet(net, images, "pool2", 3, memory=1)
    for name in ("pixels", "places", "activations"):
        assert torch.allclose(getattr(batch, name), getattr(singly, name), atol=1e-14)


def test_the_pattern_lies_in_the_receptive_field():
    """Catches a pattern that is shifted, or at another place than the one it names."""
    net, image = chain(), drawn(2, 40, 40)
    table = receptive_field(net, (2, 40, 40))
    found = deconvnet(net, image, "pool2", (1, 2, 3))
    box = table.box("pool2", 2, 3).clipped
    outside = found.pixels[0].clone()
    assert outside.abs().sum() > 0
    outside[:, box.top : box.bottom, box.left : box.right] = 0
    assert not outside.any()


class Functional(nn.Module):
    """The layers of `chain()` without a single ReLU module, one of them in place, and a shortcut."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Identity()

    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        return self.out(torch.relu(self.conv2(x) + x if self.shortcut else self.conv2(x)))


def test_relus_that_are_functions_and_branches():
    """A shortcut adds its own way back to that through the convolution. Catches a ReLU that
    only modules make known, and the mask of the forward pass, which no pool hides here.
    """
    torch.manual_seed(0)
    image = drawn(1, 2, 10, 10)
    for shortcut in (False, True):
        net = Functional(shortcut).double()
        found = deconvnet(net, image, "out", 1)
        row, column = found.places[0].tolist()
        with torch.no_grad():
            hidden = net.conv1(image).relu()
            total = net.conv2(hidden) + (hidden if shortcut else 0)
        signal = torch.zeros_like(total)
        signal[0, 1, row, column] = total[0, 1, row, column]
        assert total[0, 1, row, column] > 0
        below = F.conv_transpose2d(signal, net.conv2.weight, padding=1) + (signal if shortcut else 0)
        expected = F.conv_transpose2d(below.relu(), net.conv1.weight, padding=1)
        assert torch.allclose(found.pixels, expected.detach(), atol=1e-12)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("not today")


@pytest.mark.parametrize("fails", [False, True])
def test_the_net_is_left_as_it_was(fails):
    """Catches hooks, modes, gradients or in-place layers that stay changed, after an error too."""
    net = chain(drop=nn.Dropout(0.5), norm2=nn.BatchNorm2d(6))
    if fails:
        net.append(Broken())
    net.double().train()
    net.conv2.eval()
    net.conv1.weight.requires_grad_(False)
    handle = net.conv1.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in net.state_dict().items()}

    def seen():
        hooks = [len(m._forward_hooks) for m in net.modules()]
        return (
            [m.training for m in net.modules()],
            hooks,
            [p.requires_grad for p in net.parameters()],
            net.relu1.inplace,
        )

    before = seen()
    if fails:
        with pytest.raises(RuntimeError, match="not today"):
            deconvnet(net, drawn(2, 2, 22, 22), "pool2", 0)
    else:
        deconvnet(net, drawn(2, 2, 22, 22), "pool2", 0)
    assert seen() == before
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None for p in net.parameters())
    handle.remove()


class Gate(nn.Module):
    def forward(self, x):
        return x * x.mean()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (ScaledTanh(), "before relu1, is Tanh|before norm1, is Tanh"),
        (nn.GroupNorm(2, 4), "norm1, is NativeGroupNorm"),
        (nn.BatchNorm2d(4, track_running_stats=False), "norm1, is NativeBatchNorm"),
        (nn.SiLU(), "norm1, is Silu"),
        (Gate(), "norm1, is Mul"),
    ],
)
def test_what_has_no_way_back_is_named(layer, named):
    """Catches a gradient that poses as a deconvnet, such as that of a tanh or of statistics of the image."""
    with pytest.raises(ProbeError, match=named):
        deconvnet(chain(norm1=layer), drawn(2, 22, 22), "pool2", 0)


def test_what_lies_above_the_layer_does_not_matter():
    """Catches a check of layers that the way back does not pass."""
    net = chain(top=nn.Sigmoid())
    assert deconvnet(net, drawn(2, 22, 22), "pool2", 0).pixels.any()
    with pytest.raises(ProbeError, match="Sigmoid"):
        deconvnet(net, drawn(2, 22, 22), "top", 0)


def test_requests_that_cannot_be_met():
    """Catches a unit that wraps around, and a layer of vectors taken for maps."""
    net, image = chain(flat=nn.Flatten()), drawn(2, 22, 22)
    with pytest.raises(UnknownName, match="pool2"):
        deconvnet(net, image, "pol2", 0)
    with pytest.raises(ProbeError, match="map 6 is out of range: 0 to 5"):
        deconvnet(net, image, "pool2", 6)
    with pytest.raises(ProbeError, match="column 9"):
        deconvnet(net, image, "pool2", (0, 0, 9))
    with pytest.raises(ProbeError, match="one place"):
        deconvnet(net, image, "pool2", (0, 0, 0), whole_map=True)
    with pytest.raises(ProbeError, match="not maps"):
        deconvnet(net, image, "flat", 0)
    with pytest.raises(ProbeError, match="float16"):
        deconvnet(chain().half(), image, "pool2", 0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("alexnet_2012", "features.pool5"), ("alexnet_2012_code", "features.relu5"), ("vgg16_bn_cifar10", "features")],
)
def test_the_nets_of_the_book(name, layer):
    """Two columns, LRN and round-up windows; the code's order; batch normalisation. Catches a layer that is refused."""
    torch.manual_seed(0)
    net = get_model(name)
    images = torch.rand(1, *(net.input_size if hasattr(net, "input_size") else net.input_sizes[0]))
    found = deconvnet(net, images, layer, 0, whole_map=True)
    assert found.pixels.isfinite().all()
    assert found.pixels.shape == images.shape


def test_patterns_have_zero_as_grey():
    """Catches a scale from smallest to largest, which moves zero, one that counts the zeros around a pattern, and one
    for all patterns together.
    """
    pixels = torch.zeros(3, 1, 20, 20)
    pixels[0, 0, 0, :4] = torch.tensor([2.0, -2.0, 1.0, 2.0])
    pixels[1, 0, :10, :10] = 0.1
    pixels[1, 0, 3, 3] = 50.0  # one of a hundred
    shown = as_patterns(pixels)
    assert shown.shape == (3, 20, 20, 3)
    assert torch.allclose(shown[0, 0, :5, 0], torch.tensor([1.0, 0.0, 0.75, 1.0, 0.5]))
    assert shown[1, 3, 3, 0] == 1.0
    assert shown[1, 0, 0, 0] > 0.52  # and not lost beside the large one
    assert (shown[2] == 0.5).all()


def test_the_figure_shows_images_above_patterns():
    """Catches rows exchanged and boxes that cut only one of them."""
    net, images = chain(), drawn(3, 2, 22, 22)
    found = deconvnet(net, images, "pool2", 1)
    boxes = torch.tensor([[0, 0, 9, 5]] * 3)
    axes = np.array(found.figure(boxes=boxes).axes).reshape(2, 3)
    for n in range(3):
        image, pattern = (axes[row, n].images[0].get_array() for row in (0, 1))
        assert image.shape == pattern.shape == (9, 5, 3)
        assert np.allclose(pattern, as_patterns(found.pixels)[n, :9, :5].numpy())
    whole = found.figure().axes[0].images[0].get_array()
    assert whole.min() == 0
    assert whole.max() == pytest.approx(1, abs=0.5)
