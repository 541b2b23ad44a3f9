"""The nets that share AlexNet's name, each against what it is taken from."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models import get_model, layer_table, model_info


@pytest.fixture(scope="module")
def flowers() -> nn.Module:
    torch.manual_seed(0)
    return get_model("alexnet_flowers").eval()


def test_alexnet_is_torchvision_s_weight_for_weight() -> None:
    """Catches another name, order or shape of a weight, another padding, dropout elsewhere, and other first weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet().eval()
    torch.manual_seed(0)
    ours = get_model("alexnet").eval()
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())
    assert sum(p.numel() for p in ours.parameters()) == 61_100_840
    assert f"{61_100_840:,}" in str(model_info("alexnet").build.__doc__)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))
        theirs.load_state_dict({key: value + 0.01 for key, value in state.items()})
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))


def test_alexnet_drops_out_as_torchvision_s_does() -> None:
    """Catches dropout after the hidden layers instead of before them, which evaluation does not show."""
    with torch.device("meta"):
        ours, theirs = get_model("alexnet", dropout=0.25), torchvision.models.alexnet(dropout=0.25)
    assert str(ours.get_submodule("classifier")) == str(theirs.classifier)
    assert str(ours.get_submodule("features")) == str(theirs.features)


def test_flowers_has_the_report_s_sizes_and_a_count_worked_out_by_hand(flowers: nn.Module) -> None:
    """Catches 55 places or pools rounded up, grouped convolutions, and LRN before the pool."""
    table = layer_table(flowers, (3, 224, 224))
    sides = [row.output_shape[-1] for row in table if row.name.startswith("features")]
    assert sides == [54, 54, 26, 26, 26, 26, 12, 12, 12, 12, 12, 12, 12, 12, 5]
    kinds = [type(layer).__name__ for layer in flowers.get_submodule("features").children()]
    block = ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm"]
    assert kinds == [*block, *block, "Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    by_hand = [
        96 * 363 + 96,
        256 * 25 * 96 + 256,
        384 * 9 * 256 + 384,
        384 * 9 * 384 + 384,
        256 * 9 * 384 + 256,
        6400 * 4096 + 4096,
        4096 * 4096 + 4096,
        4096 * 5 + 5,
    ]
    assert [row.parameters for row in table if row.parameters] == by_hand
    assert f"{sum(by_hand):,}" in str(model_info("alexnet_flowers").build.__doc__)


def tensorflow_lrn(x: Tensor, radius: int = 5, bias: float = 1.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """What TensorFlow documents, on `(N, H, W, C)`: a plain sum over `radius` maps on either side."""
    sums = [x[..., max(0, d - radius) : d + radius + 1].square().sum(-1) for d in range(x.shape[-1])]
    return x / (bias + alpha * torch.stack(sums, dim=-1)) ** beta


def test_flowers_computes_what_the_keras_code_says(flowers: nn.Module) -> None:
    """Catches the paper's window (5 maps) for the radius 5 (11 maps), k = 2, α divided by n, and another order."""
    x = 200 * torch.rand(1, 3, 224, 224)  # large enough for LRN to matter
    signal = x
    parts = flowers.get_submodule("features")
    with torch.inference_mode():
        for number in range(1, 6):
            conv = parts.get_submodule(f"conv{number}")
            weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
            same = weight.shape[-1] // 2 if number > 1 else 0  # `padding='same'`, or Keras' default 'valid'
            signal = F.conv2d(signal, weight, bias, stride=4 if number == 1 else 1, padding=same).relu()
            if number in (1, 2, 5):
                signal = F.max_pool2d(signal, 3, 2)
            if number in (1, 2):
                plain = signal
                signal = tensorflow_lrn(signal.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                assert (signal / plain).nan_to_num(1).min() < 0.9, "LRN does nothing here: the test is too weak"
        torch.testing.assert_close(parts(x), signal, rtol=1e-4, atol=1e-4)


def test_flowers_starts_as_keras_starts(flowers: nn.Module) -> None:
    """Catches PyTorch's own starting values, and fans counted without the area of the kernel."""
    for layer in flowers.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs, *area = layer.weight.shape
            limit = math.sqrt(6 / ((inputs + outputs) * math.prod(area)))
            assert 0.99 * limit < layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
            assert layer.bias is not None
            assert not layer.bias.any()


def test_flowers_begins_by_guessing(flowers: nn.Module) -> None:
    """Catches weights that make logits of the order of one: the loss of the first batch is ln 5."""
    with torch.inference_mode():
        logits = flowers(torch.rand(1, 3, 224, 224))
    assert (logits.logsumexp(1) - logits.mean(1)).item() == pytest.approx(math.log(5), rel=0.05)


def test_options_of_flowers_change_one_thing_each() -> None:
    """Catches an option that is dropped, or that moves another layer too."""
    with torch.device("meta"):
        plain = [name for name, _ in get_model("alexnet_flowers").get_submodule("features").named_children()]
        other = get_model("alexnet_flowers", pool_before_lrn=False).get_submodule("features")
        without = get_model("alexnet_flowers", lrn=False).get_submodule("features")
        dropouts = [m.p for m in get_model("alexnet_flowers", dropout=0.2).modules() if isinstance(m, nn.Dropout)]
    swapped = [name for name, _ in other.named_children()]
    assert swapped[:4] == ["conv1", "relu1", "norm1", "pool1"]
    assert swapped[4:8] == ["conv2", "relu2", "norm2", "pool2"]
    assert sorted(swapped) == sorted(plain)
    assert swapped[8:] == plain[8:]
    assert [name for name, _ in without.named_children()] == [n for n in plain if not n.startswith("norm")]
    assert dropouts == [0.2, 0.2]


def test_alexnet_cifar10_has_its_published_plan() -> None:
    """Catches a pooling after the wrong convolution, a wrong width, and dropout after the last layer."""
    model = get_model("alexnet_cifar10")
    table = layer_table(model, (3, 32, 32))
    assert table.parameters == 23_238_474
    shapes = [row.output_shape for row in table if row.kind.startswith(("Conv2d", "MaxPool2d", "Linear"))]
    assert shapes == [
        (64, 32, 32), (64, 16, 16), (192, 16, 16), (192, 8, 8), (384, 8, 8), (256, 8, 8), (256, 8, 8),
        (256, 4, 4), (4096,), (1024,), (10,),
    ]  # fmt: skip
    tail = [type(layer) for layer in model.get_submodule("classifier").children()]
    assert tail == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_dropout_is_off_in_evaluation() -> None:
    """Catches `F.dropout` called without the training flag."""
    model = get_model("alexnet_cifar10").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
