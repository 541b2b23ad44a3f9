"""The proof of the arithmetic: what it predicts is what autograd finds, pixel by pixel, for nets drawn and published.

First the oracle itself is held against plain gradients and against single bright pixels, then the table against it.
"""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from repro.errors import UnknownName
from repro.models import get_model, list_models, model_info
from repro.receptive_field import Box, FieldTable, UnitError, gradient_support, receptive_field

PROOF = settings(max_examples=150, deadline=None)
CHANNELS = 2


class Join(nn.Module):
    """Two paths over one input, added or concatenated; the larger result is cut at its end."""

    def __init__(self, left: nn.Module, right: nn.Module, how: str) -> None:
        super().__init__()
        self.left, self.right, self.how = left, right, how
        self.project = nn.Conv2d(2 * CHANNELS, CHANNELS, 1) if how == "concatenate" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        h, w = (min(a, b) for a, b in zip(left.shape[2:], right.shape[2:], strict=True))
        left, right = left[:, :, :h, :w], right[:, :, :h, :w]
        return self.project(torch.cat([left, right], 1) if self.how == "concatenate" else left + right)


class Net(nn.Module):
    """Blocks in a row, and at the end, if wanted, two fully connected layers."""

    def __init__(self, blocks: list[nn.Module], size: tuple[int, int], dense: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.input_size = (CHANNELS, *size)
        features = self.blocks(torch.zeros(1, *self.input_size)).numel() if dense else 0
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(features, 3), nn.ReLU(), nn.Linear(3, 2)) if dense else None

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(x)
        return maps if self.head is None else self.head(maps)


