"""One visible loop: batches cut on the device, a step, exact sums, a checkpoint, a record.

Everything random is a pure function of (seed, epoch, step or sample): order, augmentation, dropout. So the state of a
run is its weights, its momentum and its place, and a run that is killed and resumed ends with the same bits on the same
machine. Metrics are sums and counts over every sample exactly once, never means of batch means. The test set is
measured after every epoch and decides nothing: the result is the last epoch of a schedule that was fixed before.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from repro.data import ImageSet, load
from repro.data.augmentation import Augmentation, Batches
from repro.data.random import derive_seed, permutation
from repro.errors import NumericsError, Preempted, RecipeError, ReproError, ResourceError
from repro.models import get_model
from repro.models.summary import layer_table
from repro.records import Epoch, Record
from repro.training.checkpoint import Checkpoint
from repro.training.device import autocast, channels_last, choose_device, choose_precision, keep_freed_memory
from repro.training.fusion import fuse
from repro.training.keeper import SAVE_EVERY_S, Keeper
from repro.training.optim import learning_rate, loss_function, make_optimizer
from repro.training.recipe import Recipe
from repro.training.signals import StopRequest
from repro.training.state import MODEL, check_same_run, optimizer_tensors, restore_optimizer

EVAL_BATCH = 1000
CHECK_EVERY = 50  # steps between two looks at the losses on a GPU
# What the parts of a derived seed are for, so that no two draws share one.
_INIT, _ORDER, _STEP, _AUGMENT = range(4)


@dataclass
class Sums:
    """Loss and errors added up on the device over the samples seen so far."""

    loss: Tensor
    wrong: Tensor
    count: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        return cls(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss.detach().double() * len(labels)
        self.wrong += (logits.detach().argmax(1) != labels).sum()
        self.count += len(labels)

    def means(self) -> tuple[float, float]:
        return self.loss.item() / self.count, self.wrong.item() / self.count


@dataclass
class Place:
    """How far a run is: `epoch` epochs are done, and `step` steps of the next one."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # of the epoch under way
    restarts: int = 0
    history: list[Epoch] = field(default_factory=list)


