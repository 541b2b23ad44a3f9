"""Training with `repro` and training as in the tutorial: one recipe, one set of pictures, the same first weights."""

import time
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from benchmarks.harness import require_close
from benchmarks.tutorial import TutorialTrainer, dataset, loader
from repro.data import load
from repro.data.random import permutation
from repro.models import model_info
from repro.models.summary import layer_table
from repro.training import load_recipe
from repro.training.device import autocast, keep_freed_memory
from repro.training.loop import Trainer

# What glibc arrives at by itself once tensors come and go (malloc(3), "dynamic mmap threshold"). In one process both
# sides share an allocator: each is to run with the settings it has when it runs alone.
AS_GLIBC_DOES = 32 * 2**20, 64 * 2**20


class Rivals:
    """Both trainers of a recipe; where its set cannot be had, `fallback` (an embedded one) takes its place."""

    def __init__(self, recipe_name: str, fallback: str) -> None:
        published = load_recipe(recipe_name).data.name
        self.train_set = load(published, fallback=fallback)
        self.stand_in = self.train_set.name != published  # no goal was set for it
        overrides = [f"data.name={self.train_set.name}", "epochs=1000"]  # the rate stays above zero in any benchmark
        self.recipe = load_recipe(recipe_name, overrides)
        self.samples = dataset(self.train_set, self.recipe)

    # Each is made when it is first asked for: a process of the tutorial's own must not have met ours.

    @cached_property
    def ours(self) -> Trainer:
        return Trainer(self.recipe, seed=0, device=torch.device("cpu"))

    @cached_property
    def tutorial(self) -> TutorialTrainer:
        return TutorialTrainer(self.recipe)

    @property
    def data(self) -> str:
        return f"{self.train_set.name}, {len(self.train_set):,}"

    def require_same(self) -> str:
        """Raise AssertionError unless loss and gradients agree on one batch of the same weights; a note of how closely.

        Dropout is off for the comparison, and so is augmentation: the pictures are the tutorial's own. bfloat16 keeps 8
        bits, so its gradients may be some per cent off.
        """
        ours, theirs = self.ours, self.tutorial
        theirs.model.load_state_dict(ours.model.state_dict())
        images, labels = next(iter(loader(self.samples, self.recipe.batch_size, 0)))
        ours.forward.eval()
        theirs.model.eval()
        with autocast(ours.device, ours.precision):
            our_loss = ours.loss(ours.forward(images.to(memory_format=torch.channels_last)), labels)
        our_loss.backward()
        their_loss = theirs.criterion(theirs.model(images), labels)
        their_loss.backward()
        bf16 = ours.precision == "bf16"
        loss_note = require_close("losses", our_loss, their_loss, tolerance=1e-2 if bf16 else 1e-5)
        gradients = _gradients(ours.model), _gradients(theirs.model)
        gradient_note = require_close("gradients", *gradients, tolerance=5e-2 if bf16 else 1e-4)
        ours.forward.train()
        theirs.model.train()
        return f"{loss_note}; {gradient_note}"

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.ours.precision == "bf16" else torch.float32

    def our_epoch(self) -> float:
        """Seconds of an epoch of `repro`, without measuring the test set."""
        keep_freed_memory()
        return self.ours.train_epoch(lambda: None).seconds

    def their_epoch(self, workers: int) -> float:
        """Seconds of an epoch of the tutorial, from starting the loader on."""
        keep_freed_memory(*AS_GLIBC_DOES)
        start = time.perf_counter()
        self.tutorial.train(loader(self.samples, self.recipe.batch_size, workers))
        return time.perf_counter() - start

    def our_steps(self, steps: int) -> float:
        """Seconds per step, from cutting the batch to the new weights."""
        keep_freed_memory()
        size = self.recipe.batch_size
        order = permutation(len(self.train_set), self.ours.place.epoch)
        start = time.perf_counter()
        for i in range(steps):
            self.ours.step(order[i * size : (i + 1) * size])
            self.ours.place.step += 1
        return (time.perf_counter() - start) / steps

    def their_steps(self, steps: int, workers: int) -> float:
        """Seconds per step, from the moment the loader has its first batch: starting it belongs to the epoch."""
        keep_freed_memory(*AS_GLIBC_DOES)
        size = self.recipe.batch_size
        chosen = torch.randperm(len(self.train_set))[: (steps + 1) * size].tolist()
        batches = iter(loader(Subset(self.samples, chosen), size, workers))
        self.tutorial.train(islice(batches, 1))
        start = time.perf_counter()
        self.tutorial.train(batches)
        return (time.perf_counter() - start) / steps

    def training_flop(self) -> int:
        """Floating-point operations of training on one picture: two per multiply-add, three products per layer.

        Forward, gradient of the weights and gradient of the input, which the first layer does not need.
        """
        rows = layer_table(self.ours.model, model_info(self.recipe.model).input_size).layers_with_weights()
        return 2 * (3 * rows.multiply_adds - rows[0].multiply_adds)


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
