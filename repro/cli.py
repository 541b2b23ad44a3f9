"""The `repro` command: thin, no logic. Each command says in its --help what it does and shows a call that works."""

import os

# Large pages for tensors, so that fewer have to be mapped at each step. It must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from repro.cli_groups import Device, NetName, bench_app, claims_app, data_app, show, weights_app
from repro.ending import told
from repro.errors import RecipeError, ResourceError
from repro.terminal import PlainConsole, guard

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train the nets of the book, prepare their data, and read what the runs measured.\n\n"
    "Start with `repro doctor`, then `repro train lenet5-modern`. With `--debug` an error shows where it was raised.",
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(weights_app, name="weights")
app.add_typer(claims_app, name="claims")

RecipeName = Annotated[str, typer.Argument(help="A recipe of the package, or a file that ends in .toml.")]


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
    show(table)


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
    show(table)


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


@app.command("receptive-field")
def receptive_field(
    model: Annotated[str, typer.Argument(help="A net of `repro models`, torchvision:NAME, or MODULE:FUNCTION.")],
    input_: Annotated[
        str | None, typer.Option("--input", help="Pixels of the image: 224, 224,320 or 3,224,224.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Tell of this layer: a unit of it, the middle one.")] = None,
    unit: Annotated[str | None, typer.Option(help="Row and column of the layer's unit: R,C.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the explorer of the net.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture of what the unit reads.")] = None,
) -> None:
    """Print the receptive field of every layer of a net, or what one unit reads of the image and of each layer.

    MODULE:FUNCTION is your own: a file here, and a function in it that takes nothing and returns a `torch.nn.Module`.

    **Try** `repro receptive-field torchvision:resnet50` or `repro receptive-field alexnet_2012 --layer features.pool5`
    """
    from repro.receptive_field.command import report

    typer.echo(report(model, input_, layer, unit, csv, json, html, svg))


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
    show(table)


@app.command()
def run(
    pending_: Annotated[bool, typer.Option("--pending", help="Run them; without it they are listed.")] = False,
    budget: Annotated[str | None, typer.Option(help="Stop after this time, and save: `25m`, `2h`.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Where checkpoints go, one folder per recipe and seed.")] = Path("runs"),
    records_dir: Annotated[Path, typer.Option(help="Where the records are.")] = Path("records"),
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; resume with the same number.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the net first (pays on GPUs).")] = False,
) -> None:
    """Run what the ledger's measured claims still wait for, the most telling first; stopped, it goes on another time.

    Afterwards `repro claims update` derives the verdicts anew.

    **Try** `repro run`, then `repro run --pending --budget 25m`
    """
    from repro.claims.pending import pending, run_pending, seconds_of, trainer

    if not pending_:
        table = Table("run", "decides a verdict", "hours", "claims", box=None, pad_edge=False)
        for p in pending(records_dir):
            hours = "unknown" if p.seconds is None else f"{p.seconds / 3600:.2f}"
            table.add_row(p.name, "yes" if p.decides else "", hours, ", ".join(p.claims))
        show(table)
        return

    train_one = trainer(run_dir, records_dir, device, threads, compile_)
    run_pending(train_one, run_dir, records_dir, seconds_of(budget) if budget else None)


