"""The optimizer's memory on its way into a checkpoint and back."""

import pytest
import torch
from torch import nn

from repro.errors import CheckpointError
from repro.training.optim import make_optimizer, set_rate
from repro.training.parallel import Group, OneProcess
from repro.training.recipe import Optimizer
from repro.training.state import Parts

SGD = Optimizer(learning_rate=0.1, momentum=0.9)
SGD2012 = Optimizer(name="sgd2012", learning_rate=0.1, momentum=0.9, bias_rate=2.0, bias_decay=False, weight_decay=0.1)


def stepped(steps: int, spec: Optimizer = SGD) -> tuple[nn.Conv2d, torch.optim.Optimizer]:
    """A channels-last convolution after a few steps on drawn gradients."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel_size=5).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(layer, spec)
    step(layer, optimizer, steps)
    return layer, optimizer


def step(layer: nn.Conv2d, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for i in range(steps):
        torch.manual_seed(i)
        for p in layer.parameters():
            p.grad = torch.randn(p.shape).to(
                memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format
            )
        set_rate(optimizer, 0.1 / (1 + i))
        optimizer.step()


@pytest.mark.parametrize("spec", [SGD, SGD2012], ids=lambda spec: spec.name)
def test_momentum_keeps_its_parameters_layout(spec: Optimizer) -> None:
    """Catches fused SGD that walks contiguous momentum beside channels-last weights: it is as fast, and wrong; and the
    velocity of a weight given to the bias of another group.
    """
    layer, optimizer = stepped(3, spec)
    parts = Parts(layer, OneProcess(Group()))
    collected = parts.collect(layer, optimizer)
    file = {k: t.detach().clone(memory_format=torch.contiguous_format) for k, t in collected.items()}
    other, fresh = stepped(0, spec)
    parts.put_back(other, fresh, file)
    momentum = fresh.state[other.weight]["momentum_buffer"]
    assert momentum.stride() == other.weight.stride()
    step(layer, optimizer, 2)
    step(other, fresh, 2)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_tensors_that_fit_no_parameter_are_refused() -> None:
    """Catches the momentum of another net taken for this one's."""
    layer, optimizer = stepped(1)
    parts = Parts(layer, OneProcess(Group()))
    whole = parts.collect(layer, optimizer)
    with pytest.raises(CheckpointError, match=r"optimizer/fc/momentum_buffer fits none of the 2 parameters"):
        parts.put_back(layer, optimizer, whole | {"optimizer/fc/momentum_buffer": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"optimizer/weight/momentum_buffer is 3, parameter weight is 4×3×5×5"):
        parts.put_back(layer, optimizer, whole | {"optimizer/weight/momentum_buffer": torch.zeros(3)})
