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
from repro.data.color import ColorPCA
from repro.data.images import mean_image
from repro.data.random import derive_seed, permutation
from repro.errors import NumericsError, Preempted, RecipeError, ReproError, ResourceError
from repro.models import get_model
from repro.models.summary import layer_table
from repro.records import Epoch, Record
from repro.training.checkpoint import Checkpoint
from repro.training.device import autocast, channels_last, choose_device, choose_precision, keep_freed_memory
from repro.training.fusion import fuse
from repro.training.keeper import SAVE_EVERY_S, Keeper
from repro.training.measure import TOP, Measured, Sums, eval_batch, mean_over_views, outside_top
from repro.training.optim import learning_rate, loss_function, make_optimizer, set_rate
from repro.training.recipe import Recipe
from repro.training.signals import StopRequest
from repro.training.state import MODEL, check_same_run, optimizer_tensors, restore_optimizer

CHECK_EVERY = 50  # steps between two looks at the losses on a GPU
# What the parts of a derived seed are for, so that no two draws share one.
_INIT, _ORDER, _STEP, _AUGMENT = range(4)


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
        self._load()
        torch.manual_seed(derive_seed(seed, _INIT))
        self.model = self._build()
        self.forward = self._make_forward(compiled)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.loss = loss_function(recipe.loss)
        self.sums = Sums.zero(device)
        self.unchecked: dict[int, Tensor] = {}  # step of this epoch: its loss

    def _load(self) -> None:
        """Both splits and their batches; whatever is computed from pictures is computed from the training split."""
        data = self.recipe.data
        train = load(data.name, data.train, size=data.size, fit=data.fit)
        self.train_set = train.subset(torch.arange(min(data.limit, len(train)))) if data.limit else train
        self.test_set = load(data.name, data.test, size=data.size, fit=data.fit)
        self.mean, self.std = tuple(data.mean or self.train_set.mean), tuple(data.std or self.train_set.std)
        self.mean_image = None if data.mean_image == "none" else mean_image(self.train_set)
        augmentation = Augmentation(**self.recipe.augmentation.model_dump())
        self.train_batches = self._batches(self.train_set, augmentation)
        self.test_batches = self._batches(self.test_set, Augmentation(crop=augmentation.crop))

    def _batches(self, images: ImageSet, augmentation: Augmentation) -> Batches:
        data = self.recipe.data
        return Batches(
            images,
            self.mean,
            self.std,
            self.device,
            augmentation,
            data.border,
            mean_image=self.mean_image,
            mean_image_cut="centre" if data.mean_image == "none" else data.mean_image,
            pca=ColorPCA.of(self.train_set) if augmentation.color_noise else None,
        )

    def _build(self) -> nn.Module:
        try:
            model = get_model(self.recipe.model, **self.recipe.model_options)
        except ReproError:
            raise
        except (TypeError, ValueError, RuntimeError) as e:
            raise RecipeError(f"{self.recipe.name}: model_options {self.recipe.model_options}: {e}") from e
        model = channels_last(model.to(self.device))
        _, channels, height, width = self.as_input(self.train_batches.plain(0, 1)[0]).shape
        self.eval_batch = eval_batch(channels * height * width * self.recipe.test_views)
        rows = layer_table(model, (channels, height, width))
        self.classes = rows[-1].output_shape[0]
        if self.classes != len(self.train_set.classes):
            raise RecipeError(
                f"{self.recipe.name}: {self.recipe.model} has {self.classes} outputs, but {self.train_set.name} has "
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
        """Whether the last epoch is done, or the first one with the training error at which the recipe stops."""
        reached = self.recipe.stop_at_train_error
        history = self.place.history
        early = reached is not None and bool(history) and history[-1].train_error <= reached
        return early or self.place.epoch >= self.recipe.epochs

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
        test = self.evaluate(self.test_batches)
        if not math.isfinite(test.loss):
            raise NumericsError(
                f"{self.recipe.name} seed {self.seed}: test loss is {test.loss} after epoch {epoch + 1}; "
                "the last checkpoint is from before it: lower the learning rate"
            )
        done = Epoch(
            epoch=epoch + 1,
            seconds=seconds,
            learning_rate=self.rate(self.steps_per_epoch - 1),
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test.loss,
            test_error=test.error,
            test_top5_error=test.top5_error,
        )
        self._next_epoch(done)
        return done

    def rate(self, step: int) -> float:
        """The learning rate of a step of the epoch under way."""
        place, per_epoch = self.place, self.steps_per_epoch
        return learning_rate(
            self.recipe.schedule,
            self.recipe.optimizer.learning_rate,
            place.epoch + step / per_epoch,
            self.recipe.epochs,
            steps_done=place.epoch * per_epoch + step,
            test_losses=[e.test_loss for e in place.history],
        )

    def step(self, indices: Tensor) -> None:
        """One update on the samples at `indices`."""
        epoch, step = self.place.epoch, self.place.step
        self._seed_dropout(derive_seed(self.seed, epoch, step, _STEP))
        images, labels = self.train_batches.augmented(indices, derive_seed(self.seed, _AUGMENT), epoch)
        with autocast(self.device, self.precision):
            logits = self.forward(self.as_input(images))
            loss = self.loss(logits, labels)
        self.unchecked[step] = loss.detach()
        if self.device.type == "cpu" or len(self.unchecked) == CHECK_EVERY:
            self.check_losses()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        set_rate(self.optimizer, self.rate(step))
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
    def evaluate(self, batches: Batches) -> Measured:
        """Mean loss and shares of errors over every sample of a set, without augmentation or dropout."""
        self._set_mode(training=False)
        sums, outside = Sums.zero(self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(batches), self.eval_batch):
            logits, labels = self.test_logits(batches, start, start + self.eval_batch)
            with autocast(self.device, self.precision):
                loss = self.loss(logits, labels)
            sums.add(loss, logits, labels)
            if self.classes > TOP:
                outside += outside_top(logits, labels)
        return Measured(*sums.means(), outside.item() / sums.count if self.classes > TOP else None)

    def test_logits(self, batches: Batches, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The logits of pictures start…stop−1 over all the views the recipe tests with (B, K), and the labels (B,)."""
        views = self.recipe.test_views
        images, labels = (batches.plain if views == 1 else batches.ten_views)(start, stop)
        with autocast(self.device, self.precision):
            logits = self.forward(self.as_input(images.flatten(0, -4)))
        return (logits if views == 1 else mean_over_views(logits, views)), labels

    def as_input(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as the net takes them: grey ones repeated to as many channels as the recipe says."""
        channels = self.recipe.data.channels
        if channels is None or images.shape[1] == channels:
            return images
        return images.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)

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
