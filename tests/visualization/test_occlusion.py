"""Occlusion maps against captum's, place by place, and what they leave behind."""

import gc
import weakref

import pytest
import torch
import torchvision
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro.errors import UnknownName
from repro.visualization.occlusion import occlusion, survey
from repro.visualization.probe import ProbeError


def small_net(seed: int = 0) -> nn.Sequential:
    """Convolutions, a pool whose windows overlap, batch norm, dropout and a linear layer, for 3×21×26 pixels."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(12 * 5 * 6, 7)),
    )
    net[4].running_mean.normal_()
    net[4].running_var.uniform_(0.5, 2)
    return net


def some_image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


IMAGE = some_image(3, 21, 26)


class Doubled(nn.Module):
    """Two paths that are added: no chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.out = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.out((x + self.mix(x)).mean((2, 3)))


def captum_answers(model: nn.Module, image: Tensor, size, stride, target: int, value: float) -> tuple[Tensor, Tensor]:
    """Captum's attribution (H, W), and the logits it saw for each place, in its order: columns outermost."""
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(model(x))
        return seen[-1]

    model.eval()
    with torch.no_grad():
        found = CaptumOcclusion(forward).attribute(
            image[None], (image.shape[0], *size), (image.shape[0], *stride), baselines=value, target=target
        )
    rows = -(-(image.shape[1] - size[0]) // stride[0]) + 1
    return found[0, 0], torch.cat(seen[1:]).unflatten(0, (-1, rows)).transpose(0, 1)


@pytest.mark.parametrize("method", ["batched", "cone"])
@pytest.mark.parametrize(
    ("size", "stride", "value"),
    [((8, 8), (4, 4), 0.0), ((7, 5), (3, 5), 0.7), ((21, 26), (1, 1), -1.0), ((6, 26), (4, 9), 0.0)],
)
def test_every_place_is_captum_s(method: str, size, stride, value: float) -> None:
    """Logits of each place and the map of differences. Catches a window one pixel off, rows and columns swapped, a
    last window that is left out or moved into the image, a mean over windows that counts hidden pixels wrongly."""
    model = small_net()
    found = occlusion(model, IMAGE, size, stride, target=3, value=value, method=method)
    differences, logits = captum_answers(model, IMAGE, size, stride, 3, value)
    assert found.method == method
    assert found.logits.shape == logits.shape
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.drop(logits=True), differences, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.probability, logits.softmax(2)[..., 3], rtol=0, atol=1e-5)
    assert torch.equal(found.predicted, logits.argmax(2))


def test_difference_in_probability_is_captum_s() -> None:
    """On a net with softmax behind it. Catches a drop that is taken of logits, or relative to the occluded image."""
    model = small_net()
    found = occlusion(model, IMAGE, 6, 5, target=2)
    differences, _ = captum_answers(nn.Sequential(model, nn.Softmax(1)), IMAGE, (6, 6), (5, 5), 2, 0.0)
    torch.testing.assert_close(found.drop(), differences, rtol=0, atol=1e-5)


def test_alexnet_is_captum_s() -> None:
    """torchvision's AlexNet at 224 with 9 windows. Catches a cone that goes wrong where pools overlap or end early."""
    torch.manual_seed(0)
    model, image = torchvision.models.alexnet().eval(), some_image(3, 224, 224)
    differences, logits = captum_answers(model, image, (96, 96), (64, 64), 5, 0.0)
    for method in ("batched", "cone"):
        found = occlusion(model, image, 96, 64, target=5, method=method)
        torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.drop(logits=True), differences, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["batched", "cone"])
def test_strongest_map_is_summed_window_by_window(method: str) -> None:
    """Written out: hide, run up to the layer, sum the map. Catches another map's sum, or one taken on the clean image
    alone, or the strongest map sought anew in each occluded image."""
    model = small_net().eval()
    found = occlusion(model, IMAGE, 9, 6, value=0.5, method=method, layer="5")
    with torch.no_grad():
        clean = model[:6](IMAGE[None])[0].sum((1, 2))
        assert found.unit == int(clean.argmax())
        assert found.clean_activation == pytest.approx(float(clean.max()), rel=1e-5)
        for row in range(found.activation.shape[0]):
            for column in range(found.activation.shape[1]):
                hidden = IMAGE.clone()
                hidden[:, 6 * row : 6 * row + 9, 6 * column : 6 * column + 9] = 0.5
                expected = model[:6](hidden[None])[0, found.unit].sum()
                assert float(found.activation[row, column]) == pytest.approx(float(expected), rel=1e-5)


