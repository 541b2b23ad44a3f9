"""The nets of 2012: shapes and counts of the papers, and forward passes written out as the two columns they were."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models import get_model, layer_table, model_info
from repro.models.alexnet import AlexNet
from repro.models.layers import InputShapeError
from repro.models.registry import OptionError

NETS_2012 = ("alexnet_2012", "alexnet_2012_code", "alexnet_one_column")
# Weights and biases of each layer with its own columns, worked out by hand: 96 kernels of 11·11·3 and 96 biases, and
# so on; 48 and 192 are the maps of one column.
PARAMETERS = {
    "conv1": 96 * 363 + 96,
    "conv2": 256 * 25 * 48 + 256,
    "conv3": 384 * 9 * 256 + 384,
    "conv4": 384 * 9 * 192 + 384,
    "conv5": 256 * 9 * 192 + 256,
    "fc6": 9216 * 4096 + 4096,
    "fc7": 4096 * 4096 + 4096,
    "fc8": 4096 * 1000 + 1000,
}
ONE_COLUMN = {
    "conv1": 48 * 363 + 48,
    "conv2": 128 * 25 * 48 + 128,
    "conv3": 192 * 9 * 128 + 192,
    "conv4": 192 * 9 * 192 + 192,
    "conv5": 256 * 9 * 192 + 256,
    "fc6": 9216 * 4096 + 4096,
    "fc7": 4096 * 4096 + 4096,
    "fc8": 4096 * 1000 + 1000,
}
# How net #145 differs from the paper; `lrn` stands first because without it the next one could not be seen.
DIFFERENCES = ("lrn", "lrn_in_columns", "relu1_after_pool", "within_map_norm", "middle_init_std")


def on_meta(name: str, **options: object) -> nn.Module:
    """The net without memory for its weights."""
    with torch.device("meta"):
        return get_model(name, **options)


def features(name: str, **options: object) -> nn.Sequential:
    """The convolutional part in float64, with weights that make normalisation count, the same for all its variants."""
    part: nn.Sequential = on_meta(name, **options).get_submodule("features").to_empty(device="cpu").double()  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            fan_in = max(parameter[0].numel(), 10)
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return part


def pixels(side: int = 224, seed: int = 0) -> Tensor:
    """One picture of the scale of the 2012 input, `(1, 3, side, side)` in float64."""
    return 60 * torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["alexnet_2012", "alexnet_2012_code"])
def fresh(request: pytest.FixtureRequest) -> AlexNet:
    """A net of 2012 with the weights that it starts with."""
    torch.manual_seed(0)
    net = get_model(request.param)
    assert isinstance(net, AlexNet)
    return net


@pytest.mark.parametrize("name", NETS_2012)
def test_parameters_of_each_layer_are_the_published_ones(name: str) -> None:
    """Catches columns that read each other's maps (62.4 million), and a convolution 3 that reads one column."""
    counts = {
        layer_name.split(".")[1]: sum(p.numel() for p in layer.parameters())
        for layer_name, layer in on_meta(name).named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    expected = ONE_COLUMN if name == "alexnet_one_column" else PARAMETERS
    assert counts == expected
    assert sum(PARAMETERS.values()) == 60_965_224
    assert f"{sum(expected.values()):,}" in str(model_info(name).build.__doc__)


@pytest.mark.parametrize("side", [224, 227])
@pytest.mark.parametrize("overlapping", [True, False])
def test_maps_shrink_as_the_paper_draws_them(side: int, overlapping: bool) -> None:
    """Catches windows rounded down (54 places, or 12 after the second pool), and a control with smaller maps."""
    x = pixels(side)
    sides = []
    for name, layer in features("alexnet_2012", lrn="none", overlapping=overlapping).named_children():
        x = layer(x)
        if name.startswith(("conv", "pool")):
            sides.append(x.shape[-1])
    assert sides == [55, 27, 27, 13, 13, 13, 13, 6]
    assert x.shape == (1, 256, 6, 6)


def test_224_pixels_are_227_with_a_border_of_zeros() -> None:
    """Catches padding on the wrong side or on both, and zeros that another part of the net tells from no pixels."""
    x = pixels(224)
    larger = F.pad(x, (0, 3, 0, 3))
    with torch.no_grad():
        for name in ("alexnet_2012", "alexnet_2012_code"):
            net = features(name)
            assert torch.equal(net(x), net(larger))
        plain = features("alexnet_2012", round_up=False)
        rounded = features("alexnet_2012")
        assert torch.equal(plain(larger), rounded(x))
        full = pixels(227)
        assert torch.equal(plain(full), rounded(full))
        assert not torch.equal(rounded(full), rounded(full[..., :224, :224])), "pixels 225 to 227 are seen"


def lrn(x: Tensor, alpha: float, size: int = 5, k: float = 2.0, beta: float = 0.75) -> Tensor:
    """Section 3.3 written out, with `alpha` on the plain sum of the squares of `size` maps."""
    maps = x.shape[1]
    sums = [x[:, max(0, i - size // 2) : i + size // 2 + 1].square().sum(1) for i in range(maps)]
    return x / (k + alpha * torch.stack(sums, dim=1)) ** beta


def within(x: Tensor) -> Tensor:
    """The second normalisation of the code: the squares of 5×5 places of one map, α = 1e-3 / 25."""
    squares = F.pad(x.square(), (2, 2, 2, 2))
    height, width = x.shape[-2:]
    sums = sum(squares[..., i : i + height, j : j + width] for i in range(5) for j in range(5))
    return x / (1 + 1e-3 / 25 * sums) ** 0.75


def columns(net: nn.Sequential, number: int, inputs: tuple[Tensor, Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """Convolution `number` as two GPUs compute it, each with its half of the kernels on its own input."""
    conv = net.get_submodule(f"conv{number}")
    weights, biases = conv.get_parameter("weight").chunk(2), conv.get_parameter("bias").chunk(2)
    stride = 4 if number == 1 else 1
    first, second = (F.conv2d(x, w, b, stride, padding) for x, w, b in zip(inputs, weights, biases, strict=True))
    return first, second


def test_the_paper_s_net_is_two_columns_that_meet_in_layer_3() -> None:
    """Catches columns joined or split in the wrong layer, LRN before ReLU or after the pool, and another α."""
    net, x = features("alexnet_2012"), pixels(227)
    a, b = (h.relu() for h in columns(net, 1, (x, x), 0))
    a, b = F.max_pool2d(lrn(torch.cat([a, b], 1), 1e-4), 3, 2).chunk(2, dim=1)
    a, b = (h.relu() for h in columns(net, 2, (a, b), 2))
    both = F.max_pool2d(lrn(torch.cat([a, b], 1), 1e-4), 3, 2)
    a, b = (h.relu() for h in columns(net, 3, (both, both), 1))
    a, b = (h.relu() for h in columns(net, 4, (a, b), 1))
    a, b = (F.max_pool2d(h.relu(), 3, 2) for h in columns(net, 5, (a, b), 1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), torch.cat([a, b], 1))


def test_the_code_s_net_normalises_each_column_and_rectifies_after_the_first_pool() -> None:
    """Catches each of the code's differences left out: order of layer 1, α/n, columns, the second normalisation."""
    net, x = features("alexnet_2012_code"), pixels(227)
    a, b = (F.max_pool2d(lrn(h, 1e-4 / 5), 3, 2).relu() for h in columns(net, 1, (x, x), 0))
    a, b = (F.max_pool2d(within(lrn(h.relu(), 1e-4 / 5)), 3, 2) for h in columns(net, 2, (a, b), 2))
    both = torch.cat([a, b], 1)
    a, b = (h.relu() for h in columns(net, 3, (both, both), 1))
    a, b = (h.relu() for h in columns(net, 4, (a, b), 1))
    a, b = (F.max_pool2d(h.relu(), 3, 2) for h in columns(net, 5, (a, b), 1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), torch.cat([a, b], 1))


def test_the_paper_s_net_with_every_option_of_the_code_is_the_code_s_and_back() -> None:
    """Catches a difference that one of the two hides in its builder instead of naming it."""
    own = {name: model_info(name).options for name in ("alexnet_2012", "alexnet_2012_code")}
    differing = {option for option, value in own["alexnet_2012"].items() if own["alexnet_2012_code"][option] != value}
    assert differing == set(DIFFERENCES)
    for name, other in (("alexnet_2012", "alexnet_2012_code"), ("alexnet_2012_code", "alexnet_2012")):
        assert str(on_meta(name, **own[other])).splitlines()[1:] == str(on_meta(other)).splitlines()[1:]
        with torch.no_grad():
            assert torch.equal(features(name, **own[other])(pixels()), features(other)(pixels()))


@pytest.mark.parametrize("option", [d for d in DIFFERENCES if d != "middle_init_std"])
def test_each_difference_alone_changes_what_the_net_computes(option: str) -> None:
    """Catches an option that is accepted and dropped."""
    value = model_info("alexnet_2012_code").options[option]
    with torch.no_grad():
        changed = features("alexnet_2012", **{option: value})(pixels()) - features("alexnet_2012")(pixels())
    assert changed.abs().max() > 1e-3


def test_the_library_s_normalisation_computes_the_paper_s() -> None:
    """Catches α handed to PyTorch as printed: PyTorch divides it by n."""
    with torch.no_grad():
        expected = features("alexnet_2012")(pixels())
        torch.testing.assert_close(features("alexnet_2012", lrn="library")(pixels()), expected)
    kinds = [type(layer) for layer in on_meta("alexnet_2012", lrn="library").modules()]
    assert kinds.count(nn.LocalResponseNorm) == 2


def test_net_148_is_net_145_without_its_normalisations() -> None:
    """Catches a normalisation left in, and a layer that goes with it."""
    names = [name for name, _ in features("alexnet_2012_code").named_children()]
    control = features("alexnet_2012_code", lrn="none", within_map_norm=False)
    gone = ["norm1", "norm2", "within2"]
    assert [name for name, _ in control.named_children()] == [name for name in names if name not in gone]
    assert set(gone) < set(names)


@pytest.mark.parametrize(
    ("dropout", "kind", "names"),
    [
        ("2012", "Dropout2012", "fc6 relu6 dropout6 fc7 relu7 dropout7 fc8"),
        ("inverted", "Dropout", "fc6 relu6 dropout6 fc7 relu7 dropout7 fc8"),
        ("none", None, "fc6 relu6 fc7 relu7 fc8"),
    ],
)
def test_dropout_of_either_kind_follows_both_hidden_layers(dropout: str, kind: str | None, names: str) -> None:
    """Catches dropout before a layer, after the last one, of the other kind, or left in."""
    classifier = on_meta("alexnet_2012", dropout=dropout).get_submodule("classifier")
    assert [name for name, _ in classifier.named_children()] == names.split()
    dropouts = {type(layer).__name__ for name, layer in classifier.named_children() if "dropout" in name}
    assert dropouts == ({kind} if kind else set())
    assert all(layer.p == 0.5 for name, layer in classifier.named_children() if "dropout" in name)


def test_starting_weights_and_biases_are_the_published_ones(fresh: AlexNet) -> None:
    """Catches PyTorch's own starting values, a bias of one in the wrong layer, and 0.03 where 0.01 is due."""
    code = fresh.name == "alexnet_2012_code"
    for layer_name, layer in (*fresh.features.named_children(), *fresh.classifier.named_children()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        number = int(layer_name[-1])
        sigma = 0.03 if code and number in (3, 4, 5) else 0.01
        sample = layer.weight.detach().flatten()[:1_000_000]
        # A sample's deviation has a standard error of σ/√(2n), its mean one of σ/√n.
        assert sample.std().item() == pytest.approx(sigma, abs=5 * sigma / math.sqrt(2 * len(sample)))
        assert abs(sample.mean().item()) < 5 * sigma / math.sqrt(len(sample))
        assert (sample.abs() > 3 * sigma).any(), "a normal distribution has tails"
        assert layer.bias is not None
        assert (layer.bias == (1 if number in (2, 4, 5, 6, 7) else 0)).all()


def test_the_first_loss_is_that_of_guessing(fresh: AlexNet) -> None:
    """Catches starting weights too large for their layer: whatever the picture, the loss begins at ln 1000.

    Averaged over all labels, as one label's logit alone is off by a third.
    """
    with torch.no_grad():
        logits = fresh.eval()(pixels().float())
    assert (logits.logsumexp(1) - logits.mean(1)).item() == pytest.approx(math.log(1000), rel=0.05)


@pytest.mark.parametrize("name", NETS_2012)
def test_sizes_that_are_taken_and_one_that_is_not(name: str) -> None:
    """Catches a net that takes any size and fails in its first linear layer, and one that refuses 227."""
    net = on_meta(name)
    for side in (224, 227):
        assert net(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000)
    with pytest.raises(InputShapeError, match=rf"{name} expects .* N×3×224×224 or N×3×227×227, found 1×3×256×256"):
        net(torch.empty(1, 3, 256, 256, device="meta"))


def test_without_rounding_up_only_227_pixels_are_taken() -> None:
    """Catches 224 pixels computed as 54 places, which the fully connected layers could not read."""
    with pytest.raises(InputShapeError, match="expects a batch of shape N×3×227×227, found 1×3×224×224"):
        on_meta("alexnet_2012", round_up=False)(torch.empty(1, 3, 224, 224, device="meta"))


def test_options_that_do_not_go_together_are_refused() -> None:
    """Catches columns ignored in silence: PyTorch's layer has none."""
    with pytest.raises(OptionError, match="set lrn_in_columns to false"):
        on_meta("alexnet_2012_code", lrn="library")
    with pytest.raises(OptionError, match="hidden 511 does not divide between 2 columns"):
        on_meta("alexnet_2012", hidden=511)


@pytest.mark.parametrize("name", ["alexnet_2012", "alexnet_2012_code", "alexnet_one_column"])
def test_hidden_sets_the_width_of_both_hidden_layers_and_of_nothing_else(name: str) -> None:
    """Catches one of the two left at 4096, and an option that is accepted and dropped."""
    shapes = {key: tuple(p.shape) for key, p in on_meta(name, num_classes=10, hidden=6).named_parameters()}
    wide = {key: tuple(p.shape) for key, p in on_meta(name, num_classes=10).named_parameters()}
    head = {key: shape for key, shape in shapes.items() if key.startswith("classifier.")}
    below = shapes.keys() - head.keys()
    assert below
    assert all(wide[key] == shapes[key] for key in below)
    assert [head[f"classifier.fc{i}.weight"] for i in (6, 7, 8)] == [(6, 256 * 6 * 6), (6, 6), (10, 6)]
    assert [head[f"classifier.fc{i}.bias"] for i in (6, 7, 8)] == [(6,), (6,), (10,)]


def test_multiply_adds_are_counted_by_hand() -> None:
    """Catches full kernels counted for grouped ones: convolutions 2, 4 and 5 would count double."""
    table = layer_table(on_meta("alexnet_2012", num_classes=10), (3, 224, 224))
    rows = {row.name.split(".")[1]: row.multiply_adds for row in table.layers_with_weights()}
    assert rows == {
        "conv1": 55 * 55 * 96 * 363,
        "conv2": 27 * 27 * 256 * 25 * 48,
        "conv3": 13 * 13 * 384 * 9 * 256,
        "conv4": 13 * 13 * 384 * 9 * 192,
        "conv5": 13 * 13 * 256 * 9 * 192,
        "fc6": 9216 * 4096,
        "fc7": 4096 * 4096,
        "fc8": 4096 * 10,
    }
