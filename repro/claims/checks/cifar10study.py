"""What the CIFAR-10 study makes of its nets: counts against each other, fields layer by layer, starting weights."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro import data, records, weights
from repro.claims.checks import nets
from repro.claims.checks.registry import check
from repro.models import flow, get_model, vgg
from repro.receptive_field import FieldRow, FieldTable, receptive_field, stack
from repro.visualization.features import features
from repro.visualization.filters import filters
from repro.visualization.structure import filter_structure, map_roughness

Count = Literal["parameters", "multiply_adds"]
COUNTS = {"parameters": nets.parameters, "multiply_adds": nets.multiply_adds}
FLOW_PICTURES = 8  # enough to tell the sizes of gradients, and quick
SEED = 0
SEVERAL = 2  # runs: one decides nothing
NOISE_LAYERS = 200  # layers of fresh filters that say how far chance goes


@cache
def _fields(model: str) -> FieldTable:
    return receptive_field(nets.unbuilt(model))


def _windows(model: str) -> list[FieldRow]:
    """The convolutions and pools: layers before the linear ones that read more than one place."""
    return [row for row in _fields(model) if row.kernel_size[0] > 1 and row.kind != "Linear"]


@check
def layers_with_weights(models: Sequence[str]) -> list[int]:
    """How many convolutions and linear layers each of several nets has."""
    return [nets.count_layers(model, "Conv2d") + nets.count_layers(model, "Linear") for model in models]


@check
def times_as_many(what: Count, model: str, than: str) -> float:
    """Parameters or multiply-adds of a net as a multiple of another net's."""
    return COUNTS[what](model) / COUNTS[what](than)


@check
def more_work_with_fewer_parameters(model: str, than: str) -> bool:
    """Whether a net has fewer parameters than another and does at least as many multiply-adds."""
    return times_as_many("parameters", model, than) < 1 <= times_as_many("multiply_adds", model, than)


@check
def share_by_depth(model: str, column: str, than: str) -> float:
    """Of the parameters that a VGG has more than another net: those in all but the first convolution of each block."""
    blocks = [block.split() for block in vgg.TABLE_1[column].strip(" |").split("|")]
    shallow = " | ".join(block[0] for block in blocks)
    by_depth = _parameters_of(vgg.TABLE_1[column]) - _parameters_of(shallow)
    return by_depth / (nets.parameters(model) - nets.parameters(than))


def _parameters_of(column: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in vgg.make_features(column, vgg.INPUT[0]).parameters())


def _block_widths(column: str) -> list[int]:
    """The maps that each block of a VGG starts with, and keeps."""
    blocks = vgg.TABLE_1[column].strip(" |").split("|")
    return [int(block.split()[0].split("-")[1]) for block in blocks]


@check
def widening(column: str) -> list[float]:
    """By how much the maps of a VGG multiply from each block to the next."""
    return [b / a for a, b in itertools.pairwise(_block_widths(column))]


@check
def blocks_where_two_are_cheaper(column: str, small: int, large: int) -> int:
    """Blocks of a VGG where two convolutions of `small`, the first widening, have fewer weights than one of `large`."""
    widths = [vgg.INPUT[0], *_block_widths(column)]
    pairs = itertools.pairwise(widths)
    return sum(small**2 * (before * maps + maps * maps) < large**2 * before * maps for before, maps in pairs)


@check
def convolution_settings(models: Sequence[str], setting: Literal["kernel_size", "stride", "padding"]) -> list[int]:
    """The different kernel sizes, strides or paddings of the convolutions of several nets, ascending."""
    convolutions = (m for model in models for m in nets.unbuilt(model).modules() if isinstance(m, nn.Conv2d))
    return sorted({side for convolution in convolutions for side in getattr(convolution, setting)})


@check
def mixes_kernels(model: str) -> bool:
    """Whether the convolutions of a net have kernels of different sizes."""
    return len(convolution_settings([model], "kernel_size")) > 1


@check
def kinds_only_in(model: str, than: str) -> str:
    """The kinds of layers that a net has and another one lacks, by name; "none" where there are none."""
    mine, others = ({type(m).__name__ for m in nets.unbuilt(name).modules()} for name in (model, than))
    containers = {type(nets.unbuilt(name)).__name__ for name in (model, than)}
    return ", ".join(sorted(mine - others - containers)) or "none"


