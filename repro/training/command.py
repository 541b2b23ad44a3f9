"""What `repro train` does around the loop: seeds in turn, a folder for each, progress, the record in its place."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from repro.errors import CheckpointError, RecipeError
from repro.models.registry import model_info
from repro.records import Epoch, Record, file_of, read, run_name, write
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
    save_every_s: float,
) -> None:
    """Train a recipe with each seed in turn; prints a line per epoch to stderr and each record's path to stdout."""
    recipe = load_recipe(name, overrides)
    model_info(recipe.model)
    if threads is not None:
        torch.set_num_threads(threads)
    for seed in seeds or recipe.seeds:
        folder = run_dir / run_name(recipe.name, seed)
        record = _finished(folder, recipe, resume)
        if record is None:
            print(f"{recipe.name} seed {seed}: {recipe.title}", file=sys.stderr)
            record, _ = train(
                recipe,
                seed,
                run_dir=folder,
                resume=resume,
                device=device,
                compiled=compiled,
                on_epoch=lambda e, recipe=recipe: print(epoch_line(e, recipe), file=sys.stderr),  # type: ignore[misc]
                save_every_s=save_every_s,
            )
        path = records_dir / file_of(recipe.name, seed)
        write(record, path)
        print(f"{path}: test error {record.last.test_error:.2%} after {len(record.epochs)} epochs")


def epoch_line(e: Epoch, recipe: Recipe) -> str:
    """One epoch as a line of a log."""
    top5 = "" if e.test_top5_error is None else f" top-5 {e.test_top5_error:.2%}"
    return (
        f"epoch {e.epoch:3d}/{recipe.epochs}  {e.seconds:6.1f} s  rate {e.learning_rate:.2e}  "
        f"train loss {e.train_loss:.4f} error {e.train_error:.2%}  "
        f"test loss {e.test_loss:.4f} error {e.test_error:.2%}{top5}"
    )


def _finished(folder: Path, recipe: Recipe, resume: bool) -> Record | None:
    """The record of a run that is complete already; None when there is something to do in its folder.

    Raises RecipeError rather than overwrite an unfinished run, or take one of another recipe for this one's.
    """
    try:
        found = read(folder / "record.json") if (folder / "record.json").exists() else None
    except CheckpointError as e:  # the checkpoints hold all that was in it
        print(f"repro: {e}; it is written anew", file=sys.stderr)
        found = None
    if found and found.status == "complete":
        if found.recipe_digest != recipe.digest():
            raise RecipeError(f"{folder}: holds a run of {recipe.name} as it was before; remove it to run anew")
        print(f"{folder}: already complete; remove the folder to run it again", file=sys.stderr)
        return found
    if any(folder.glob("step-*.json")) and not resume:
        raise RecipeError(f"{folder}: holds an unfinished run; go on with --resume, or remove the folder to start anew")
    return None
