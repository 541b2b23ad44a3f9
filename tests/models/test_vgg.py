"""VGG: the counts of the paper, torchvision's nets bit for bit, and starting weights by their formulas."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models import get_model, layer_table, list_models
from repro.models.layers import Dropout2012
from repro.models.registry import OptionError
from repro.models.vgg import NAMES, TABLE_1, grow, init_weights, make_features

# Table 2 of the paper, in millions.
MILLIONS = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
TORCHVISIONS = [f"vgg{depth}{kind}" for depth in (11, 13, 16, 19) for kind in ("", "_bn")]


def on_meta(name: str, **options: object) -> nn.Module:
    """The net without its weights, to look at and to count."""
    with torch.device("meta"):
        return get_model(name, **options)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_column_of_the_paper_is_there_with_and_without_batch_normalisation() -> None:
    """Catches a column that was forgotten, and one that is registered under another's name."""
    bn = {f"{name}_bn" for name, column in NAMES.items() if column != "A-LRN"}
    assert {name for name in list_models() if name.startswith("vgg")} >= {*NAMES, *bn}
    assert set(NAMES.values()) == set(TABLE_1)


@pytest.mark.parametrize(("name", "column"), NAMES.items())
def test_parameters_and_layers_are_the_paper_s(name: str, column: str) -> None:
    """Catches a 3×3 kernel where column C has 1×1, a convolution too few, and a width of another block."""
    model = on_meta(name)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert round(count(model) / 1e6) == MILLIONS[column]
    assert len(layers) == WEIGHT_LAYERS[column]
    assert [type(m) for m in layers[-3:]] == [nn.Linear] * 3


def test_column_c_counted_by_hand() -> None:
    """Catches 1×1 convolutions that are padded, of another width, or at the start of a block: torchvision has no C."""
    widths = [(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128)]
    widths += [(3, 128, 256), (3, 256, 256), (1, 256, 256)]
    widths += [(3, 256, 512), (3, 512, 512), (1, 512, 512), (3, 512, 512), (3, 512, 512), (1, 512, 512)]
    rows = [row for row in layer_table(on_meta("vgg16_1x1"), (3, 224, 224)) if row.kind.startswith("Conv2d")]
    assert [row.parameters for row in rows] == [k * k * i * o + o for k, i, o in widths]
    assert [row.output_shape[1] for row in rows] == [224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14]
    assert count(on_meta("vgg16_1x1")) == 133_638_952


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_nets_are_torchvision_s(name: str) -> None:
    """Catches another name, order, shape or number of a layer, a kernel, padding, pooling or dropout that differs."""
    ours = on_meta(name)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    weights = torchvision.models.get_model_weights(name)
    assert count(ours) == weights.IMAGENET1K_V1.meta["num_params"]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for part in ("features", "classifier"):
        own, other = (net.get_submodule(part).children() for net in (ours, theirs))
        # A pooling's stride may be given or follow from its kernel: `str` shows it either way.
        assert list(map(str, own)) == list(map(str, other))


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Every tensor of a net without weights, drawn so that signals neither vanish nor explode and norms do something.

    The net's own starting values would do as well and take several times as long.
    """
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim > 1:
            bound = math.sqrt(6 / value[0].numel())
            value.uniform_(-bound, bound)
        elif value.is_floating_point():
            value.uniform_(-0.1, 0.1)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_outputs_are_torchvision_s_to_the_bit(name: str) -> None:
    """Catches weights that load and mean something else: another order of channels, a norm after ReLU."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().eval()
    theirs = theirs.to_empty(device="cpu")
    torch.manual_seed(0)
    draw_weights(theirs)
    ours = on_meta(name).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = ours(x)
        assert torch.equal(logits, theirs(x))
    assert logits.std() > 0.1, "the logits are all the same: the test is too weak"


def test_weights_start_as_torchvision_s() -> None:
    """Catches a rule of He's by fan-in, another deviation in the linear layers, and another order of drawing."""
    torch.manual_seed(0)
    theirs = torchvision.models.vgg11().state_dict()
    torch.manual_seed(0)
    ours = get_model("vgg11").state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("init", ["he", "glorot", "pytorch", "vgg"])