class Trainer:
    """A recipe and a seed made concrete on one device: net, data, optimizer and the place in training."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device, compiled: bool = False) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        if device.type == "cpu":
            keep_freed_memory()
        self.place = Place()
        data = recipe.data
        train = load(data.name, data.train, size=data.size)
        self.train_set = train.subset(torch.arange(min(data.limit, len(train)))) if data.limit else train
        self.test_set = load(data.name, data.test, size=data.size)
        augmentation = Augmentation(recipe.augmentation.crop_padding, recipe.augmentation.flip)
        self.train_batches = self._batches(self.train_set, augmentation)
        self.test_batches = self._batches(self.test_set, None)
        torch.manual_seed(derive_seed(seed, _INIT))
        self.model = self._build()
        self.forward = self._make_forward(compiled)
        self.optimizer = make_optimizer(self.model.parameters(), recipe.optimizer)
        self.loss = loss_function(recipe.loss)
        self.sums = Sums.zero(device)
        self.unchecked: dict[int, Tensor] = {}  # step of this epoch: its loss

    def _batches(self, images: ImageSet, augmentation: Augmentation | None) -> Batches:
        data, own = self.recipe.data, self.train_set
        mean, std = tuple(data.mean or own.mean), tuple(data.std or own.std)
        return Batches(images, mean, std, self.device, augmentation, data.border)

    def _build(self) -> nn.Module:
        try:
            model = get_model(self.recipe.model, **self.recipe.model_options)
        except ReproError:
            raise
        except (TypeError, ValueError, RuntimeError) as e:
            raise RecipeError(f"{self.recipe.name}: model_options {self.recipe.model_options}: {e}") from e
        model = channels_last(model.to(self.device))
        sample = self.train_batches.plain(0, 1)[0]
        _, channels, height, width = sample.shape
        rows = layer_table(model, (channels, height, width))
        classes = rows[-1].output_shape[0]
        if classes != len(self.train_set.classes):
            raise RecipeError(
                f"{self.recipe.name}: {self.recipe.model} has {classes} outputs, but {self.train_set.name} has "
                f"{len(self.train_set.classes)} classes; set model_options.num_classes"
            )
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.precision = choose_precision(self.recipe.precision, self.device, rows.multiply_adds)
        return model

    def _make_forward(self, compiled: bool) -> nn.Module:
        """The model as it is called: the same function and parameters, by a faster way where there is one."""
        if compiled:
            return cast(nn.Module, torch.compile(self.model))
        return fuse(self.model) if self.device.type == "cpu" else self.model

    def _set_mode(self, training: bool) -> None:
        """Training or evaluation, for the net and for what is called in its place, whose containers are its own."""
        self.model.train(training)
        self.forward.train(training)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train_batches) // self.recipe.batch_size)

    @property
    def finished(self) -> bool:
        return self.place.epoch >= self.recipe.epochs

    def train_epoch(self, after_step: Callable[[], None]) -> Epoch:
        """Train to the end of the current epoch and measure; `after_step` may save, or raise to stop."""
        self._set_mode(training=True)
        epoch = self.place.epoch
        order = permutation(len(self.train_batches), self.seed, epoch, _ORDER).to(self.device)
        before, start = self.place.seconds, time.perf_counter()
        while self.place.step < self.steps_per_epoch:
            first = self.place.step * self.recipe.batch_size
            self.step(order[first : first + self.recipe.batch_size])
            self.place.step += 1
            self.place.seconds = before + time.perf_counter() - start
            after_step()
        self.check_losses()
        train_loss, train_error = self.sums.means()
        seconds = before + time.perf_counter() - start
        test_loss, test_error = self.evaluate(self.test_batches)
        if not math.isfinite(test_loss):
            raise NumericsError(
                f"{self.recipe.name} seed {self.seed}: test loss is {test_loss} after epoch {epoch + 1}; "
                "the last checkpoint is from before it: lower the learning rate"
            )
        done = Epoch(
            epoch=epoch + 1,
            seconds=seconds,
            learning_rate=self.rate(self.steps_per_epoch - 1),
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test_loss,
            test_error=test_error,
        )
        self._next_epoch(done)
        return done

    def rate(self, step: int) -> float:
        """The learning rate of a step of the epoch under way."""
        done = self.place.epoch + step / self.steps_per_epoch
        return learning_rate(self.recipe.schedule, self.recipe.optimizer.learning_rate, done, self.recipe.epochs)

    def step(self, indices: Tensor) -> None:
        """One update on the samples at `indices`."""
        epoch, step = self.place.epoch, self.place.step
        self._seed_dropout(derive_seed(self.seed, epoch, step, _STEP))
        images, labels = self.train_batches.augmented(indices, derive_seed(self.seed, _AUGMENT), epoch)
        with autocast(self.device, self.precision):
            logits = self.forward(images)
            loss = self.loss(logits, labels)
        self.unchecked[step] = loss.detach()
        if self.device.type == "cpu" or len(self.unchecked) == CHECK_EVERY:
            self.check_losses()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.sums.add(loss, logits, labels)

    def _seed_dropout(self, seed: int) -> None:
        if self.device.type == "cpu":
            # The same numbers as after `torch.manual_seed`, which at each step would ask for every other device too.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def check_losses(self) -> None:
        """Raise NumericsError at the first loss since the last check that is not finite, naming its batch.

        On a GPU, asking waits for the device, so it is done every CHECK_EVERY steps and before anything is saved: what
        is on disk is finite.
        """
        unchecked, self.unchecked = self.unchecked, {}
        bad = [(step, loss.item()) for step, loss in unchecked.items() if not torch.isfinite(loss)]
        if not bad:
            return
        step, loss = bad[0]
        first = step * self.recipe.batch_size
        order = permutation(len(self.train_batches), self.seed, self.place.epoch, _ORDER)
        samples = ", ".join(map(str, order[first : first + 8].tolist()))
        raise NumericsError(
            f"{self.recipe.name} seed {self.seed}: loss is {loss} at epoch "
            f"{self.place.epoch + 1}, batch {step + 1} (samples {samples}, …); the last checkpoint is from before it: "
            "lower the learning rate, or look at these samples"
        )

    @torch.inference_mode()
    def evaluate(self, batches: Batches) -> tuple[float, float]:
        """Mean loss and share of errors over every sample of a set, without augmentation or dropout."""
        self._set_mode(training=False)
        sums = Sums.zero(self.device)
        for start in range(0, len(batches), EVAL_BATCH):
            images, labels = batches.plain(start, start + EVAL_BATCH)
            with autocast(self.device, self.precision):
                logits = self.forward(images)
                loss = self.loss(logits, labels)
            sums.add(loss, logits, labels)
        return sums.means()

    def _next_epoch(self, done: Epoch) -> None:
        self.place.history.append(done)
        self.place.epoch, self.place.step, self.place.seconds = done.epoch, 0, 0.0
        self.sums = Sums.zero(self.device)

    def snapshot(self) -> Checkpoint:
        """All that an exact continuation needs."""
        self.check_losses()
        tensors = {MODEL + k: v for k, v in self.model.state_dict().items()}
        tensors |= {"sums/loss": self.sums.loss, "sums/wrong": self.sums.wrong}
        tensors |= optimizer_tensors(self.optimizer)
        place = self.place
        if bad := [k for k, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
            raise NumericsError(
                f"{self.recipe.name} seed {self.seed}: {bad[0]} is not finite at epoch {place.epoch + 1}, batch "
                f"{place.step}; the last checkpoint is from before it: lower the learning rate"
            )
        return Checkpoint(
            tensors,
            {
                "recipe": self.recipe.name,
                "recipe_digest": self.recipe.digest(),
                "seed": self.seed,
                "train_digest": self.train_set.digest,
                "test_digest": self.test_set.digest,
                "device": self.device.type,
                "precision": self.precision,
                "threads": torch.get_num_threads(),
                "count": self.sums.count,
                "epoch": place.epoch,
                "step": place.step,
                "seconds": place.seconds,
                "restarts": place.restarts,
                "history": [e.model_dump() for e in place.history],
            },
        )

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint of the same run; raises CheckpointError naming the first thing that differs."""
        state, own = found.state, self.snapshot()
        check_same_run(found, own)
        self.model.load_state_dict({k.removeprefix(MODEL): t for k, t in found.tensors.items() if k.startswith(MODEL)})
        restore_optimizer(self.optimizer, found.tensors)
        self.sums = Sums(
            found.tensors["sums/loss"].to(self.device),
            found.tensors["sums/wrong"].to(self.device),
            state["count"],
        )
        history = [Epoch.model_validate(e) for e in state["history"]]
        self.place = Place(state["epoch"], state["step"], state["seconds"], state["restarts"] + 1, history)


def train(
    recipe: Recipe,
    seed: int = 0,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    compiled: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> tuple[Record, nn.Module]:
    """Train a recipe with one seed to its end; returns the record and the trained net (in evaluation mode).

    With `run_dir` the run keeps checkpoints and a `record.json` there, can be stopped (Ctrl-C, SIGTERM: Preempted) and
    resumed; without, nothing is written. Raises NumericsError at the first loss that is not finite, keeping the last
    checkpoint.
    """
    trainer = Trainer(recipe, seed, choose_device(device), compiled)
    keeper = Keeper(trainer, run_dir, save_every_s)
    if resume:
        keeper.resume()
    with StopRequest(active=run_dir is not None) as stop:
        try:
            while not trainer.finished:
                done = trainer.train_epoch(lambda: keeper.after_step(stop))
                keeper.save("running")
                if on_epoch:
                    on_epoch(done)
        except Preempted:
            raise
        except Exception as e:
            with contextlib.suppress(ResourceError):  # on a full disk the first error is the one to tell
                keeper.write_record("crashed", f"{type(e).__name__}: {e}")
            raise
    record = keeper.write_record("complete")
    return record, trainer.model.eval()
