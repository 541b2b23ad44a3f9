"""A run's folder: its checkpoints and its record, whatever way the run ends."""

import contextlib
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro import records
from repro.data import ImageSet
from repro.data.shards import ShardSet
from repro.errors import CheckpointError, Preempted, RecipeError, ResourceError
from repro.records import Record
from repro.training import checkpoint
from repro.training.device import describe
from repro.training.lock import Hold, locked
from repro.training.parallel import OneProcess
from repro.training.recipe import Recipe
from repro.training.signals import StopRequest
from repro.training.state import check_same_run

if TYPE_CHECKING:
    from repro.training.loop import Trainer

SAVE_EVERY_S = 60.0  # inside an epoch; at its end always
ASK_EVERY = 50  # steps between two questions to the other ranks whether to save or stop, on GPUs, whose steps are short


def _command() -> str:
    """The call of the `repro` command that runs this, or nothing when it is called from elsewhere."""
    program = Path(sys.argv[0])
    ours = program.stem == "repro" or (program.stem, program.parent.name) == ("__main__", "repro")
    return _readable(shlex.join(["repro", *sys.argv[1:]])) if ours else ""


def _readable(text: str) -> str:
    """As JSON can hold it: the bytes of a path that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _selection(recipe: Recipe) -> str:
    """Which epoch is the result, and what part the test set had in it."""
    end, influence = "the last epoch of a fixed schedule", "the test set chose nothing"
    if recipe.schedule.name == "plateau":
        end, influence = "the last epoch", "the learning rate followed the test loss"
    if recipe.stop_at_train_error is not None:
        end = f"the first epoch with a training error of at most {recipe.stop_at_train_error:.2%}, or the last"
    return f"{end}; {influence}"


def _say_that_it_begins(folder: Path) -> None:
    """Nothing starts from the first step without a word; raises CheckpointError where there was a checkpoint before."""
    record = None
    with contextlib.suppress(CheckpointError):
        record = records.read(folder / "record.json")
    if record and (record.epochs or record.status == "preempted"):
        raise CheckpointError(
            f"{folder}: its record tells of {len(record.epochs)} epochs and more, and no checkpoint is there; bring "
            "them back, or remove the folder to start anew"
        )
    print(f"{folder}: no checkpoint is there; starting at the first step", file=sys.stderr)


class Keeper:
    """Keeps a run's checkpoints and record in its folder; without a folder it only makes the record."""

    def __init__(self, trainer: "Trainer", run_dir: Path | None, save_every_s: float) -> None:
        self.trainer, self.folder, self.save_every_s = trainer, run_dir, save_every_s
        self.saved_at = time.perf_counter()
        self.hold: Hold | None = None
        # The state of the code is that of the start: it may change under a long run.
        self.started, self.git = datetime.now(UTC).isoformat(timespec="seconds"), records.git_state()

    def open(self, held: contextlib.ExitStack, resume: bool) -> None:
        """Before the first step: take the folder until `held` closes, see that there is room in it, and go on from what
        it holds if that is asked for.

        Raises ResourceError where it cannot be used, RecipeError rather than start anew over a run's checkpoints, and
        CheckpointError where they are not this run's.
        """
        folder, group = self.folder, self.trainer.parallel.group
        if folder is None:
            return
        group.first_decides(lambda: self._take(folder, held, resume))
        if resume:
            self._resume(folder)
        group.first_decides(self._begin)

    def _take(self, folder: Path, held: contextlib.ExitStack, resume: bool) -> None:
        self.hold = held.enter_context(locked(folder))
        if checkpoint.is_any(folder) and not resume:
            raise RecipeError(f"{folder}: holds a run already; go on with --resume, or remove the folder to start anew")
        one = self.trainer.parts.most_bytes(self.trainer.optimizer) + checkpoint.TEXT
        needed = (checkpoint.KEPT + 1) * one - checkpoint.size_of_all(folder)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ResourceError(
                f"{folder}: {free:,} bytes are free on its disk, {needed:,} are needed for {checkpoint.KEPT + 1} "
                f"checkpoints of {one:,} at most; free space, or name a folder on another disk by --run-dir"
            )

    def _begin(self) -> None:
        """Write the record, which says from now on that the run was begun, and shows that the folder takes files."""
        self.write_record("running")

    def _resume(self, folder: Path) -> None:
        own, group = self.trainer.snapshot(), self.trainer.parallel.group
        most = self.trainer.parts.most_bytes(self.trainer.optimizer)
        # Every rank gets what the first one reads: the others need not see its disk.
        found = group.first_decides(
            lambda: checkpoint.load_latest(folder, lambda state: check_same_run(state, own.state), most)
        )
        if found is None:
            group.first_decides(lambda: _say_that_it_begins(folder))
        else:
            self.trainer.restore(found)
            self.started = found.state["started"]
            if found.state["git"] != self.git:  # two states of the code made this run: it is neither's
                self.git = {"commit": found.state["git"].get("commit"), "dirty": True, "resumed_at": self.git["commit"]}

    def after_step(self, stop: StopRequest) -> None:
        trainer, group = self.trainer, self.trainer.parallel.group
        if group.world_size > 1 and group.device.type == "cuda" and trainer.place.step % ASK_EVERY:
            return
        due = time.perf_counter() - self.saved_at > self.save_every_s
        asked, due = group.any(stop.requested is not None, due)
        if asked and self.folder:
            place = trainer.place
            rank, name = next((r, name) for r, name in enumerate(group.from_all(stop.requested)) if name)
            message = (
                f"{trainer.recipe.name} seed {trainer.seed}: stopped by {name}{f' to rank {rank}' if rank else ''} at "
                f"epoch {place.epoch + 1}, batch {place.step} of {trainer.steps_per_epoch}; saved in {self.folder}, "
                "continue with --resume"
            )
            self.save("preempted", message)
            raise group.alike(Preempted(message))
        if due:
            self.save("running")

    def save(self, status: records.Status, message: str = "") -> None:
        if self.folder is None:
            return
        place, snapshot = self.trainer.place, self.trainer.snapshot()
        snapshot.state.update(started=self.started, git=self.git)
        if self.trainer.parallel.group.is_first:
            if self.hold:
                self.hold.renew()
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
            message=_readable(message),
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