def test_starting_weights_follow_their_formulas(init: str) -> None:
    """Catches the fan of one rule in another's, a normal for a uniform distribution, and biases left as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Linear(600, 300))
    init_weights(model, init)  # type: ignore[arg-type]
    for layer, inputs, outputs in ((model[0], 64 * 9, 128 * 9), (model[2], 600, 300)):
        std = {
            "he": math.sqrt(2 / outputs) if layer is model[0] else 0.01,
            "glorot": math.sqrt(2 / (inputs + outputs)),
            "pytorch": math.sqrt(1 / inputs) / math.sqrt(3),
            "vgg": 0.01,
        }[init]
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        largest = layer.weight.abs().max() / layer.weight.std()
        assert (largest <= 1.01 * math.sqrt(3)) == (init in ("glorot", "pytorch")), "another distribution"
        assert layer.bias.any() == (init == "pytorch")
    assert (model[1].weight == 1).all(), "batch normalisation starts at one"


def test_the_paper_s_start_is_a_deviation_and_not_a_variance() -> None:
    """Catches an `init` that does not reach the net, and 10⁻² taken for the variance that the paper prints."""
    torch.manual_seed(0)
    model = get_model("vgg11", init="vgg").eval()
    pixels = torch.randint(256, (1, 3, 224, 224)).float() - 128
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(layer.weight.std().item() == pytest.approx(0.01, rel=0.05) for layer in layers)
    with torch.inference_mode():
        assert model(pixels).abs().max() < 0.1  # so the loss starts at ln 1000
        for layer in layers:
            layer.weight *= 10
        assert 1e7 < model(pixels).abs().max() < 1e10


# Where the four convolutions and three linear layers of A go, read off table 1 with torchvision's numbers.
LINEAR = {f"classifier.{i}": f"classifier.{i}" for i in (0, 3, 6)}
GROWN = {
    "vgg13": {"features.0": "features.0", "features.5": "features.3", "features.10": "features.6"}
    | {"features.12": "features.8"},
    "vgg19": {"features.0": "features.0", "features.5": "features.3", "features.10": "features.6"}
    | {"features.12": "features.8"},
    "vgg16_bn": {"features.0": "features.0", "features.7": "features.3", "features.14": "features.6"}
    | {"features.17": "features.8"},
}


@pytest.mark.parametrize(("name", "convolutions"), GROWN.items())
def test_a_deeper_column_starts_from_seven_layers_of_a(name: str, convolutions: dict[str, str]) -> None:
    """Catches layers matched by their bare number, a fifth convolution, a bias left behind, and another layer touched.

    The nets are cut to 16 hidden units, so that their weights take a tenth of the memory.
    """
    small, large = on_meta("vgg11"), on_meta(name)
    for net in (small, large):
        net.classifier[0], net.classifier[3] = nn.Linear(25088, 16, device="meta"), nn.Linear(16, 16, device="meta")
        net.classifier[6] = nn.Linear(16, 10, device="meta")
        net.to_empty(device="cpu")
        for value in net.state_dict().values():
            value.fill_(0)
    for number, parameter in enumerate(small.parameters(), 1):
        nn.init.constant_(parameter, number)
    assert grow(small, large) == convolutions | LINEAR
    taken = {
        f"{key}.{part}": f"{value}.{part}"
        for key, value in (convolutions | LINEAR).items()
        for part in ("weight", "bias")
    }
    given = small.state_dict()
    for key, value in large.state_dict().items():
        assert torch.equal(value, given[taken[key]]) if key in taken else not value.any(), key


def test_a_net_that_is_no_deeper_column_is_refused() -> None:
    """Catches layers copied into a net that does not fit as a whole, after which it is half one and half the other."""
    small, study = on_meta("vgg11"), get_model("vgg16_cifar10")
    before = {key: value.clone() for key, value in study.state_dict().items()}
    with pytest.raises(OptionError, match=r"vgg16_cifar10 has no layer of the shape of vgg11's classifier\.0"):
        grow(small, study)
    assert all(torch.equal(value, before[key]) for key, value in study.state_dict().items())
    with pytest.raises(OptionError, match=r"vgg11 has no layer of the shape of vgg8_cifar10's features\.2"):
        grow(on_meta("vgg8_cifar10"), small)


def paper_lrn(x: Tensor) -> Tensor:
    """Section 3.3 of the AlexNet paper on (N, C, H, W): a plain sum over two maps on either side."""
    sums = [x[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(x.shape[1])]
    return x / (2 + 1e-4 * torch.stack(sums, 1)) ** 0.75


def test_lrn_follows_the_first_relu_with_alexnet_s_constants() -> None:
    """Catches LRN before ReLU or after the pool, α divided by n, k = 1, and a second LRN."""
    torch.manual_seed(0)
    features = make_features(TABLE_1["A-LRN"], 3)
    plain = make_features(TABLE_1["A"], 3)
    assert len(features) == len(plain) + 1
    x = 200 * torch.randn(1, 3, 8, 8)  # large enough for LRN to matter
    conv = features[0]
    assert isinstance(conv, nn.Conv2d)
    signal = F.conv2d(x, conv.weight, conv.bias, padding=1).relu()
    expected = F.max_pool2d(paper_lrn(signal), 2)
    assert (expected / F.max_pool2d(signal, 2)).nan_to_num(1).min() < 0.5, "LRN does nothing here: the test is too weak"
    torch.testing.assert_close(features[:4](x), expected, rtol=1e-5, atol=1e-5)
    assert [str(layer) for layer in features[4:]] == [str(layer) for layer in plain[3:]]


def test_options_reach_the_net() -> None:
    """Catches an option that is dropped, and a net without dropout whose weights carry other names."""
    dropped = {kind: on_meta("vgg16", dropout=kind) for kind in ("inverted", "2012", "none")}
    kinds = {kind: [type(net.get_submodule(f"classifier.{i}")) for i in (2, 5)] for kind, net in dropped.items()}
    assert kinds == {"inverted": [nn.Dropout] * 2, "2012": [Dropout2012] * 2, "none": [nn.Identity] * 2}
    assert len({tuple(net.state_dict()) for net in dropped.values()}) == 1
    assert on_meta("vgg16_bn", num_classes=7).get_parameter("classifier.6.weight").shape == (7, 4096)
    with pytest.raises(OptionError, match="vgg16: option init is one of 'he', 'glorot', 'pytorch', 'vgg', found 'xav'"):
        get_model("vgg16", init="xav")


# Section 2 of the CIFAR-10 study, each layer's weights and biases added up by hand.
STUDY_COUNTS = {
    "vgg16_cifar10": 14_714_688 + (512 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 10 + 10),
    "vgg16_bn_cifar10": 14_714_688 + 2 * 4224 + (512 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 10 + 10),
    "vgg8_cifar10": 4_685_376 + (512 * 2 * 2 * 4096 + 4096) + (4096 * 10 + 10),
}


@pytest.mark.parametrize(("name", "expected"), STUDY_COUNTS.items())
def test_the_study_s_nets(name: str, expected: int) -> None:
    """Catches a block too many (512 features in place of 2,048), a hidden layer kept in VGG-8, another start."""
    model = get_model(name).eval()
    assert count(model) == expected
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [type(m) for m in model.features if isinstance(m, nn.MaxPool2d)] == [nn.MaxPool2d] * (
        4 if "8" in name else 5
    )
    hidden = [m for m in model.classifier if isinstance(m, nn.Linear)]
    assert [m.out_features for m in hidden] == ([4096, 10] if "8" in name else [4096, 4096, 10])
    assert sum(isinstance(m, nn.Dropout) for m in model.classifier) == len(hidden) - 1
    assert hidden[0].weight.abs().max().item() == pytest.approx(hidden[0].in_features ** -0.5, rel=1e-3), (
        "PyTorch's start"
    )
