"""What differs between two nets, read off the nets themselves: `repro compare A B`, and tables in chapters 3 and 9.

Each net is run once on a zero image. Its layers fall into stages: a layer with weights and what follows it up to the
next one. Stages of the same kind and number are set side by side (the second convolution of one net with the second
of the other, whatever their names), fact by fact.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repro.models.describe import Description, both, describe
from repro.models.layers import LocallyConnected2d, RBFOutput, SparseConv2d
from repro.models.registry import OptionError, get_model, model_info
from repro.models.summary import LayerCall, layer_calls, layer_row, layer_table
from repro.receptive_field import FieldRow, TraceError, receptive_field, use_name
from repro.tables import Line, aligned_text, html_table

Size = tuple[int, int, int]  # (C, H, W)
Facts = dict[str, Any]  # what a cell is about -> a value that prints as the cell; None where there is nothing

# The order in which stages are shown; each kind is numbered from 1.
KINDS = {"conv": (nn.Conv2d, SparseConv2d), "local": (LocallyConnected2d,), "fc": (nn.Linear, RBFOutput)}
FOLLOWERS = ("normalisation", "pooling", "dropout")  # the parts of a net whose constants have a row of their own


@dataclass(frozen=True)
class ComparisonRow:
    """One fact of one stage in either net, and whether the two agree in it."""

    stage: str
    fact: str
    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class Comparison:
    """The rows of `compare`; prints as aligned text and shows as an HTML table, equal rows only if `show_equal`."""

    a: str
    b: str
    rows: tuple[ComparisonRow, ...]
    show_equal: bool = False

    @property
    def differences(self) -> tuple[ComparisonRow, ...]:
        return tuple(row for row in self.rows if not row.same)

    def _lines(self) -> list[Line]:
        """Head, body and foot; a stage is named in the first of its rows."""
        shown = self.rows if self.show_equal else self.differences
        lines: list[Line] = [("", "", self.a, self.b)]
        stage = ""
        for row in shown:
            lines.append((row.stage if row.stage != stage else "", row.fact, row.a, row.b))
            stage = row.stage
        different = len(self.differences)
        return [*lines, (f"{different} different, {len(self.rows) - different} equal", "", "", "")]

    def __str__(self) -> str:
        *lines, (count, *_) = self._lines()
        return f"{aligned_text(lines, len(lines[0]))}\n{count}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *body, foot = self._lines()
        return html_table(header, body, [foot], len(header), "comparison")


def compare(
    a: str | nn.Module, b: str | nn.Module, *, input_size: Size | None = None, show_equal: bool = False
) -> Comparison:
    """Set two nets side by side: shapes, counts, receptive fields, order and constants of the layers, starting weights.

    A net is a name of the registry, with options if need be (`"alexnet_2012:lrn=none,dropout=inverted"`), or a module.
    A name is built with weights drawn from seed 0, and the global generator is left alone; of a module the weights it
    has are measured. `input_size` is that of one image `(C, H, W)`; without it each net gets the size it was built
    for, and a module that does not say it (as `input_sizes[0]`) that of the other net. Raises `UnknownName` and
    `OptionError` as `get_model` does, ValueError if no size is known.
    """
    models = [build(net) if isinstance(net, str) else net for net in (a, b)]
    sizes = [input_size or _own_size(net, model) for net, model in zip((a, b), models, strict=True)]
    known = next((size for size in sizes if size), None)
    if known is None:
        raise ValueError("neither net says what it reads: give input_size=(channels, height, width)")
    facts_a, facts_b = (_net_facts(model, size or known) for model, size in zip(models, sizes, strict=True))
    rows = []
    for stage in sorted(dict.fromkeys([*facts_a, *facts_b]), key=_place):
        in_a, in_b = facts_a.get(stage, {}), facts_b.get(stage, {})
        for fact in in_a or in_b:
            x, y = in_a.get(fact), in_b.get(fact)
            if not x is y is None:
                rows.append(ComparisonRow(stage, fact, _cell(x), _cell(y), _agree(x, y)))
    name_a, name_b = (net if isinstance(net, str) else type(net).__name__ for net in (a, b))
    return Comparison(name_a, name_b, tuple(rows), show_equal)


def build(net: str) -> nn.Module:
    """The net that `NAME` or `NAME:KEY=VALUE,KEY=VALUE` stands for, its weights drawn from seed 0."""
    name, options = parse_net(net)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return get_model(name, **options)


def parse_net(net: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a net written `NAME` or `NAME:KEY=VALUE,KEY=VALUE`."""
    name, colon, settings = net.partition(":")
    defaults = model_info(name).options
    options = {}
    for setting in settings.split(",") if colon else []:
        key, sign, text = setting.partition("=")
        if not key or not sign:
            raise OptionError(f"expected NAME:KEY=VALUE,KEY=VALUE, found {net!r}")
        options[key] = text if isinstance(defaults.get(key), str) else _value(text)
    return name, options


