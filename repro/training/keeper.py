"""A run's folder: its checkpoints and its record, whatever way the run ends."""

import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro import records
from repro.data import ImageSet
from repro.data.shards import ShardSet
from repro.errors import Preempted
from repro.records import Record
from repro.training import checkpoint
from repro.training.device import describe
from repro.training.parallel import OneProcess
from repro.training.recipe import Recipe
from repro.training.signals import StopRequest

if TYPE_CHECKING:
    from repro.training.loop import Trainer

SAVE_EVERY_S = 60.0  # inside an epoch; at its end always
ASK_EVERY = 50  # steps between two questions to the other ranks whether to save or stop, on GPUs, whose steps are short


def _command() -> str:
    """The call of the `repro` command that runs this, or nothing when it is called from elsewhere."""
    program = Path(sys.argv[0])
    ours = program.stem == "repro" or (program.stem, program.parent.name) == ("__main__", "repro")
    return shlex.join(["repro", *sys.argv[1:]]) if ours else ""


def _selection(recipe: Recipe) -> str:
    """Which epoch is the result, and what part the test set had in it."""
    end, influence = "the last epoch of a fixed schedule", "the test set chose nothing"
    if recipe.schedule.name == "plateau":
        end, influence = "the last epoch", "the learning rate followed the test loss"
    if recipe.stop_at_train_error is not None:
        end = f"the first epoch with a training error of at most {recipe.stop_at_train_error:.2%}, or the last"
    return f"{end}; {influence}"


class Keeper:
    """Keeps a run's checkpoints and record in its folder; without a folder it only makes the record."""

    def __init__(self, trainer: "Trainer", run_dir: Path | None, save_every_s: float) -> None:
        self.trainer, self.folder, self.save_every_s = trainer, run_dir, save_every_s
        self.saved_at = time.perf_counter()
        # The state of the code is that of the start: it may change under a long run.
        self.started, self.git = datetime.now(UTC).isoformat(timespec="seconds"), records.git_state()

    def resume(self) -> None:
        group = self.trainer.parallel.group
        # Every rank gets what the first one reads: the others need not see its disk.
        folder = self.folder
        found = group.first_decides(lambda: checkpoint.load_latest(folder)) if folder else None
        if found:
            self.trainer.restore(found)
            self.started = found.state["started"]
            if found.state["git"] != self.git:  # two states of the code made this run: it is neither's
                self.git = {"commit": found.state["git"]["commit"], "dirty": True, "resumed_at": self.git["commit"]}

    def after_step(self, stop: StopRequest) -> None:
        trainer, group = self.trainer, self.trainer.parallel.group
        if group.world_size > 1 and group.device.type == "cuda" and trainer.place.step % ASK_EVERY:
            return
        due = time.perf_counter() - self.saved_at > self.save_every_s
        asked, due = group.any(stop.requested is not None, due)
        if asked and self.folder:
            place = trainer.place
            message = (
                f"{trainer.recipe.name} seed {trainer.seed}: stopped by {stop.requested or 'another rank'} at epoch "
                f"{place.epoch + 1}, batch {place.step} of {trainer.steps_per_epoch}; saved in {self.folder}, "
                "continue with --resume"
            )
            self.save("preempted", message)
            raise Preempted(message)
        if due:
            self.save("running")

    def save(self, status: records.Status, message: str = "") -> None:
        if self.folder is None:
            return
        place, snapshot = self.trainer.place, self.trainer.snapshot()
        snapshot.state.update(started=self.started, git=self.git)
        if self.trainer.parallel.group.is_first:
            checkpoint.save(self.folder, place.epoch * self.trainer.steps_per_epoch + place.step, snapshot)
        self.write_record(status, message)
        self.saved_at = time.perf_counter()

    def write_record(self, status: records.Status, message: str = "") -> Record:
        trainer, recipe = self.trainer, self.trainer.recipe
        record = Record(
            recipe=recipe.name,
            seed=trainer.seed,
            status=status,
            recipe_digest=recipe.digest(),
            recipe_content=recipe.model_dump(mode="json"),
            command=_command(),
            started=self.started,
            git=self.git,
            versions=records.environment(),
            device=describe(trainer.device) | {"precision": trainer.precision} | self._ranks(),
            data=self._data(),
            parameters=trainer.parameters,
            selection=_selection(recipe),
            epochs=trainer.place.history,
            restarts=trainer.place.restarts,
            message=message,
        )
        if self.folder is not None and trainer.parallel.group.is_first:
            records.write(record, self.folder / "record.json")
        return record

    def _ranks(self) -> dict[str, Any]:
        """How the run was shared among processes, if it was, and in what other ways before it was resumed."""
        parallel = self.trainer.parallel
        ways = [*self.trainer.earlier, parallel.describe()]
        if ways == [OneProcess(parallel.group).describe()]:
            return {}
        return {"world_size": parallel.group.world_size, "parallel": ways}

    def _data(self) -> dict[str, Any]:
        def split(images: ImageSet | ShardSet) -> dict[str, Any]:
            return {
                "split": images.split,
                "count": len(images),
                "digest": images.digest,
                "source": images.source,
                "conversions": images.conversions,
                "skipped": list(images.skipped),
            }

        trainer = self.trainer
        return {
            "name": trainer.train_set.name,
            "train": split(trainer.train_set),
            "test": split(trainer.test_set),
            "mean": list(trainer.mean),
            "std": list(trainer.std),
        }