def test_boxes_are_the_windows() -> None:
    """By hand: 21 pixels, windows of 8 every 5 begin at 0, 5, 10 and 15, the last cut at 21. Catches boxes over the
    border and a missing last one."""
    boxes = occlusion(small_net(), IMAGE, (8, 26), (5, 26)).boxes
    assert boxes.tolist() == [[[0, 0, 8, 26]], [[5, 0, 13, 26]], [[10, 0, 18, 26]], [[15, 0, 21, 26]]]


def test_defaults_are_the_net_s_own_class_and_last_convolution() -> None:
    """Layer 6, the dropout behind the last convolution's ReLU. Catches the convolution itself, whose sums are negative
    in part, and a pool behind it."""
    model = small_net()
    found = occlusion(model, IMAGE, 8, 8)
    assert found.layer == "6"
    assert found.target == int(found.clean_logits.argmax())
    vgg = torchvision.models.vgg11(num_classes=2).features.eval()
    layer, multiply_adds = survey(vgg, torch.zeros(1, 3, 32, 32))
    assert layer == "19"
    convolutions = [(3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4)]
    convolutions += [(512, 512, 2)] * 2
    assert multiply_adds == sum(9 * a * b * side**2 for a, b, side in convolutions)


def test_colour_may_differ_by_channel() -> None:
    """Catches a colour that is spread over rows, or of which the first number is taken."""
    model, colour = small_net().eval(), torch.tensor([0.3, -1.0, 2.0])
    found = occlusion(model, IMAGE, (21, 26), 1, value=colour)
    with torch.no_grad():
        expected = model(colour.view(1, 3, 1, 1).expand(1, 3, 21, 26))
    torch.testing.assert_close(found.logits[0, 0], expected[0], rtol=0, atol=1e-5)


def test_auto_takes_the_cone_where_it_saves_work() -> None:
    """Catches a choice that never takes the cone, takes it for windows as large as the image, or where there is none.

    The joined net's answers are held against captum's too."""
    model = small_net()
    assert occlusion(model, IMAGE, 4, 4).method == "cone"
    assert occlusion(model, IMAGE, 20, 20).method == "batched"
    assert occlusion(model, IMAGE, 4, 4, memory=1).method == "batched"
    joined = Doubled()
    found = occlusion(joined, IMAGE, 4, 4, target=1)
    assert (found.method, found.layer) == ("batched", "mix")
    torch.testing.assert_close(found.logits, captum_answers(joined, IMAGE, (4, 4), (4, 4), 1, 0.0)[1])