def _own_size(net: str | nn.Module, model: nn.Module) -> Size | None:
    """What the net itself says, for an option may have changed what the registry knows."""
    registered = model_info(net.partition(":")[0]).input_size if isinstance(net, str) else None
    return getattr(model, "input_sizes", (registered,))[0]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word; `get_model` says what the option takes


@dataclass(frozen=True)
class Spread:
    """The standard deviation of `count` values that were drawn at random."""

    std: float
    count: int

    def __str__(self) -> str:
        return f"std {self.std:.3g}"

    def agrees(self, other: "Spread") -> bool:
        """Whether chance explains the difference: up to four standard errors of the ratio, for normal values.

        The standard error of ln std is 1 / √(2 count); that of uniform values is smaller.
        """
        error = math.hypot(1 / math.sqrt(2 * self.count), 1 / math.sqrt(2 * other.count))
        return abs(math.log(self.std / other.std)) <= 4 * error


def measured(values: Any) -> Spread | str | None:
    """What parameters hold now: one value, or the spread of several; None where there are none, or none to be read."""
    if not isinstance(values, Tensor) or values.is_meta:
        return None
    values = values.detach().float()
    smallest, largest = values.aminmax()
    return f"{smallest.item():g}" if smallest == largest else Spread(values.std().item(), values.numel())


@dataclass
class Stage:
    """A layer with weights and what follows it; the stage `input` is what stands before the first of them."""

    head: LayerCall | None = None
    fields: FieldRow | None = None  # None where they are not known
    followers: list[Description] = field(default_factory=list)
    output_shape: tuple[int, ...] = ()

    def facts(self) -> Facts:
        """All the facts there are, in the order of their rows."""
        facts = self._head_facts(self.head) if self.head else {}
        facts["followed by"] = " → ".join(f.name for f in self.followers) or None
        for part in FOLLOWERS:
            words = [f.constants if f.name == part else str(f) for f in self.followers if f.part == part]
            facts[part] = "; ".join(words) or None
        facts["passed on" if self.head else "image"] = _shape(self.output_shape)
        return facts

    def _head_facts(self, head: LayerCall) -> Facts:
        row, words = layer_row(head), describe(head.layer, head)
        return {
            "layer": str(words),
            "output": _shape(head.output_shape),
            "parameters": f"{row.parameters:,}",
            "multiply-adds": f"{row.multiply_adds:,}",
            "receptive field": _reach(self.fields, head.output_shape) if self.fields else None,
            "weights": measured(getattr(head.layer, "weight", None)),
            "biases": measured(getattr(head.layer, "bias", None)),
        }


def stages(model: nn.Module, size: Size) -> dict[str, Stage]:
    """The stages of a net by name: `input`, `conv1`, …, `fc1`, …"""
    calls, fields, uses = layer_calls(model, size), _fields(model, size), Counter[str]()
    now = Stage(output_shape=size)
    found, numbers = {"input": now}, Counter[str]()
    for call in calls:
        uses[call.name] += 1
        if not call.chained:
            now.followers.append(Description("other", "an operation that is no layer"))
        kind = next((kind for kind, classes in KINDS.items() if isinstance(call.layer, classes)), None)
        if kind:
            numbers[kind] += 1
            now = found[f"{kind}{numbers[kind]}"] = Stage(call, fields.get(use_name(call.name, uses[call.name])))
        elif (words := describe(call.layer, call)).part != "nothing":
            now.followers.append(words)
        if kind or len(call.output_shape) > 1:  # maps that are only laid out in a row are passed on as maps
            now.output_shape = call.output_shape
    return found


def _fields(model: nn.Module, size: Size) -> dict[str, FieldRow]:
    """The receptive fields by the names of the layers; none where the net does something that has no rule."""
    try:
        return {row.name: row for row in receptive_field(model, size)}
    except TraceError:
        return {}


def _net_facts(model: nn.Module, size: Size) -> dict[str, Facts]:
    table = layer_table(model, size)
    facts = {name: stage.facts() for name, stage in stages(model, size).items()}
    facts["in all"] = {"parameters": f"{table.parameters:,}", "multiply-adds": f"{table.multiply_adds:,}"}
    return facts


def _place(stage: str) -> tuple[int, int]:
    """Where a stage stands in the table: conv10 after conv9, and fully connected layers after all convolutions."""
    kind = stage.rstrip("0123456789")
    return ["input", *KINDS, "in all"].index(kind), int(stage[len(kind) :] or 0)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _reach(fields: FieldRow, output_shape: Sequence[int]) -> str:
    """`51 px, every 8 from −2`: how many pixels a unit sees, and where the fields lie if there is more than one."""
    size = f"{both(*fields.size)} px"
    if math.prod(output_shape[1:]) == 1:
        return size
    down, across = fields.effective_padding
    grid = f"every {both(*fields.effective_stride)} from {both(-down, -across)}"
    return f"{size}, {grid.replace('-', '−')}"


def _cell(value: Any) -> str:
    return "–" if value is None else str(value)


def _agree(x: Any, y: Any) -> bool:
    return x.agrees(y) if isinstance(x, Spread) and isinstance(y, Spread) else x == y