@check
def field_of_stack(kernel_size: int, depth: int) -> int:
    """The field of several equal convolutions of stride 1 on top of each other, along one axis."""
    return stack([(kernel_size, 1, 0)] * depth)[-1].size[0]


@check
def fields_in_order(model: str, rows: Sequence[int] | None = None) -> list[int]:
    """The fields of a net's convolutions and pools along one axis; of those numbered in `rows`, from 1, or of all."""
    sizes = [row.size[0] for row in _windows(model)]
    return sizes if rows is None else [sizes[number - 1] for number in rows]


@check
def strides_in_order(model: str, rows: Sequence[int] | None = None) -> list[int]:
    """The pixels between the fields of neighbouring units, of the layers of `fields_in_order`."""
    steps = [int(row.effective_stride[0]) for row in _windows(model)]
    return steps if rows is None else [steps[number - 1] for number in rows]


@check
def sum_gives_fields(models: Sequence[str], own_stride: bool) -> bool:
    """Whether 1 + Σ (kernel − 1) · (product of strides) gives every field of the nets.

    The product is of the strides of the layers below, and of the layer itself if `own_stride`.
    """
    for model in models:
        size, product = 1, 1
        for row in _windows(model):
            kernel, step = row.kernel_size[0], int(row.stride[0])
            size += (kernel - 1) * product * (step if own_stride else 1)
            product *= step
            if size != row.size[0]:
                return False
    return True


@check
def grows_more_gradually(model: str, than: str, step: Literal["mean", "largest"]) -> bool:
    """Whether the fields of a net grow from layer to layer in smaller steps than another's, in the mean or at most."""
    mine, others = (_steps(name) for name in (model, than))
    if step == "mean":
        return sum(mine) / len(mine) < sum(others) / len(others)
    return max(mine) < max(others)


def _steps(model: str) -> list[int]:
    return [b - a for a, b in itertools.pairwise([1, *fields_in_order(model)])]


def _seen(model: str, layer: str) -> list[int]:
    """The pixels that each unit of a layer reads; padding is none."""
    table = _fields(model)
    units = itertools.product(*map(range, table[layer].output_size))
    return [int(table.support(layer, *unit).sum()) for unit in units]


@check
def best_view(model: str, layer: str) -> float:
    """The share of the picture that the unit of a layer sees that sees most."""
    _, height, width = _fields(model).input_size
    return max(_seen(model, layer)) / (height * width)


@check
def every_unit_sees_all(model: str, first: str) -> bool:
    """Whether each unit of each convolution and pool from the layer `first` on reads every pixel of the picture."""
    _, height, width = _fields(model).input_size
    names = [row.name for row in _windows(model)]
    return all(min(_seen(model, name)) == height * width for name in names[names.index(first) :])


@cache
def _gradients(model: str, init: str) -> tuple[float, float]:
    """Root mean square of the gradient over the weights of the first and of the last layer, before the first step."""
    pictures = data.load("shapes", "test")
    images = pictures.images[:FLOW_PICTURES].permute(0, 3, 1, 2) / 255  # (N, 3, 32, 32)
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    options: dict[str, Any] = {} if init == "pytorch" else {"init": init}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = get_model(model, num_classes=len(pictures.classes), **options)
    rows = flow.signal_flow(net, (images - mean) / std, pictures.labels[:FLOW_PICTURES])
    return rows[0].gradient_rms, rows[-1].gradient_rms


@check
def gradients_vanish(model: str, below: float, init: str = "pytorch") -> bool:
    """Whether the first layer's gradient, at the starting weights, is less than `below` of the last layer's."""
    first, last = _gradients(model, init)
    return first < below * last


@check
def gradients_arrive(model: str, above: float, init: str = "pytorch") -> bool:
    """Whether the first layer's gradient, at the starting weights, is more than `above` of the last layer's."""
    first, last = _gradients(model, init)
    return first > above * last


@check
def first_gradient_below(model: str, below: float) -> bool:
    """Whether the first layer's gradient, at PyTorch's starting weights, is less than `below`."""
    return _gradients(model, "pytorch")[0] < below