@app.command()
def evaluate(
    recipe: RecipeName,
    set_: Annotated[list[str], typer.Option("--set", help="What the run was changed by, as it was trained.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="The seed of the run.")] = 0,
    run_dir: Annotated[Path, typer.Option(help="Where the runs' checkpoints are.")] = Path("runs"),
    records_dir: Annotated[Path, typer.Option(help="Where the records are; the table goes below.")] = Path("records"),
    views: Annotated[
        str, typer.Option(help="Of one, ten, dense, finer, scales, resized, and the slow crops and both.")
    ] = "one,ten,dense,finer,scales,resized",
    scales: Annotated[str, typer.Option(help="Lengths of the shorter side, `224,256,288`; chosen by the crop.")] = "",
    device: Device = None,
) -> None:
    """Measure a trained net under one crop, ten crops, dense maps and several scales.

    Writes `records/evaluations/RECIPE-SEED.json`. `crops` are 50 of each picture at each scale, `both` averages them
    with the dense maps, as the VGG paper does.

    **Try** `repro evaluate flowers-report --views one,ten,dense`
    """
    from repro.evaluation import evaluate_run
    from repro.training import load_recipe

    chosen, table = load_recipe(recipe, set_), Table("view", "error", "wrong", "n", "seconds", box=None, pad_edge=False)
    path = evaluate_run(
        chosen,
        seed,
        run_dir,
        records_dir,
        views.split(","),
        _numbers("--scales", scales),
        device,
        lambda r: table.add_row(r.name, f"{r.error:.2%}", str(r.wrong), str(r.n), f"{r.seconds:.1f}"),
    )
    show(table)
    typer.echo(path)


@app.command()
def predict(
    recipe: RecipeName,
    set_: Annotated[list[str], typer.Option("--set", help="What the run was changed by, as it was trained.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="The seed of the run.")] = 0,
    run_dir: Annotated[Path, typer.Option(help="Where the runs' checkpoints are.")] = Path("runs"),
    records_dir: Annotated[Path, typer.Option(help="Where the records are; the file goes below.")] = Path("records"),
    device: Device = None,
) -> None:
    """Write what a trained net says of each test picture, and how surely.

    Writes `records/predictions/RECIPE-SEED.json`: enough for a confusion matrix and the surest mistakes.

    **Try** `repro predict lenet5-modern --seed 0`
    """
    from repro.predictions import predict_run
    from repro.training import load_recipe

    typer.echo(predict_run(load_recipe(recipe, set_), seed, run_dir, records_dir, device))


@app.command()
def transfer(
    net: Annotated[str, typer.Argument(help="A trained net of the book: flowers-report, alexnet-cifar10-5 …")],
    to: Annotated[str, typer.Option(help="A set, or a folder with one folder of pictures for each class.")],
    weights: Annotated[
        Literal["book", "imagenet"], typer.Option(help="The book's own, or torchvision's for the same plan.")
    ] = "book",
    n: Annotated[str, typer.Option("--n", help="Training pictures per class: `1,6,60`.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Independent draws of them.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and of the random net.")] = 0,
    test: Annotated[int | None, typer.Option(min=1, help="Test pictures per class; all, or 20 of a folder's.")] = None,
    layers: Annotated[str, typer.Option(help="Names with commas between them; all stages when not given.")] = "",
    whole: Annotated[bool, typer.Option("--whole", help="Pixels of all training pictures as well.")] = False,
    records_dir: Annotated[Path, typer.Option(help="Where the records are; the study goes below.")] = Path("records"),
    device: Device = None,
) -> None:
    """Train linear classifiers for another set on what a net's layers give, against a random net and raw pixels.

    Writes `records/transfer/NET-to-SET.json`. The experiment of Zeiler & Fergus (2014) on Caltech-256 is
    `repro transfer flowers-report --weights imagenet --to 256_ObjectCategories --n 1,2,6,15,30,60`.

    **Try** `repro transfer lenet5-modern --to digits --n 1,5,20`
    """
    from repro.transfer.command import transfer as run

    found, path = run(
        net,
        to,
        weights,
        _numbers("--n", n),
        draws,
        seed,
        test,
        [name for name in layers.split(",") if name],
        whole,
        records_dir,
        device,
    )
    table = Table("features", "layer", *(f"n = {n}" for n in found.numbers), box=None, pad_edge=False)
    for row in found.rows():
        table.add_row(*row)
    show(table)
    typer.echo(path)


@app.command()
def doctor() -> None:
    """Print versions, devices and the data found, and the exact fix for what does not fit together."""
    from repro.doctor import report

    healthy = report(PlainConsole())
    raise typer.Exit(0 if healthy else ResourceError.exit_code)


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as e:
        raise RecipeError(f"{option} {text}: expected whole numbers with commas, as 224,256") from e


def main() -> None:
    """Run the command; one line on stderr and the error's own exit code when something is wrong."""

    def command() -> None:
        guard()
        app(prog_name="repro")

    told(command)
