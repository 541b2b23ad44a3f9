"""A training step of `alexnet_2012` at 224, batch 128, from pictures in memory to new weights.

Ours as a run takes it: channels-last, bf16 where the processor multiplies it, our normalisation, fused updates, and
freed memory kept. Held against the same net with the library's normalisation in plain float32, which has the allocator
of a plain script. How pictures get into memory is not part of it.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import OURS, Comparison, Side, alternate, measure_peaks, require_close
from benchmarks.training import AS_GLIBC_DOES
from repro.models import get_model, model_info
from repro.models.summary import layer_table
from repro.training import load_recipe
from repro.training.device import autocast, channels_last, choose_precision, keep_freed_memory
from repro.training.fusion import fuse
from repro.training.optim import make_optimizer

GOAL = 4.2
NAME = "alexnet_2012"
CPU = torch.device("cpu")
CHECKED = 8  # pictures whose loss and gradients are held against each other
DEVIATION = 70.0  # of pixels 0…255 less their mean, about what photographs have


def compare(rounds: int) -> list[Comparison]:
    """Seconds of a step."""
    recipe = load_recipe("alexnet-2012")
    model, rival = channels_last(get_model(NAME)), get_model(NAME, lrn="library")
    rival.load_state_dict(model.state_dict())
    size = model_info(NAME).input_size
    rows = layer_table(model, size).layers_with_weights()
    precision = choose_precision("auto", CPU, rows.multiply_adds)
    batch = draw(recipe.batch_size, size)
    ours, theirs = Loss(fuse(model), precision), Loss(rival, "float32")
    note = require_same(ours, theirs, *(t[:CHECKED] for t in batch))
    spec = recipe.optimizer
    plain = torch.optim.SGD(rival.parameters(), spec.learning_rate, spec.momentum, weight_decay=spec.weight_decay)
    images, labels = batch
    last = images.contiguous(memory_format=torch.channels_last)
    sides = {
        OURS: step(ours, make_optimizer(model, spec), last, labels, keep_freed_memory),
        "PyTorch's LRN, float32": step(theirs, plain, images, labels, partial(keep_freed_memory, *AS_GLIBC_DOES)),
    }
    seconds = alternate("AlexNet of 2012, step", sides, rounds)
    # Three products per layer, of which the first has no gradient of its input.
    flop = 2 * (3 * rows.multiply_adds - rows[0].multiply_adds) * recipe.batch_size
    peaks = measure_peaks(torch.bfloat16 if precision == "bf16" else torch.float32)
    data = "×".join(map(str, images.shape))
    return [Comparison("AlexNet of 2012, step", data, seconds, GOAL, flop=flop, peaks=peaks, notes=[note])]


def draw(batch_size: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pixels of the scale 0…255 less their mean, float32 (N, C, H, W), and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    images = DEVIATION * torch.randn(batch_size, *size, generator=generator)
    return images, torch.randint(1000, (batch_size,), generator=generator)


class Loss:
    """The cross-entropy of a net in a precision."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model, self.precision = model, precision

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(CPU, self.precision):
            return F.cross_entropy(self.model(images), labels)


def step(
    loss: Loss, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, set_memory: Callable[[], None]
) -> Side:
    """A side that makes one update, with the allocator set as it is when the side runs alone."""

    def side() -> float:
        set_memory()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return side


def require_same(ours: Loss, theirs: Loss, images: Tensor, labels: Tensor) -> str:
    """Raise AssertionError unless loss and gradients agree without dropout; in bfloat16 gradients may be 5 % off."""
    losses, gradients = [], []
    for loss in (ours, theirs):
        loss.model.eval()
        losses.append(loss(images, labels))
        found = torch.autograd.grad(losses[-1], list(loss.model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
        loss.model.train()
    bf16 = ours.precision == "bf16"
    of_losses = require_close("losses", losses[0], losses[1], tolerance=1e-2 if bf16 else 1e-5)
    of_gradients = require_close("gradients", gradients[0], gradients[1], tolerance=5e-2 if bf16 else 1e-4)
    return f"{of_losses}; {of_gradients}"
