"""The groups of the `repro` command, `data …`, `bench …`, `weights …` and `claims …`, and how each shows a table."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from repro.terminal import PlainConsole

WIDEST = 1000  # columns of a table

data_app = typer.Typer(no_args_is_help=True, help="Prepare, list and check sets of pictures.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure how fast nets train and sets load.")
weights_app = typer.Typer(no_args_is_help=True, help="The small trained nets that come with the book.")
claims_app = typer.Typer(help="The ledger: what the sources say, and whether it holds.")

DataName = Annotated[str, typer.Argument(help="A set, for example mnist. `repro data list` shows all.")]
Precision = Literal["auto", "float32", "bf16"]
Fit = Literal["cut", "squash", "shorter"]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; the best there is when not given.")]
NetName = Annotated[str, typer.Argument(help="A net of `repro models`, with options if need be: NAME:KEY=VALUE,….")]


def show(table: Table) -> None:
    """Print a table at its full width: a narrow terminal breaks its lines, and a pipe gets them whole."""
    console = PlainConsole()
    console.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table)


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
    show(table)


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


@weights_app.command("list")
def weights_list() -> None:
    """List the nets that chapters 16 to 20 look into: what is kept of them, and their test errors."""
    from repro import weights

    table = Table("weights", "seed", "layers", "head", "bytes", "test error", "of the run", box=None, pad_edge=False)
    for name in weights.names():
        m = weights.manifest(name)
        error = "–" if m.head_error is None else f"{m.head_error:.2%}"
        layers = "all" if m.layers is None else f"first {m.layers}"
        table.add_row(name, str(m.seed), layers, m.head, f"{m.bytes:,}", error, f"{m.run['test_error']:.2%}")
    show(table)


@weights_app.command("make")
def weights_make(
    recipe: Annotated[str, typer.Argument(help="One of `repro weights list`.")],
    seed: Annotated[int, typer.Option(min=0, help="The seed of the run.")] = 0,
    run_dir: Annotated[Path, typer.Option(help="Where the runs' checkpoints are.")] = Path("runs"),
    records_dir: Annotated[Path, typer.Option(help="Where the records are; the weights go below.")] = Path("records"),
) -> None:
    """Cut the convolutions out of a finished run, round them to float16, and fit a linear head to them.

    **Try** `repro train lenet5-modern --seed 0`, then `repro weights make lenet5-modern`
    """
    from repro.weights_maker import make

    path, m = make(recipe, seed, run_dir, records_dir)
    error = "no head" if m.head_error is None else f"test error {m.head_error:.2%}"
    typer.echo(f"{path}: {m.bytes:,} bytes, {error} (the run: {m.run['test_error']:.2%})")


@claims_app.callback(invoke_without_command=True)
def claims_list(
    context: typer.Context,
    source: Annotated[str | None, typer.Option(help="A document, by its key: krizhevsky2012.")] = None,
    chapter: Annotated[str | None, typer.Option(help="A chapter: 12_vgg.")] = None,
    verdict: Annotated[str | None, typer.Option(help="One verdict: holds, does not hold, not tested …")] = None,
) -> None:
    """Print the claims with their verdicts, derived now.

    **Try** `repro claims --source cifar10study --verdict "does not hold"`
    """
    if context.invoked_subcommand:
        return
    from repro.claims.command import counts, verdicts
    from repro.claims.ledger import claims

    said = {claim.id: claim for claim in claims()}
    table = Table("claim", "where", "statement", "verdict", "found", box=None, pad_edge=False)
    found = verdicts(source, chapter, verdict)
    for v in found:
        claim = said[v.claim]
        table.add_row(v.claim, claim.where, claim.statement, v.verdict, v.detail)
    show(table)
    typer.echo(counts(found))


@claims_app.command("check")
def claims_check() -> None:
    """Derive every verdict anew; exit 1 naming the first that no longer follows."""
    from repro.claims.command import check, counts

    typer.echo(counts(check()))


@claims_app.command("update")
def claims_update() -> None:
    """Derive every verdict and store it below the records: `claims/verdicts.json`."""
    from repro.claims.command import update

    typer.echo(update())