@pytest.mark.parametrize("method", ["batched", "cone"])
def test_bf16_is_close_and_said(method: str) -> None:
    """Catches a precision that is recorded and not used, or that changes more than rounding does."""
    exact = occlusion(small_net(), IMAGE, 6, 6, method=method)
    found = occlusion(small_net(), IMAGE, 6, 6, method=method, precision="bf16")
    assert (exact.precision, found.precision) == ("float32", "bf16")
    difference = (found.logits - exact.logits).abs().max()
    assert 1e-5 < difference < 0.03 * exact.logits.abs().max()


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors made while it lasts that are still held, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given | self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return output

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("method", ["batched", "cone"])
def test_memory_stays_within_its_bound(method: str) -> None:
    """All tensors alive are counted. Catches batches of all windows at once, maps that pile up from batch to batch,
    and a bound that counts a layer's output and not what it reads."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 256, 10)),
    )
    image, peaks = some_image(3, 64, 64), {}
    for memory in (4 << 20, 64 << 20):
        gc.collect()
        with Alive() as alive:
            found = occlusion(model, image, 8, 4, method=method, memory=memory)
        results = 3 * 4 * (found.logits.numel() + found.activation.numel())  # as parts, joined, and back in order
        peaks[memory] = alive.peak - results
        assert peaks[memory] <= memory
    assert peaks[4 << 20] < peaks[64 << 20]


@pytest.mark.parametrize("method", ["batched", "cone"])
def test_net_is_left_as_it_was(method: str) -> None:
    """Also after an error halfway. Catches eval mode, hooks, in-place layers or gradients that stay changed, batch
    norm's statistics moved, and dropout that is live."""
    model = small_net().train()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = occlusion(model, IMAGE, 6, 5, method=method)
    assert torch.equal(first.logits, occlusion(model, IMAGE, 6, 5, method=method).logits)
    with pytest.raises(ProbeError):
        occlusion(model, IMAGE, 6, 5, method=method, layer="7")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model] == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert model[1].inplace
    assert model[5].inplace
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert calls


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"size": 22}, ProbeError, "22 pixels high does not fit into an image of 21"),
        ({"size": 0}, ProbeError, "size: .* at least 1"),
        ({"size": 4.5}, ProbeError, "size: .* at least 1"),
        ({"stride": (5, 0)}, ProbeError, "stride: .* at least 1"),
        ({"stride": 9}, ProbeError, "some pixels are never hidden"),
        ({"target": 7}, ProbeError, "class 7 is out of range: 0 to 6"),
        ({"target": -1}, ProbeError, "class -1 is out of range"),
        ({"layer": "conv"}, UnknownName, "'conv'"),
        ({"layer": "8"}, ProbeError, "not maps"),
        ({"value": torch.zeros(2)}, ProbeError, "a number or 3 numbers"),
        ({"value": float("nan")}, ProbeError, "a number or 3 numbers"),
        ({"method": "cones"}, UnknownName, "cone"),
        ({"precision": "bf32"}, UnknownName, "bf16"),
        ({"image": torch.zeros(2, 3, 21, 26)}, ProbeError, "one is needed, found 2"),
        ({"image": IMAGE * float("inf")}, ProbeError, "NaN or infinity"),
        ({"model": Doubled(), "method": "cone"}, ProbeError, "only a chain has a cone"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(1638, 2))}, ProbeError, "has no convolution"),
        ({"model": nn.Sequential(nn.Conv2d(3, 4, 3))}, ProbeError, "logits"),
        ({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))}, ProbeError, "1: "),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(change: dict, error: type[Exception], words: str) -> None:
    """Catches answers for windows, classes, layers, images or nets that make no sense."""
    arguments = {"model": small_net(), "image": IMAGE, "size": 8, "stride": 5} | change
    with pytest.raises(error, match=words) as caught:
        occlusion(**arguments)
    assert "\n" not in str(caught.value)


def test_figure_has_the_three_panels_and_the_image() -> None:
    """Catches a panel that shows another map, cells off their windows' centres, and unreadably small letters."""
    found = occlusion(small_net(), IMAGE, 8, 4, target=1)
    figure = found.figure(IMAGE.permute(1, 2, 0).sigmoid(), classes=[f"kind {n}" for n in range(7)])
    _, probability, predicted, activation = figure.axes[:4]
    assert "kind 1" in probability.get_title()
    shown = probability.images[0]
    assert torch.equal(torch.from_numpy(shown.get_array().data), found.probability)
    left, right, bottom, top = shown.get_extent()
    rows, columns = found.probability.shape
    assert left + (right - left) / columns / 2 == 4  # the first window's centre
    assert top + (bottom - top) / rows * 1.5 == 8  # the second one's
    assert torch.equal(torch.from_numpy(activation.images[0].get_array().data), found.activation)
    labels = {text.get_text() for text in predicted.get_legend().get_texts()}
    assert labels <= {f"kind {n}" for n in range(7)} | {"others"}
    assert figure.get_size_inches()[0] * figure.dpi <= 700
    texts = [text for axes in figure.axes for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels())]
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 9
    assert len(found.figure().axes) == 5  # three panels and two scales
    with pytest.raises(ProbeError, match="21, 26"):
        found.figure(IMAGE)
