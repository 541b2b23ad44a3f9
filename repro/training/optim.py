"""Optimizers and learning rates. A rate is a pure function of the place in training: a resumed run cannot shift it."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from repro.errors import RecipeError
from repro.training.recipe import Optimizer, Schedule


def make_optimizer(parameters: Iterable[nn.Parameter], spec: Optimizer) -> torch.optim.Optimizer:
    """The optimizer a recipe names. PyTorch's SGD is fused: one pass over weights, gradients and momentum, not four."""
    return torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        fused=True,
    )


def learning_rate(spec: Schedule, base: float, epochs_done: float, epochs: int) -> float:
    """The rate at a moment of training, `epochs_done` (a fraction inside an epoch) of `epochs`.

    `constant`: base. `linear` and `cosine`: from base to 0 over the whole run. `steps`: times `factor` after each of
    the epochs in `at`. During `warmup_epochs` it is multiplied by the share of the warm-up that is over.
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
    warmup = min(1.0, epochs_done / spec.warmup_epochs) if spec.warmup_epochs else 1.0
    return base * shape * warmup


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
