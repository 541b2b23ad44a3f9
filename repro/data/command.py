"""What `repro data prepare` does."""

from pathlib import Path

import typer

from repro.data.decode import Fit
from repro.data.shard_files import Encoding, ShardFit
from repro.data.sources import SPECS, prepare, splits_of
from repro.errors import RecipeError


def prepare_all(
    name: str,
    size: int | None,
    force: bool,
    source: Path | None,
    fit: Fit | ShardFit,
    workers: int | None,
    encoding: Encoding,
    partial: bool,
) -> None:
    """Prepare every split of a set and print what came of it; RecipeError for options that do not go together."""
    sharded = name in SPECS and SPECS[name].sharded
    if sharded and source is None:
        raise RecipeError(f"{name}: say where your copy of it is: --source DIR")
    if not sharded and (source is not None or workers is not None or encoding != "jpeg" or partial):
        raise RecipeError(f"{name}: --source, --workers, --format and --partial are for sets too large for memory")
    if fit == ("squash" if sharded else "shorter"):
        raise RecipeError(f"{name}: --fit {fit} is not for this set")
    if source is not None:
        from repro.data.imagenet import prepare_imagenet

        prepared = prepare_imagenet(
            source,
            fit="shorter" if fit == "shorter" else "cut",
            size=size or SPECS[name].size or 256,
            encoding=encoding,
            workers=workers,
            partial=partial,
            force=force,
        )
        for shards in prepared:
            typer.echo("\n".join([str(shards), *(f"  {line}" for line in shards.manifest.report)]))
        return
    for split in splits_of(name):
        typer.echo(prepare(name, split, size=size, fit="squash" if fit == "squash" else "cut", force=force))
