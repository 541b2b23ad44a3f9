"""What `repro train` does around the loop: seeds in turn, a folder for each, progress, the record in its place."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from repro.errors import RecipeError, ResourceError
from repro.models.registry import model_info
from repro.records import Epoch, file_of, read
from repro.training.checkpoint import write_atomic
from repro.training.loop import train
from repro.training.recipe import Recipe, load_recipe


def train_seeds(
    name: str,
    *,
    overrides: Sequence[str],
    seeds: Sequence[int],
    resume: bool,
    run_dir: Path,
    records_dir: Path,
    device: str | None,
    threads: int | None,
    compiled: bool,
) -> None:
    """Train a recipe with each seed in turn; prints a line per epoch to stderr and each record's path to stdout."""
    recipe = load_recipe(name, overrides)
    model_info(recipe.model)
    if threads is not None:
        torch.set_num_threads(threads)
    for seed in seeds or recipe.seeds:
        folder = run_dir / f"{recipe.name}-{seed}"
        if not _needs_running(folder, resume):
            continue
        print(f"{recipe.name} seed {seed}: {recipe.title}", file=sys.stderr)
        record, _ = train(
            recipe,
            seed,
            run_dir=folder,
            resume=resume,
            device=device,
            compiled=compiled,
            on_epoch=lambda e, recipe=recipe: print(epoch_line(e, recipe), file=sys.stderr),  # type: ignore[misc]
        )
        path = records_dir / file_of(recipe.name, seed)
        try:
            records_dir.mkdir(parents=True, exist_ok=True)
            write_atomic(path, record.model_dump_json(indent=1).encode())
        except OSError as e:
            raise ResourceError(
                f"{path}: the record cannot be written ({e.strerror}); it also stands in {folder / 'record.json'}"
            ) from e
        print(f"{path}: test error {record.last.test_error:.2%} after {len(record.epochs)} epochs")


def epoch_line(e: Epoch, recipe: Recipe) -> str:
    """One epoch as a line of a log."""
    return (
        f"epoch {e.epoch:3d}/{recipe.epochs}  {e.seconds:6.1f} s  rate {e.learning_rate:.2e}  "
        f"train loss {e.train_loss:.4f} error {e.train_error:.2%}  test loss {e.test_loss:.4f} error {e.test_error:.2%}"
    )


def _needs_running(folder: Path, resume: bool) -> bool:
    """Whether there is something to do in a run's folder; raises RecipeError rather than overwrite what is there."""
    found = read(folder / "record.json") if (folder / "record.json").exists() else None
    if found and found.status == "complete":
        print(f"{folder}: already complete; remove the folder to run it again", file=sys.stderr)
        return False
    if any(folder.glob("step-*.json")) and not resume:
        raise RecipeError(f"{folder}: holds an unfinished run; go on with --resume, or remove the folder to start anew")
    return True