def pair(values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(values, values)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    """Any window of 1 to 5; padding by number or by name (which asks for stride 1)."""
    kernel_size, dilation = draw(pair(st.integers(1, 5))), draw(pair(st.integers(1, 2)))
    padding: Any = draw(st.one_of(pair(st.integers(0, 3)), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else draw(pair(st.integers(1, 3)))
    groups = draw(st.sampled_from([1, CHANNELS]))
    return nn.Conv2d(CHANNELS, CHANNELS, kernel_size, stride, padding, dilation, groups)


@st.composite
def poolings(draw: st.DrawFn) -> nn.Module:
    """Maximum and average, round-up windows, padding up to half a window."""
    kernel_size, stride = draw(pair(st.integers(1, 4))), draw(pair(st.integers(1, 3)))
    padding = (draw(st.integers(0, kernel_size[0] // 2)), draw(st.integers(0, kernel_size[1] // 2)))
    ceil_mode = draw(st.booleans())
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel_size, stride, padding, draw(pair(st.integers(1, 2))), ceil_mode=ceil_mode)
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad=draw(st.booleans()))


@st.composite
def enlargements(draw: st.DrawFn) -> nn.Module:
    """Transposed convolutions and interpolation by whole factors."""
    if draw(st.booleans()):
        stride = draw(pair(st.integers(1, 3)))
        options = {"stride": stride, "padding": draw(pair(st.integers(0, 2))), "dilation": draw(st.integers(1, 2))}
        extra = (draw(st.integers(0, stride[0] - 1)), draw(st.integers(0, stride[1] - 1)))
        return nn.ConvTranspose2d(CHANNELS, CHANNELS, draw(pair(st.integers(1, 4))), output_padding=extra, **options)
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    return nn.Upsample(scale_factor=draw(st.integers(2, 3)), mode=mode)


def simple() -> st.SearchStrategy[nn.Module]:
    elementwise = st.builds(nn.ReLU) | st.builds(nn.BatchNorm2d, st.just(CHANNELS)) | st.builds(nn.Sigmoid)
    adaptive = st.builds(nn.AdaptiveAvgPool2d, pair(st.integers(1, 5)))
    return st.one_of(convolutions(), convolutions(), poolings(), poolings(), enlargements(), adaptive, elementwise)


def blocks() -> st.SearchStrategy[nn.Module]:
    path = st.lists(simple(), max_size=2).map(lambda layers: nn.Sequential(*layers))
    joins = st.builds(Join, path, path, st.sampled_from(["add", "concatenate"]))
    return st.one_of(simple(), simple(), joins)


@st.composite
def nets(draw: st.DrawFn, kinds: st.SearchStrategy[nn.Module]) -> Net:
    """Up to five blocks; one that the maps before it are too small for is left out."""
    size = draw(pair(st.integers(5, 20)))
    kept: list[nn.Module] = []
    x = torch.zeros(1, CHANNELS, *size)
    for block in draw(st.lists(kinds, min_size=1, max_size=5)):
        try:
            y = block.eval()(x)
        except (RuntimeError, ValueError):
            continue
        if y.numel() and max(y.shape[2:]) <= 64:
            kept.append(block)
            x = y
    assume(kept)
    return Net(kept, size, dense=draw(st.integers(0, 3)) == 0)


def bounding_box(support: Tensor) -> Box:
    rows, cols = support.any(1).nonzero(), support.any(0).nonzero()
    return Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)


def require_proved(table: FieldTable, model: nn.Module, layer: str, row: int, col: int) -> None:
    """The support, and both rectangles around it, against the gradient."""
    expected = gradient_support(model, layer, row, col, table.input_size)
    where = f"{layer} ({row}, {col}) of {table.input_size} in\n{model if len(table) < 30 else type(model)}"
    assert torch.equal(table.support(layer, row, col), expected), where
    if not expected.any():
        return
    box = table.box(layer, row, col)
    assert box.clipped == bounding_box(expected), where
    inner, outer = box.clipped, box.unclipped
    assert outer.top <= inner.top < inner.bottom <= outer.bottom, where
    assert outer.left <= inner.left < inner.right <= outer.right, where


def leaves(table: FieldTable, model: nn.Module) -> list[str]:
    """The rows of modules that hold no others.

    Without those that may stand behind a flattening: to a table their features still have places, to a gradient none.
    """
    behind = nn.Flatten | nn.Dropout
    kept = {n for n, module in model.named_modules() if not any(module.children()) and not isinstance(module, behind)}
    return [row.name for row in table if row.name in kept]


# The oracle.


@PROOF
@given(st.data())
def test_oracle_is_the_plain_gradient(data: st.DataObject) -> None:
    """Catches an oracle whose shortcut (one map for all) loses a window, a group or a path of the net itself."""
    net = data.draw(nets(blocks().filter(lambda b: not any(isinstance(m, nn.MaxPool2d) for m in b.modules()))))
    layer = data.draw(st.sampled_from([name for name, _ in net.blocks.named_children()]))
    plain = net.blocks.double().eval()
    for module in plain.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.uniform_(parameter, 0.1, 0.2)
    image = torch.rand(1, *net.input_size, dtype=torch.float64, requires_grad=True)
    output = plain[: int(layer) + 1](image)
    row, col = (data.draw(st.integers(0, n - 1)) for n in output.shape[2:])
    (gradient,) = torch.autograd.grad(output[0, :, row, col].sum(), image)
    found = gradient_support(net, f"blocks.{layer}", row, col)
    assert torch.equal(found, gradient[0].ne(0).any(0)), f"{layer} ({row}, {col}) of\n{net}"


@PROOF
@given(poolings().filter(lambda p: isinstance(p, nn.MaxPool2d)), pair(st.integers(3, 9)), st.booleans(), st.data())
def test_oracle_reads_what_a_maximum_may_choose(
    pool: nn.MaxPool2d, size: tuple[int, int], functional: bool, data: st.DataObject
) -> None:
    """Catches averages over other windows than the maximum's: round-up, padded, dilated. One bright pixel at a time."""
    h, w = size
    bright = torch.eye(h * w).view(h * w, 1, h, w)
    try:
        output = pool(bright)
    except RuntimeError:
        assume(False)
    row, col = (data.draw(st.integers(0, n - 1)) for n in output.shape[2:])
    seen = output[:, 0, row, col].view(h, w) == 1

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            options = {"ceil_mode": pool.ceil_mode, "dilation": pool.dilation}
            return self.out(F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, **options))

    model, layer = (Functional(), "out") if functional else (nn.Sequential(pool), "0")
    assert torch.equal(gradient_support(model, layer, row, col, (1, h, w)), seen)


class Cancelling(nn.Module):
    """Everything that could hide a path: differences, gates, saturation, in-place sums, gradients of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
        self.squash, self.saturate = nn.Hardswish(), nn.ReLU6(inplace=True)
        self.gate, self.norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Hardsigmoid()), nn.GroupNorm(1, 2)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) - self.b(x)
        y -= 100.0
        y = self.saturate(self.squash(y) * 1e6)
        y += 1 - y
        return self.last(y * torch.softmax(y, dim=1))


def test_oracle_survives_cancellation_and_saturation() -> None:
    """Catches equal weights that cancel in a difference, a saturated function, and a sum in place on shared maps."""
    found = gradient_support(Cancelling(), "last", 2, 0, (1, 6, 5))
    expected = torch.zeros(6, 5, dtype=torch.bool)
    expected[1:4, 0:2] = True
    assert torch.equal(found, expected)


def test_oracle_in_great_depth() -> None:
    """Catches underflow: 150 layers of 3×3 leave a corner pixel a share of 9^−150, 60 residual sums double it."""
    deep = nn.Sequential(*[nn.Conv2d(1, 1, 3, bias=False) for _ in range(150)])
    assert gradient_support(deep, "149", 0, 0, (1, 301, 301)).all()
    path = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))
    blocks = nn.Sequential(*[Join(nn.Identity(), path, "add") for _ in range(60)])
    found = gradient_support(blocks, "59", 60, 60, (CHANNELS, 125, 125))
    assert bounding_box(found) == Box(0, 0, 121, 121)
    assert found.sum() == 121**2


def test_model_is_left_as_it_was() -> None:
    """Catches weights that are replaced, hooks or evaluation mode left behind, also by a failing run."""
    model = Cancelling().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for row in (0, 99):
        try:
            gradient_support(model, "last", row, 0, (1, 6, 5))
        except UnitError:
            assert row == 99
    assert model.training
    assert model.squash.training
    assert not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_names_and_units_that_do_not_exist() -> None:
    """Catches a misspelt layer that yields an empty set, and a negative or too large unit that wraps around."""
    twice = nn.Conv2d(1, 1, 3)
    model = nn.Sequential(twice, nn.ReLU(), twice)
    assert gradient_support(model, "0:2", 0, 0, (1, 8, 8)).sum() == 25
    assert gradient_support(model, "0", 0, 0, (1, 8, 8)).sum() == 9
    with pytest.raises(UnknownName, match="called 2 times"):
        gradient_support(model, "0:3", 0, 0, (1, 8, 8))
    with pytest.raises(UnknownName, match="functions have no name here"):
        gradient_support(model, "relu", 0, 0, (1, 8, 8))
    for unit in ((-1, 0), (0, 6)):
        with pytest.raises(UnitError, match=r"\(0, 0\) to \(5, 5\)"):
            gradient_support(model, "0", *unit, (1, 8, 8))


# The arithmetic.


@settings(PROOF, max_examples=300)
@given(st.data())
def test_random_nets(data: st.DataObject) -> None:
    """Catches, in nets with branches: padding counted at one layer only, a stride that acts before its own window, a
    last window that hangs over, "same" around an even kernel, dilation, joins that take one path for both.
    """
    net = data.draw(nets(blocks()))
    table = receptive_field(net)
    names = leaves(table, net)
    for layer in {names[-1], data.draw(st.sampled_from(names))}:
        rows, cols = table[layer].output_size
        row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
        require_proved(table, net, layer, row, col)
        require_proved(table, net, layer, rows - 1, cols - 1)


@PROOF
@given(st.data())
def test_figures_of_chains(data: st.DataObject) -> None:
    """Catches a size, stride or padding that the pixels contradict: i · stride − padding begins unit i's field.

    In a chain of windows, a field that lies inside the image reads no padding anywhere, so that nothing is clipped.
    """
    net = data.draw(nets(convolutions() | poolings()))
    table = receptive_field(net)
    layer = leaves(table, net)[len(net.blocks) - 1]
    figures = table[layer]
    row, col = (data.draw(st.integers(0, n - 1)) for n in figures.output_size)
    unclipped = table.box(layer, row, col).unclipped
    first = [i * s - p for i, s, p in zip((row, col), figures.effective_stride, figures.effective_padding, strict=True)]
    assert [unclipped.top, unclipped.left] == first
    assert (unclipped.height, unclipped.width) == tuple(figures.size)
    _, height, width = table.input_size
    if min(first) >= 0 and unclipped.bottom <= height and unclipped.right <= width:
        assert bounding_box(gradient_support(net, layer, row, col)) == unclipped


def landmarks(table: FieldTable, model: nn.Module) -> list[str]:
    """Early, middle, the last with more than one unit, and the last of all."""
    names = leaves(table, model)
    spatial = [name for name in names if max(table[name].output_size) > 1]
    return list(dict.fromkeys([spatial[1], spatial[len(spatial) // 2], spatial[-1], names[-1]]))


def require_all_proved(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Corner, edge and middle units of each landmark."""
    table = receptive_field(model, input_size)
    for layer in landmarks(table, model):
        rows, cols = table[layer].output_size
        for row, col in {(0, 0), (rows // 2, cols - 1), (rows // 2, cols // 2)}:
            require_proved(table, model, layer, row, col)


@pytest.mark.parametrize("name", list_models())
def test_models_of_the_book(name: str) -> None:
    """Catches a layer of our own whose window is not what it computes: round-up, sparse, local, normalising."""
    with torch.device("cpu" if name == "lenet5" else "meta"):  # the table of LeNet-5's connections is in a tensor
        model = get_model(name)
    require_all_proved(model, model_info(name).input_size)


TORCHVISION = {
    **{f"vgg{depth}{norm}": 224 for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **dict.fromkeys(("alexnet", "googlenet", "resnet50", "densenet121"), 224),
    **dict.fromkeys(("mobilenet_v2", "squeezenet1_0", "squeezenet1_1"), 224),
    "inception_v3": 299,
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_models_of_torchvision(name: str) -> None:
    """Catches joins of four branches, dense and residual sums, depthwise kernels, 1×7 beside 7×1, round-up pooling."""
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):  # the weights do not matter, and VGG's take half a gigabyte
        model = torchvision_models.get_model(name, weights=None, **quick)
    require_all_proved(model, (3, TORCHVISION[name], TORCHVISION[name]))
