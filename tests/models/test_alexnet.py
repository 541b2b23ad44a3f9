"""The AlexNets: plan and counts."""

import torch
from torch import nn

from repro.models import get_model, layer_table


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
