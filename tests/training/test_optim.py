"""Learning rates against values worked out by hand, and the optimizer against the formulas."""

import math

import pytest
import torch
from torch import nn

from repro.errors import RecipeError
from repro.training.optim import (
    SGD2012,
    learning_rate,
    loss_function,
    make_optimizer,
    parameter_groups,
    set_rate,
    stalls,
)  # fmt: skip
from repro.training.recipe import Optimizer, Schedule


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # (epochs done, of 10): the rate for a base of 0.8
        (Schedule(name="constant"), {0: 0.8, 5.5: 0.8, 9.9: 0.8}),
        (Schedule(name="linear"), {0: 0.8, 2.5: 0.6, 5: 0.4, 9.9: 0.008}),
        (Schedule(name="cosine"), {0: 0.8, 10 / 3: 0.6, 5: 0.4, 20 / 3: 0.2, 10: 0.0}),
        (Schedule(name="steps", at=[3, 6]), {0: 0.8, 2.999: 0.8, 3: 0.08, 5.999: 0.08, 6: 0.008, 9.9: 0.008}),
        (Schedule(name="steps", at=[5], factor=0.5), {4.99: 0.8, 5: 0.4}),
        (Schedule(name="constant", warmup_epochs=2.0), {0: 0.0, 0.5: 0.2, 1: 0.4, 2: 0.8, 2.1: 0.8}),
        (Schedule(name="linear", warmup_epochs=5.0), {1: 0.8 * 0.9 * 0.2, 5: 0.4, 6: 0.32}),
    ],
    ids=lambda x: x.name if isinstance(x, Schedule) else "",
)
def test_rates_are_those_worked_out_by_hand(schedule: Schedule, rates: dict[float, float]) -> None:
    """Catches a step one epoch late, epochs counted per batch (T_max), and a warm-up that ends above the base."""
    for done, expected in rates.items():
        assert learning_rate(schedule, 0.8, done, 10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0),
        ([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4], 0),
        ([1.0, 1.1, 1.1, 1.1, 1.1], 0),  # four epochs without a smaller one
        ([1.0, 1.1, 1.1, 1.1, 1.1, 1.1], 1),
        ([1.0] * 6, 1),  # the same again is not smaller
        ([1.0] * 10, 1),
        ([1.0] * 11, 2),
        ([1.0, 0.99995, 0.99992, 0.99995, 0.99995, 0.99995], 1),  # smaller by less than 0.0001
        ([1.0, 0.99994, 0.99988, 0.99982, 0.99976, 0.9997], 0),  # but what adds up to more counts
        ([1.0, 1.2, 1.2, 1.2, 1.2, 0.9, 1.2, 1.2, 1.2, 1.2], 0),  # counted anew from the smaller one on
        ([1.0, 1.2, 1.2, 1.2, 1.2, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1], 2),  # held against 1.0, not against 1.2
    ],
)
def test_stalls_are_those_counted_by_hand(losses: list[float], expected: int) -> None:
    """Catches patience off by one (PyTorch's own scheduler waits for one epoch more), a least loss that is forgotten
    after a stall, and a difference below `min_delta` that counts.
    """
    assert stalls(losses, 5, 1e-4) == expected


def test_a_plateau_lowers_the_rate_of_the_next_epoch() -> None:
    """Catches a rate that falls while the epoch that is to decide is still running, or one epoch late."""
    plateau = Schedule(name="plateau", patience=2, factor=0.5)
    losses = [1.0, 0.8, 0.9, 0.9, 0.7, 0.9, 0.9, 0.9, 0.9]
    rates = [learning_rate(plateau, 0.8, n, 20, test_losses=losses[:n]) for n in range(10)]
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0.1])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_published_recursion(nesterov: bool) -> None:
    """Catches weight decay beside the momentum instead of through it, and momentum scaled by the rate as in 2012."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    spec = Optimizer(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = make_optimizer(nn.ParameterList([weight]), spec)
    w, v = [1.0, -2.0], [0.0, 0.0]
    for step, rate in enumerate((0.1, 0.1, 0.05)):
        gradient = [0.5 + step, -1.0]
        weight.grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for i in range(2):
            g = gradient[i] + 0.01 * w[i]
            v[i] = 0.9 * v[i] + g
            w[i] -= rate * (g + 0.9 * v[i] if nesterov else v[i])
    torch.testing.assert_close(weight.detach(), torch.tensor(w))


def drawn_layer() -> nn.Conv2d:
    """A channels-last convolution, the same each time."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, kernel_size=3).to(memory_format=torch.channels_last)


def give_gradients(layer: nn.Conv2d, step: int) -> list[torch.Tensor]:
    torch.manual_seed(step)
    for p in layer.parameters():
        p.grad = torch.empty_like(p).normal_()
    return [p.grad.clone() for p in layer.parameters() if p.grad is not None]


