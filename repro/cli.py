"""The `repro` command: thin, no logic. Each command says in its --help what it does and shows a call that works."""

import os
import sys

# Large pages for tensors, so that fewer have to be mapped at each step. It must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from repro.errors import ReproError, ResourceError

WIDEST = 1000  # columns of a table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train the nets of the book, prepare their data, and read what the runs measured.\n\n"
    "Start with `repro doctor`, then `repro train lenet5-modern`. With `--debug` an error shows where it was raised.",
)
data_app = typer.Typer(no_args_is_help=True, help="Prepare, list and check sets of pictures.")
app.add_typer(data_app, name="data")

RecipeName = Annotated[str, typer.Argument(help="A recipe of the package, or a file that ends in .toml.")]
DataName = Annotated[str, typer.Argument(help="A set, for example mnist. `repro data list` shows all.")]
NetName = Annotated[str, typer.Argument(help="A net of `repro models`, with options if need be: NAME:KEY=VALUE,….")]


@app.command()
def train(
    recipe: RecipeName,
    set_: Annotated[list[str], typer.Option("--set", help="Change one key: `--set epochs=2`. Repeatable.")] = [],  # noqa: B006
    seed: Annotated[
        list[int], typer.Option(min=0, help="Seeds to run, one after the other; the recipe's when not given.")
    ] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was saved.")] = False,
    run_dir: Annotated[Path, typer.Option(help="Where checkpoints go, one folder per recipe and seed.")] = Path("runs"),
    records_dir: Annotated[Path, typer.Option(help="Where the record of a finished run goes.")] = Path("records"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; the best there is when not given.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; resume with the same number.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the net first (pays on GPUs).")] = False,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints inside an epoch; at its end always.")
    ] = 60.0,
) -> None:
    """Train a recipe to its end and write `records/RECIPE-SEED.json`.

    Ctrl-C or SIGTERM saves the run and ends with exit code 75; the same command with `--resume` goes on and arrives at
    the same bits on the same machine.

    **Try** `repro train lenet5-modern --set epochs=1 --seed 0`
    """
    from repro.training.command import train_seeds

    train_seeds(
        recipe,
        overrides=set_,
        seeds=seed,
        resume=resume,
        run_dir=run_dir,
        records_dir=records_dir,
        device=device,
        threads=threads,
        compiled=compile_,
        save_every_s=save_every,
    )


@app.command()
def recipes() -> None:
    """List the recipes of the package."""
    from repro.training import list_recipes, load_recipe

    table = Table("recipe", "model", "data", "epochs", "what it is", box=None, pad_edge=False)
    for name in list_recipes():
        r = load_recipe(name)
        table.add_row(name, r.model, r.data.name, str(r.epochs), r.title)
    _show(table)


@app.command()
def models() -> None:
    """List the nets with their parameters and sources."""
    from repro.models import get_model, list_models
    from repro.models.registry import model_info

    table = Table("model", "input", "parameters", "source", box=None, pad_edge=False)
    for name in list_models():
        count = sum(p.numel() for p in get_model(name).parameters())
        info = model_info(name)
        table.add_row(name, "×".join(map(str, info.input_size)), f"{count:,}", info.source)
    _show(table)


@app.command()
def compare(
    a: NetName,
    b: NetName,
    all_: Annotated[bool, typer.Option("--all", help="Show what is equal in both as well.")] = False,
) -> None:
    """Print what differs between two nets, as their layers and starting weights show it.

    Layers are set side by side by kind and number: the second convolution with the second. Constants of response
    normalisation are in the paper's convention, fields are in pixels of the image, weights are drawn from seed 0.

    **Try** `repro compare alexnet_2012 alexnet_2012:lrn=none,dropout=inverted`
    """
    from repro.models.compare import compare

    typer.echo(compare(a, b, show_equal=all_))


@app.command()
def records(
    recipe: Annotated[str | None, typer.Argument(help="One recipe only.")] = None,
    records_dir: Annotated[Path | None, typer.Option(help="Another folder of records.")] = None,
) -> None:
    """Show what finished runs measured: the last epoch, and the best one, which was chosen by looking."""
    from repro.records import load_all

    columns = (
        "recipe",
        "seed",
        "status",
        "epochs",
        "test error (last)",
        "best (peeked)",
        "seconds",
        "device",
        "commit",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for r in load_all(records_dir):
        if recipe in (None, r.recipe) and r.epochs:
            commit = str(r.git.get("commit") or "unknown")[:8] + ("" if r.counts else " (does not count)")
            errors = f"{r.last.test_error:.2%}", f"{r.best_peeked.test_error:.2%}"
            table.add_row(
                r.recipe,
                str(r.seed),
                r.status,
                str(len(r.epochs)),
                *errors,
                f"{r.seconds:.0f}",
                r.device["name"],
                commit,
            )
    _show(table)


@app.command()
def doctor() -> None:
    """Print versions, devices and the data found, and the exact fix for what does not fit together."""
    from repro.doctor import report

    healthy = report(Console())
    raise typer.Exit(0 if healthy else ResourceError.exit_code)


@data_app.command("prepare")
def data_prepare(
    name: DataName,
    size: Annotated[int | None, typer.Option(min=1, help="Bring every picture to this square.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Decode again even if it is in the cache.")] = False,
) -> None:
    """Decode all splits of a set into the cache, from `$REPRO_DATA` or a download.

    **Try** `repro data prepare mnist`
    """
    from repro.data.sources import prepare, splits_of

    for split in splits_of(name):
        typer.echo(prepare(name, split, size=size, force=force))


@data_app.command("list")
def data_list() -> None:
    """List the sets `load` knows and where each was found."""
    from repro.data.sources import SPECS, list_sets, where

    table = Table("set", "pictures", "found in", "what it is", box=None, pad_edge=False)
    for name in list_sets():
        spec = SPECS.get(name)
        counts = " + ".join(f"{n:,}" for n in spec.splits.values()) if spec else ""
        table.add_row(name, counts, where(name), spec.title if spec else "your own, under REPRO_DATA")
    _show(table)


@data_app.command("check")
def data_check(name: DataName) -> None:
    """Verify a set: files, contents, and whether it is the published one, by its digest."""
    from repro.data.sources import check, splits_of

    for split in splits_of(name):
        typer.echo(check(name, split))


def _show(table: Table) -> None:
    """Print a table at its full width: a narrow terminal breaks its lines, and a pipe gets them whole."""
    console = Console()
    console.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table)


def main() -> None:
    """Run the command; one line on stderr and the error's own exit code when something is wrong."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app(prog_name="repro")
    except ReproError as e:
        if debug:
            raise
        print(f"repro: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
