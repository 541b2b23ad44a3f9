"""The `repro` command: thin, no logic. Each command says in its --help what it does and shows a call that works."""

import os
import sys

# Large pages for tensors, so that fewer have to be mapped at each step. It must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from pathlib import Path
from typing import Annotated, Literal

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
bench_app = typer.Typer(no_args_is_help=True, help="Measure how fast nets train and sets load.")
app.add_typer(bench_app, name="bench")

RecipeName = Annotated[str, typer.Argument(help="A recipe of the package, or a file that ends in .toml.")]
DataName = Annotated[str, typer.Argument(help="A set, for example mnist. `repro data list` shows all.")]
Precision = Literal["auto", "float32", "bf16"]
Fit = Literal["cut", "squash", "shorter"]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; the best there is when not given.")]
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
    parallel: Annotated[
        str, typer.Option(help="How the processes of torchrun share the work: columns, data, hybrid, tensor, fsdp.")
    ] = "none",
    scheme: Annotated[str, typer.Option(help="Of hybrid: a, b or c, as its paper names them.")] = "a",
    accumulate: Annotated[int, typer.Option(min=1, help="Passes in which a batch goes through, to save memory.")] = 1,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without a word from another process before giving up.")
    ] = 300.0,
    trace: Annotated[Path | None, typer.Option(help="A folder for what each process exchanged, and when.")] = None,
) -> None:
    """Train a recipe to its end and write `records/RECIPE-SEED.json`.

    Ctrl-C or SIGTERM saves the run and ends with exit code 75; the same command with `--resume` goes on and arrives at
    the same bits on the same machine.

    Several processes share one run under torchrun, on one machine or on many; see chapter 10:
    `torchrun --standalone --nproc-per-node 2 -m repro train alexnet-2012 --parallel columns`.

    **Try** `repro train lenet5-modern --set epochs=1 --seed 0`
    """
    from repro.training.command import Sharing, train_seeds

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
        sharing=Sharing(parallel, accumulate, scheme, timeout, trace),
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
    import torch

    from repro.models import get_model, list_models
    from repro.models.registry import model_info

    table = Table("model", "input", "parameters", "source", box=None, pad_edge=False)
    for name in list_models():
        with torch.device("meta"):  # shapes alone: together the weights would take gigabytes
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
    source: Annotated[Path | None, typer.Option(help="imagenet: the folder with your copy of it.")] = None,
    fit: Annotated[
        Fit, typer.Option(help="cut: the centre square; squash: all of it, square; shorter (imagenet): uncut.")
    ] = "cut",
    workers: Annotated[int | None, typer.Option(min=1, help="imagenet: processes; one for each processor.")] = None,
    format_: Annotated[
        Literal["jpeg", "raw"], typer.Option("--format", help="imagenet: of the shards; raw takes nine times the room.")
    ] = "jpeg",
    partial: Annotated[bool, typer.Option("--partial", help="imagenet: take a copy that is not whole.")] = False,
) -> None:
    """Decode all splits of a set into the cache, from `$REPRO_DATA` or a download; imagenet from your own copy.

    The copy of ImageNet may be the official archives, folders train/CLASS/ and val/CLASS/, or parquet files. Stopped,
    the command goes on where it was. As raw pixels the shards take 262 GB, as JPEG files a
    ninth of it if all photographs are like those of the flower set.

    **Try** `repro data prepare mnist` or `repro data prepare imagenet --source DIR`
    """
    from repro.data.command import prepare_all

    prepare_all(name, size, force, source, fit, workers, format_, partial)


@data_app.command("make-imagenet")
def data_make_imagenet(
    folder: Annotated[Path, typer.Argument(help="A folder to be made.")],
    layout: Annotated[Literal["tar", "folder", "parquet"], typer.Option(help="As which ImageNet comes.")] = "tar",
    classes: Annotated[int, typer.Option(min=1)] = 10,
    per_class: Annotated[int, typer.Option(min=1, help="Training pictures of each class.")] = 8,
    val_per_class: Annotated[int, typer.Option(min=1, help="Validation pictures of each class.")] = 2,
    side: Annotated[int, typer.Option(min=16, help="Shorter side of the pictures.")] = 375,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write a small made ImageNet with the oddities of the real one, to try every step without the data.

    **Try** `repro data make-imagenet made`, then `repro data prepare imagenet --source made --partial`
    """
    from repro.data.made_imagenet import make_imagenet

    for name, kind in make_imagenet(folder, layout, classes, per_class, val_per_class, side, seed).items():
        typer.echo(f"{name}: {kind}")


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
    from repro.data.shards import check
    from repro.data.sources import splits_of

    for split in splits_of(name):
        typer.echo(check(name, split))


@bench_app.command("train")
def bench_train(
    net: NetName,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a step, all processes together.")] = 128,
    precision: Annotated[Precision, typer.Option(help="What the forward pass computes in.")] = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure, after three steps to warm up.")] = 10.0,
    data: Annotated[str | None, typer.Option(help="Train on this set; on pictures drawn once when not given.")] = None,
    device: Device = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the net first (pays on GPUs).")] = False,
    parallel: Annotated[
        str | None, typer.Option(help="How the processes of torchrun share the work; data when not given.")
    ] = None,
) -> None:
    """Print images/s of training, the share of time spent waiting for data, and what 90 epochs of ImageNet would take.

    Under torchrun all processes work on each batch and the first one prints.

    **Try** `repro bench train alexnet_2012`
    """
    from repro.training.bench import bench_train

    bench_train(
        net,
        device=device,
        parallel=parallel,
        batch_size=batch_size,
        precision=precision,
        seconds=seconds,
        data=data,
        compiled=compile_,
    )


@bench_app.command("loader")
def bench_loader(
    name: DataName,
    split: Annotated[str, typer.Option(help="The split whose pictures are read.")] = "train",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a batch, all processes together.")] = 128,
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure, after three batches to warm up.")] = 10.0,
    size: Annotated[
        int | None, typer.Option(min=1, help="Bring every picture to this size; from 256 on crop 224.")
    ] = None,
    fit: Annotated[Fit, typer.Option(help="How a picture is brought to that size.")] = "cut",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; one for each core when not given.")
    ] = None,
    device: Device = None,
) -> None:
    """Print images/s of reading, cropping, mirroring and standardising a set, without a net.

    **Try** `repro bench loader cifar10`
    """
    from repro.training.bench import bench_loader

    bench_loader(
        name,
        device=device,
        split=split,
        batch_size=batch_size,
        seconds=seconds,
        size=size,
        fit=fit,
        workers=workers,
    )


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
