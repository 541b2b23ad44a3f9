"""Learning rates against values worked out by hand, and the optimizer against the formulas."""

import math

import pytest
import torch

from repro.errors import RecipeError
from repro.training.optim import learning_rate, loss_function, make_optimizer
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


def test_cosine_never_rises_or_wraps() -> None:
    """Catches a period in steps where epochs are given: the rate would swing back."""
    rates = [learning_rate(Schedule(name="cosine"), 1.0, step / 49, 8) for step in range(8 * 49)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_published_recursion(nesterov: bool) -> None:
    """Catches weight decay beside the momentum instead of through it, and momentum scaled by the rate as in 2012."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    spec = Optimizer(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = make_optimizer([weight], spec)
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


def test_losses_are_means_over_the_batch() -> None:
    """Catches a sum, which would multiply the learning rate by the batch size."""
    logits, labels = torch.randn(6, 10), torch.arange(6)
    by_hand = sum(torch.logsumexp(row, 0) - row[k] for row, k in zip(logits, labels, strict=True)) / 6
    torch.testing.assert_close(loss_function("cross_entropy")(logits, labels), by_hand)
    assert loss_function("cross_entropy")(torch.zeros(4, 10), labels[:4]).item() == pytest.approx(math.log(10))
    with pytest.raises(RecipeError, match="loss 'mse': known: cross_entropy, lenet5_map, lenet5_mse"):
        loss_function("mse")