RATES = (0.1, 0.1, 0.01, 0.0, 0.05)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_sgd2012_is_the_recursion_of_the_paper(weight_decay: float) -> None:
    """Catches a first step with the bare gradient, rate and dampening exchanged, decay without the rate, momentum laid
    out otherwise than its weight, and a rate left changed for whoever reads it.
    """
    layer = drawn_layer()
    optimizer = SGD2012(layer.parameters(), lr=RATES[0], momentum=0.9, weight_decay=weight_decay)
    w = [p.detach().clone().double() for p in layer.parameters()]
    v = [torch.zeros_like(x) for x in w]
    for step, rate in enumerate(RATES):
        gradients = give_gradients(layer, step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for i, g in enumerate(gradients):
            v[i] = 0.9 * v[i] - weight_decay * rate * w[i] - rate * g
            w[i] = w[i] + v[i]
        assert optimizer.param_groups[0]["lr"] == rate
    for p, x, y in zip(layer.parameters(), w, v, strict=True):
        torch.testing.assert_close(p.detach().double(), x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(-optimizer.state[p]["momentum_buffer"].double(), y, rtol=1e-5, atol=1e-6)


def test_the_forms_agree_at_a_constant_rate_with_decay() -> None:
    """Catches a weight decay that enters the two forms in another place."""
    ends = []
    for form in (torch.optim.SGD, SGD2012):
        layer = drawn_layer()
        optimizer = form(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
        for step in range(20):
            give_gradients(layer, step)
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_sgd2012_without_momentum_is_refused() -> None:
    """Catches steps of rate 1: without momentum the kernel knows no dampening."""
    with pytest.raises(ValueError, match=r"momentum 0\.0: the form of 2012 needs one above 0"):
        SGD2012(drawn_layer().parameters(), lr=0.1, momentum=0.0)


class TwoBranches(nn.Module):
    """Layers of one name in two places, a normalisation, and a weight without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv1", nn.Conv2d(1, 2, kernel_size=3))
        self.features.add_module("norm1", nn.BatchNorm2d(2))
        self.left, self.right = nn.Sequential(), nn.Sequential()
        for branch in (self.left, self.right):
            branch.add_module("fc", nn.Linear(2, 3, bias=False))
        self.fc10 = nn.Linear(3, 10)


def grouped(**options: object) -> dict[str, tuple[float, float]]:
    """Rate factor and decay of each of TwoBranches' parameters, by name; fails unless each is in one group."""
    net = TwoBranches()
    names = {p: name for name, p in net.named_parameters()}
    groups = parameter_groups(net, Optimizer(learning_rate=0.1, weight_decay=0.01, **options))
    found = [(names[p], (g["rate_factor"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_biases_and_single_layers_get_their_own_rate_and_decay() -> None:
    """Catches a parameter in two groups (stepped twice) or in none, a layer's own decay given to its bias, and a
    normalisation's weight taken for a bias.
    """
    assert set(grouped().values()) == {(1.0, 0.01)}
    assert grouped(bias_rate=2.0, bias_decay=False, weight_decay_of={"fc10": 1.0, "left.fc": 0.0}) == {
        "features.conv1.weight": (1.0, 0.01), "features.conv1.bias": (2.0, 0.0),
        "features.norm1.weight": (1.0, 0.01), "features.norm1.bias": (2.0, 0.0),
        "left.fc.weight": (1.0, 0.0), "right.fc.weight": (1.0, 0.01),
        "fc10.weight": (1.0, 1.0), "fc10.bias": (2.0, 0.0),
    }  # fmt: skip
    with_decay = grouped(bias_rate=2.0, weight_decay_of={"fc10": 1.0})
    assert (with_decay["fc10.weight"], with_decay["fc10.bias"]) == ((1.0, 1.0), (2.0, 0.01))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("fc", r"layer 'fc': could be left\.fc or right\.fc"),
        ("fc11", r"layer 'fc11': did you mean fc10"),
        ("features", r"layer 'features': did you mean"),  # has no parameters of its own
        ("c10", r"layer 'c10': did you mean fc10"),
    ],
)
def test_a_layer_that_is_not_there_is_named(layer: str, message: str) -> None:
    """Catches a slip in a name that leaves a layer with the wrong decay and says nothing."""
    with pytest.raises(RecipeError, match=rf"optimizer\.weight_decay_of: {message}"):
        grouped(weight_decay_of={layer: 1.0})


@pytest.mark.parametrize("name", ["sgd", "sgd2012"])
def test_a_group_steps_at_its_multiple_of_the_rate(name: str) -> None:
    """Catches a rate that every group gets alike, which undoes the biases' own after the first step."""
    layer = nn.Linear(1, 1)
    optimizer = make_optimizer(layer, Optimizer(name=name, learning_rate=0.5, momentum=0.9, bias_rate=2.0))
    before = [p.item() for p in layer.parameters()]
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    set_rate(optimizer, 0.01)
    optimizer.step()
    moved = [p.item() - b for p, b in zip(layer.parameters(), before, strict=True)]
    assert moved == pytest.approx([-0.01, -0.02], abs=1e-6)


def test_losses_are_means_over_the_batch() -> None:
    """Catches a sum, which would multiply the learning rate by the batch size."""
    logits, labels = torch.randn(6, 10), torch.arange(6)
    by_hand = sum(torch.logsumexp(row, 0) - row[k] for row, k in zip(logits, labels, strict=True)) / 6
    torch.testing.assert_close(loss_function("cross_entropy")(logits, labels), by_hand)
    assert loss_function("cross_entropy")(torch.zeros(4, 10), labels[:4]).item() == pytest.approx(math.log(10))
    with pytest.raises(RecipeError, match="loss 'mse': known: cross_entropy, lenet5_map, lenet5_mse"):
        loss_function("mse")
