"""Optimizers and learning rates. A rate is a pure function of the place in training: a resumed run cannot shift it.

Chapter 9 shows where the two forms of momentum part.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from repro.errors import RecipeError, nearest
from repro.training.recipe import Optimizer, Schedule

RATE_FACTOR = "rate_factor"  # of a parameter group: its rate as a multiple of the recipe's


class SGD2012(torch.optim.SGD):
    """Momentum as in the AlexNet paper, section 5: the learning rate is inside the velocity.

    v ← momentum · v − rate · (gradient + weight_decay · w), then w ← w + v. Keras has it so too. `torch.optim.SGD`
    keeps a velocity without the rate and multiplies by today's: at a constant rate the two make the same steps, but
    when the rate falls, PyTorch shrinks at once what was built up under the old one, and this form lets it run out.

    Computed by PyTorch's own kernels, where it can by the one that takes a single pass: at rate 1 and a dampening of
    1 − rate its recursion is the one above. The buffer it keeps, `momentum_buffer`, is −v. Raises ValueError without
    momentum, where the two forms are one.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        if momentum <= 0:
            raise ValueError(f"momentum {momentum}: the form of 2012 needs one above 0; without it use torch.optim.SGD")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> Any:
        """One update; `closure`, when given, computes the loss anew, as `torch.optim.Optimizer.step` has it."""
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"], group["dampening"] = 1.0, 1 - rate
            for p in group["params"]:
                if "momentum_buffer" not in self.state[p]:  # PyTorch starts with the gradient, undampened
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def make_optimizer(model: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """The optimizer a recipe names, fused where it can be: one pass over weights, gradients and momentum, not four."""
    groups = parameter_groups(model, spec)
    if spec.name == "sgd2012":
        return SGD2012(groups, lr=spec.learning_rate, momentum=spec.momentum)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.nesterov)


def parameter_groups(model: nn.Module, spec: Optimizer) -> list[dict[str, Any]]:
    """Every parameter of a net in one group, with those that share its rate (a multiple) and its weight decay.

    DTensors stand apart: PyTorch (2.15) has no fused SGD for them, and its other kernels take no mixture.
    Raises RecipeError for a layer in `weight_decay_of` that is not there, or that could be one of several.
    """
    own = {_layer(model, name): decay for name, decay in spec.weight_decay_of.items()}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            key = spec.bias_rate, spec.weight_decay if spec.bias_decay else 0.0
        else:
            key = 1.0, own.get(layer, spec.weight_decay)
        groups.setdefault((*key, not isinstance(parameter, DTensor)), []).append(parameter)
    return [
        {"params": p, RATE_FACTOR: rate, "weight_decay": decay, "fused": fused or None}
        for (rate, decay, fused), p in groups.items()
    ]


def _layer(model: nn.Module, wanted: str) -> str:
    """The full name of a layer with parameters of its own, given that or the end of it."""
    names = [name for name, layer in model.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    found = [name for name in names if f".{name}".endswith(f".{wanted}")]
    if len(found) == 1:
        return found[0]
    hint = f"could be {' or '.join(found)}" if found else nearest(wanted, names)
    raise RecipeError(f"optimizer.weight_decay_of: layer '{wanted}': {hint}")


def not_finite(model: nn.Module) -> list[str]:
    """The parameters, by their names, of whose gradients a number is NaN or infinite.

    Their sums are asked first, in one pass over memory: none with such a number in it is finite, but one of large
    numbers alone can be infinite as well.
    """
    gradients = {
        name: p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    if not gradients or torch.stack([g.sum() for g in gradients.values()]).sum().isfinite():
        return []
    return [name for name, g in gradients.items() if not g.isfinite().all()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_FACTOR]


def learning_rate(
    spec: Schedule,
    base: float,
    epochs_done: float,
    epochs: int,
    *,
    steps_done: int = 0,
    test_losses: Sequence[float] = (),
) -> float:
    """The rate at a moment of training, `epochs_done` (a fraction inside an epoch) of `epochs`.

    `constant`: base. `linear` and `cosine`: from base to 0 over the whole run. `steps`: times `factor` after each of
    the epochs in `at`. `plateau`: times `factor` whenever the test losses of the epochs done have stalled (`stalls`).
    During `warmup_epochs` it is multiplied by the share of the warm-up that is over, and always divided by
    1 + `decay_per_step` · `steps_done`.
    """
    progress = epochs_done / epochs
    match spec.name:
        case "constant":
            shape = 1.0
        case "linear":
            shape = 1 - progress
        case "cosine":
            shape = (1 + math.cos(math.pi * progress)) / 2
        case "steps":
            shape = spec.factor ** sum(epochs_done >= epoch for epoch in spec.at)
        case "plateau":
            shape = spec.factor ** stalls(test_losses, spec.patience, spec.min_delta)
    warmup = min(1.0, epochs_done / spec.warmup_epochs) if spec.warmup_epochs else 1.0
    return base * shape * warmup / (1 + spec.decay_per_step * steps_done)


def stalls(losses: Sequence[float], patience: int, min_delta: float) -> int:
    """How often in `losses`, one for each epoch, `patience` epochs went by without a new least one.

    A loss counts as the least when it is smaller by more than `min_delta`. After a stall the epochs are counted anew,
    but against the same least loss: the rule of Keras' ReduceLROnPlateau.
    """
    least, waited, found = math.inf, 0, 0
    for loss in losses:
        if loss < least - min_delta:
            least, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            found, waited = found + 1, 0
    return found


def loss_function(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name: (logits (B, K), labels (B,)) to the mean over the batch."""
    from repro.models import lenet

    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross_entropy": nn.functional.cross_entropy,
        "lenet5_map": lenet.map_loss,
        "lenet5_mse": lenet.mse_loss,
    }
    if name not in losses:
        raise RecipeError(f"loss '{name}': known: {', '.join(losses)}")
    return losses[name]
