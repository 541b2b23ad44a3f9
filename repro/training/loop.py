"""One visible loop: batches cut on the device, a step, exact sums, a checkpoint, a record.

Everything random is a pure function of (seed, epoch, step or sample): order, augmentation, dropout. So the state of a
run is its weights, its momentum and its place, and a run that is killed and resumed ends with the same bits on the same
machine. Metrics are sums and counts over every sample exactly once, never means of batch means. The test set is
measured after every epoch and decides nothing: the result is the last epoch of a schedule that was fixed before.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repro.data import ShardSet
from repro.data.augmentation import Batches
from repro.data.random import derive_seed, permutation
from repro.errors import NumericsError
from repro.models import get_model
from repro.records import Epoch
from repro.training.checkpoint import Checkpoint
from repro.training.device import autocast, keep_freed_memory
from repro.training.fusion import fuse
from repro.training.measure import TOP, Measured, Sums, eval_batch, mean_over_views, outside_top
from repro.training.optim import learning_rate, loss_function, make_optimizer, not_finite, set_rate
from repro.training.parallel import Group, OneProcess
from repro.training.parallel.one import Piece
from repro.training.recipe import Recipe
from repro.training.setup import Pictures, as_input, build_net, open_pictures
from repro.training.state import MODEL, Parts, progress_of

CHECK_EVERY = 50  # steps between two looks at losses and gradients on a GPU
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

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        compiled: bool = False,
        parallel: OneProcess | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.parallel = parallel or OneProcess(Group(device=device))
        if device.type == "cpu":
            keep_freed_memory()
        self.place = Place()
        pictures = pictures or open_pictures(recipe, device)
        self.train_set, self.test_set, self.train_batches, self.test_batches, self.mean, self.std = pictures
        torch.manual_seed(derive_seed(seed, _INIT))
        net = build_net(recipe, device, pictures)
        self.classes, self.parameters, self.precision = net.classes, net.parameters, net.precision
        self.eval_batch = eval_batch(math.prod(net.input_size) * recipe.test_views)
        self.parts = Parts(net.model, self.parallel)
        self.model = self.parallel.split(net.model)
        # What is called: the same function and parameters, by a faster way where there is one.
        fused = device.type == "cpu" and not compiled
        self.forward = self.parallel.prepare(fuse(self.model) if fused else self.model)
        if compiled:
            self.parallel.compile()
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.loss = loss_function(recipe.loss)
        self.sums = Sums.zero(device)
        self.unchecked: list[tuple[int, Tensor]] = []  # steps of this epoch and their losses
        self.earlier: list[dict[str, Any]] = []  # other ways in which ranks shared this run before it was resumed

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
        order = self.order(epoch)
        self.train_batches.expect(self._own_rows(order))
        before, start = self.place.seconds, time.perf_counter()
        while self.place.step < self.steps_per_epoch:
            first = self.place.step * self.recipe.batch_size
            self.step(order[first : first + self.recipe.batch_size])
            self.place.step += 1
            self.place.seconds = before + time.perf_counter() - start
            after_step()
        self.check_finite()
        train_loss, train_error = self.sums.over(self.parallel.group).means()
        seconds = before + time.perf_counter() - start
        test = self.evaluate(self.test_batches)
        if not math.isfinite(test.loss):
            raise self.parallel.group.alike(
                NumericsError(
                    f"{self.recipe.name} seed {self.seed}: test loss is {test.loss} after epoch {epoch + 1}; "
                    "the last checkpoint is from before it: lower the learning rate"
                )
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

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, int64 (N,), in the order in which they are trained on."""
        if isinstance(self.train_set, ShardSet):
            if self.recipe.data.order == "shards":
                return self.train_set.order(derive_seed(self.seed, _ORDER), epoch)
            return permutation(len(self.train_set), self.seed, epoch, _ORDER)
        # Its pictures are on the device, and so are their indices.
        return permutation(len(self.train_set), self.seed, epoch, _ORDER).to(self.device)

    def _own_rows(self, order: Tensor) -> Iterator[Tensor]:
        """What this rank reads in the rest of the epoch, pass by pass."""
        for batch in order.split(self.recipe.batch_size)[self.place.step :]:
            yield from (batch[piece.rows] for piece in self.parallel.pieces(len(batch)))

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
        """One update on the samples at `indices`, of which this rank may read a share, in one pass or in several."""
        epoch, step, start = self.place.epoch, self.place.step, time.perf_counter()
        labels = self.train_batches.labels[indices]
        self.optimizer.zero_grad(set_to_none=True)
        for piece in self.parallel.pieces(len(indices)):
            self._seed_dropout(derive_seed(self.seed, epoch, step, _STEP))
            images, _ = self.train_batches.augmented(indices, derive_seed(self.seed, _AUGMENT), epoch, piece.rows)
            answer = self.parallel.work(self.as_input(images), labels, piece, self.loss, self._autocast)
            self.unchecked.append((step, answer.loss))
            self.sums.add(*answer)
        if self.device.type == "cpu" or (step + 1) % CHECK_EVERY == 0:
            self.check_finite(gradients=True)
        set_rate(self.optimizer, self.rate(step))
        self.optimizer.step()
        self.parallel.wire.note(f"step {step + 1} of epoch {epoch + 1}", "step", start, 0)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.precision)

    def _seed_dropout(self, seed: int) -> None:
        if self.device.type == "cpu":
            # The same numbers as after `torch.manual_seed`, which at each step would ask for every other device too.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def check_finite(self, gradients: bool = False) -> None:
        """Raise NumericsError, on all ranks alike, if a loss since the last check is not finite on any of them.

        With `gradients` those of the step under way are looked at, too. On a GPU, asking waits for the device, so it
        is done every CHECK_EVERY steps and before anything is saved: what is on disk is finite. On a CPU it is done
        before each update.
        """
        group, unchecked, self.unchecked = self.parallel.group, self.unchecked, []
        found = [(step, f"loss is {loss.item()}") for step, loss in unchecked if not torch.isfinite(loss)]
        if gradients and not found:
            found = [(self.place.step, f"gradient of {name} is not finite") for name in not_finite(self.model)]
        if not group.any(bool(found))[0]:
            return
        on_each = group.from_all(found[:1])
        # A gradient that is shared has its cause where the loss is.
        step, _, rank, what = min((s, "loss" not in w, r, w) for r, one in enumerate(on_each) for s, w in one)
        place = f" on rank {rank}" if group.world_size > 1 else ""
        first = step * self.recipe.batch_size
        samples = ", ".join(map(str, self.order(self.place.epoch)[first : first + 8].tolist()))
        raise group.alike(
            NumericsError(
                f"{self.recipe.name} seed {self.seed}: {what}{place} at epoch {self.place.epoch + 1}, batch {step + 1} "
                f"(samples {samples}, …); the last checkpoint is from before it: lower the learning rate, or look at "
                "these samples"
            )
        )

    @torch.inference_mode()
    def evaluate(self, batches: Batches) -> Measured:
        """Mean loss and shares of errors over every sample of a set, without augmentation or dropout."""
        self._set_mode(training=False)
        sums = Sums.zero(self.device)
        everything = torch.arange(len(batches))
        batches.expect(rows[self._test_piece(len(rows)).rows] for rows in everything.split(self.eval_batch))
        for start in range(0, len(batches), self.eval_batch):
            logits, labels = self.test_logits(batches, start, min(start + self.eval_batch, len(batches)))
            if not len(labels):  # another rank answers for these
                continue
            with self._autocast():
                loss = self.loss(logits, labels)
            sums.add(loss, logits, labels)
            if self.classes > TOP:
                sums.outside += outside_top(logits, labels)
        total = sums.over(self.parallel.group)
        return Measured(*total.means(), total.outside.item() / total.count if self.classes > TOP else None)

    def test_logits(self, batches: Batches, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The logits of pictures start…stop−1 over all the views the recipe tests with (B, K), and the labels (B,).

        Of several ranks each gets those that it answers for.
        """
        views, piece = self.recipe.test_views, self._test_piece(stop - start)
        first, last = start + piece.rows.start, start + piece.rows.stop
        images, _ = (batches.plain if views == 1 else batches.ten_views)(first, last)
        with self._autocast():
            logits, labels = self.parallel.answer(
                self.as_input(images.flatten(0, -4)), batches.labels[start:stop], piece, views
            )
        return (logits if views == 1 or not len(labels) else mean_over_views(logits, views)), labels

    def _test_piece(self, count: int) -> Piece:
        everything = slice(0, count)
        return Piece(self.parallel.own_rows(everything), everything)

    def as_input(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as the net takes them: see `repro.training.setup.as_input`."""
        return as_input(images, self.recipe.data.channels)

    def _next_epoch(self, done: Epoch) -> None:
        self.place.history.append(done)
        self.place.epoch, self.place.step, self.place.seconds = done.epoch, 0, 0.0
        self.sums = Sums.zero(self.device)

    def snapshot(self) -> Checkpoint:
        """All that an exact continuation needs."""
        self.check_finite()
        tensors = self.parts.collect(self.model, self.optimizer)
        sums = self.sums.over(self.parallel.group)
        tensors |= {"sums/loss": sums.loss, "sums/wrong": sums.wrong}
        place = self.place
        bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if bad := self.parallel.group.from_first(bad):
            raise self.parallel.group.alike(
                NumericsError(
                    f"{self.recipe.name} seed {self.seed}: {bad[0]} is not finite at epoch {place.epoch + 1}, batch "
                    f"{place.step}; the last checkpoint is from before it: lower the learning rate"
                )
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
                "parallel": self.parallel.describe(),
                "earlier": self.earlier,
                "count": sums.count,
                "epoch": place.epoch,
                "step": place.step,
                "seconds": place.seconds,
                "restarts": place.restarts,
                "history": [e.model_dump() for e in place.history],
            },
        )

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint of the same run; raises CheckpointError naming the first thing that differs."""
        own, group = self.snapshot(), self.parallel.group
        # The others have no whole net to compare with.
        group.first_decides(lambda: self.parts.check(found, own, self.optimizer))
        progress = progress_of(found, self.steps_per_epoch, self.recipe.batch_size, len(self.train_batches))
        self.parts.put_back(self.model, self.optimizer, found.tensors)
        self.sums = Sums.zero(self.device)
        if group.is_first:  # what all ranks have counted so far
            self.sums.loss += found.tensors["sums/loss"].to(self.device)
            self.sums.wrong += found.tensors["sums/wrong"].to(self.device)
            self.sums.count = progress.count
        self.earlier = progress.earlier
        if (before := progress.parallel or own.state["parallel"]) != own.state["parallel"]:
            self.earlier.append(before | {"until_epoch": progress.epoch + 1, "until_step": progress.step})
        self.place = Place(progress.epoch, progress.step, progress.seconds, progress.restarts + 1, progress.history)

    def whole_net(self) -> nn.Module:
        """The trained net: on rank 0 all of it, on another rank of a net that is split, that rank's part."""
        tensors = self.parts.collect(self.model, self.optimizer)
        if not self.parallel.is_split or not self.parallel.group.is_first:
            return self.model
        whole = get_model(self.recipe.model, **self.recipe.model_options)
        whole.load_state_dict({k.removeprefix(MODEL): t for k, t in tensors.items() if k.startswith(MODEL)})
        return whole