@check
def start_matters_less(model: str, than: str, rules: Sequence[str], below: float) -> bool:
    """Whether rules of starting weights differ less in a net than in another.

    Between the largest and the smallest gradient of the first layer lies a factor; it has to be less than `below` of
    the other net's.
    """
    firsts = ([_gradients(name, rule)[0] for rule in rules] for name in (model, than))
    mine, others = (max(found) / min(found) for found in firsts)
    return mine < below * others


@check
def parameters_per_percent(model: str, accuracy: float) -> float:
    """Thousands of parameters divided by an accuracy in per cent."""
    return nets.parameters(model) / 1000 / accuracy


@check
def pairs_in_order(first: Sequence[float], second: Sequence[float]) -> int:
    """In how many pairs the one that is larger in `first` is larger in `second` too."""
    pairs = itertools.combinations(zip(first, second, strict=True), 2)
    return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)


@check
def sooner_at(recipe: str, than: str, train_error: float) -> bool:
    """Whether every run of a recipe comes to a training error in fewer epochs than every run of another recipe."""
    needed = [[_epochs_to(run, train_error) for run in records.load(name)] for name in (recipe, than)]
    return max(needed[0]) < min(needed[1])


def _epochs_to(run: records.Record, train_error: float) -> float:
    return next((e.epoch for e in run.epochs if e.train_error <= train_error), float("inf"))


@check
def ahead_in_every_run(recipe: str, of: str) -> bool | None:
    """Whether each run of a recipe has a smaller test error than each run of another.

    None where they overlap, or where fewer than two runs of either are recorded: another seed might then turn it round.
    """
    ours, theirs = ([run.last.test_error for run in records.load(name)] for name in (recipe, of))
    if min(len(ours), len(theirs)) < SEVERAL:
        return None
    if max(ours) < min(theirs):
        return True
    return False if max(theirs) < min(ours) else None


@check
def improves_steadily(recipe: str, epochs: int) -> bool | None:
    """Whether the mean test error of each so many epochs is below that of those before them, in every run of a recipe.

    What is left over at the end is not looked at. None where fewer than two runs are recorded.
    """
    runs = [[epoch.test_error for epoch in run.epochs] for run in records.load(recipe)]
    if len(runs) < SEVERAL:
        return None
    means = [[sum(e[i : i + epochs]) / epochs for i in range(0, len(e) - epochs + 1, epochs)] for e in runs]
    return all(later < earlier for run in means for earlier, later in itertools.pairwise(run))


@cache
def _filter_deviations(name: str, fresh_layers: int) -> dict[str, float]:
    """How far a trained net's first filters are from uniformly drawn ones, in standard deviations of fresh layers."""
    net = weights.load(name)
    found = filters(net.model, net.convolutions[0]).weight
    fresh = torch.rand(fresh_layers * len(found), *found.shape[1:], generator=torch.Generator().manual_seed(SEED)) - 0.5
    chance, trained = filter_structure(fresh), filter_structure(found).means()
    deviations = {}
    for measure, value in trained.items():
        layers: Tensor = getattr(chance, measure).view(fresh_layers, -1).mean(1)
        deviations[measure] = ((value - layers.mean()) / layers.std()).item()
    return deviations


@check
def filters_beyond_noise(
    net: str, measures: Sequence[str], deviations: float, fresh_layers: int = NOISE_LAYERS
) -> bool:
    """Whether a trained net's first filters are above noise in all these measures, by so many standard deviations."""
    return min(_filter_deviations(net, fresh_layers)[measure] for measure in measures) > deviations


@check
def filters_within_noise(net: str, deviations: float) -> bool:
    """Whether a trained net's first filters are as noise is in every measure, within so many standard deviations."""
    return max(map(abs, _filter_deviations(net, NOISE_LAYERS).values())) < deviations


@check
def roughness_of_maps(net: str, layer: str, pictures: int) -> float:
    """Geary's C of a trained net's maps of `shapes`, their mean: 1 for places that are shuffled, near 0 for smooth."""
    trained, shown = weights.load(net), data.load("shapes", "test").images[:pictures]
    return map_roughness(features(trained.model, trained.prepare(shown), layer).maps[layer]).nanmean().item()
