"""What `repro receptive-field` does: find the model, print its table or one unit's field, write the files asked for."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repro.errors import RecipeError, UnknownName, nearest
from repro.receptive_field.export import write
from repro.receptive_field.table import Box, FieldTable, receptive_field


def report(
    model_name: str,
    input_size: str | None = None,
    layer: str | None = None,
    unit: str | None = None,
    csv: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    svg: Path | None = None,
) -> str:
    """The text to print: the table of a net, or what one unit of a layer reads (the middle one if none is named).

    Raises UnknownName for a net or layer that is not there, RecipeError for numbers that are none.
    """
    if layer is None and (unit or svg):
        raise RecipeError(f"{'--unit' if unit else '--svg'} needs the --layer whose unit is meant")
    model, own_size = find_model(model_name)
    size = numbers("--input", input_size, (1, 2, 3)) if input_size else own_size
    table = receptive_field(model, size[0] if size and len(size) == 1 else size)
    place = _place(table, layer, unit) if layer else (0, 0)
    if csv:
        table.to_csv(csv)
    if json:
        table.to_json(json)
    if html:
        write(html, _page(model_name, model, table.input_size))
    if layer is None:
        return str(table)
    if svg:
        from repro.visualization.field_figure import unit_svg

        write(svg, unit_svg(table, layer, *place))
    return unit_text(table, layer, *place)


def find_model(text: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The net that a text names, and its input size where that is known.

    One of `repro models`, with options if need be, `torchvision:NAME`, or `MODULE:FUNCTION` of the caller's own, found
    from the current folder; the function takes nothing and returns the net. Nets of the package and of torchvision are
    built without weights, which no receptive field depends on.
    """
    from repro.models import get_model, list_models, model_info
    from repro.models.compare import parse_net

    source, colon, name = text.partition(":")
    if source in list_models() or not colon:
        own, options = parse_net(text)
        with torch.device("meta"):
            return get_model(own, **options), None if "input_size" in options else model_info(own).input_size
    if source == "torchvision":
        return _of_torchvision(name), None
    return _of_user(source, name), None


def _of_torchvision(name: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise UnknownName(f"torchvision has no model {name!r}; {nearest(name, models.list_models())}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some announce that they will draw their weights otherwise
        try:
            with torch.device("meta"):
                net: nn.Module = models.get_model(name, weights=None)
        except NotImplementedError:  # its plan is computed with tensors
            net = models.get_model(name, weights=None)
    return net


def _of_user(module_name: str, function_name: str) -> nn.Module:
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and module_name.split(".")[0] == e.name.split(".")[0]:
            raise UnknownName(f"no model of the package and no module in {Path.cwd()} is called {module_name!r}") from e
        raise
    finally:
        sys.path.pop(0)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownName(f"{module_name} has no function {function_name!r}; {nearest(function_name, known)}")
    net = function()
    if not isinstance(net, nn.Module):
        raise RecipeError(f"{module_name}:{function_name} has to return a torch.nn.Module, found {type(net).__name__}")
    return net


def numbers(option: str, text: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers with commas between them; raises RecipeError for anything else."""
    parts = text.split(",")
    if len(parts) not in counts or not all(part.strip().isdecimal() for part in parts):
        wanted = " or ".join(",".join("N" * count) for count in counts)
        raise RecipeError(f"{option} is {wanted} in whole numbers, found {text!r}")
    return tuple(map(int, parts))


def _place(table: FieldTable, layer: str, unit: str | None) -> tuple[int, int]:
    if unit is None:
        height, width = table[layer].output_size
        return height // 2, width // 2
    row, column = numbers("--unit", unit, (2,))
    table.box(layer, row, column)  # its checks
    return row, column


def unit_text(table: FieldTable, layer: str, row: int, col: int) -> str:
    """What one unit reads, in words: of the image, and of every layer between."""
    box = table.box(layer, row, col)
    height, width = table[layer].output_size
    read = int(table.support(layer, row, col).sum())
    below = list(table.boxes(layer, row, col).items())[1:-1]
    lines = [
        f"unit ({row}, {col}) of {layer}, which has {height}×{width}; input {'×'.join(map(str, table.input_size))}",
        f"by the arithmetic     {_words(box.unclipped)}",
        f"pixels of the image   {_words(box.clipped)}, {read:,} of them read",
    ]
    longest = max((len(name) for name, _ in below), default=0)
    return "\n".join([*lines, *(f"{name.ljust(longest)}  {_words(b)}" for name, b in below)])


def _words(box: Box) -> str:
    return f"rows {box.top}…{box.bottom - 1}, columns {box.left}…{box.right - 1} ({box.height}×{box.width})"


def _page(name: str, model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """The explorer of a net as a whole page."""
    from html import escape

    from repro.visualization import receptive_field_explorer

    explorer: Any = receptive_field_explorer(model, input_size=input_size)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Receptive fields of {escape(name)}</title>\n</head>\n<body>\n<main>\n"
        f"<h1>Receptive fields of {escape(name)}</h1>\n{explorer._repr_html_()}\n</main>\n</body>\n</html>\n"
    )
