"""What the AlexNet paper says of its plan, its pictures and its training. Chapters 3, 7, 9, 10 and 11.

Its units, ReLU, normalisation and dropout, are in `krizhevsky2012_units`.
"""

from importlib.util import find_spec
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from repro.claims.checks.nets import _given, _net, _table
from repro.claims.checks.registry import check
from repro.data.decode import centre_square, shorter_side
from repro.data.views import crop_positions, offsets, ten_views
from repro.models.layers import rounded_up_size
from repro.models.registry import get_model, model_info
from repro.receptive_field import output_size

# The plan: kernels, order, columns, counts.


@check
def kernels(model: str, first: int = 1, last: int | None = None, **options: Any) -> list[str]:
    """The kernels of a net's convolutions from number `first` to `last`, with their depth, as `11×11×3`."""
    convolutions = [m for m in _net(model, _given(options)).modules() if isinstance(m, nn.Conv2d)]
    return ["×".join(map(str, (*c.weight.shape[2:], c.weight.shape[1]))) for c in convolutions[first - 1 : last]]


@check
def follows(model: str, kind: str, part: str = "", **options: Any) -> list[int]:
    """The layers with weights, counted from 1, that a kind of layer stands after, in a part of the net or in all."""
    table = _table(model, _given(options))
    weighed = accumulate(row.multiply_adds > 0 for row in table)
    rows = zip(weighed, table, strict=True)
    return [number for number, row in rows if row.kind.startswith(kind) and row.name.startswith(part)]


@check
def between(model: str, layer: str, **options: Any) -> list[str]:
    """The kinds of the layers between a layer and the next one with weights, in their order."""
    table = list(_table(model, _given(options)))
    found: list[str] = []
    for row in table[[row.name for row in table].index(layer) + 1 :]:
        if row.multiply_adds:
            break
        found.append(row.kind.split()[0])
    return found


@check
def reads(model: str, layers: list[str], **options: Any) -> list[str]:
    """For each layer: whether a unit of it reads all maps below, or only those of its own column."""
    found = []
    for name in layers:
        layer = _net(model, _given(options)).get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        below = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        found.append("all" if layer.weight.shape[1] == below else "own")
    return found


@check
def neurons(model: str, **options: Any) -> list[int]:
    """The units of each layer with weights."""
    return [prod(row.output_shape) for row in _table(model, _given(options)).layers_with_weights()]


@check
def all_neurons(model: str, **options: Any) -> int:
    """The units of all layers with weights."""
    return sum(neurons(model, **options))


@check
def largest_convolution(model: str, **options: Any) -> float:
    """Of the convolution with most parameters: its per cent of the net's."""
    table = _table(model, _given(options))
    return 100 * max(row.parameters for row in table if "Conv" in row.kind) / table.parameters


@check
def holds_most(model: str, part: str, **options: Any) -> bool:
    """Whether more than half of a net's parameters are in a part of it."""
    net = _net(model, _given(options))
    of_part, of_net = (sum(p.numel() for p in m.parameters()) for m in (net.get_submodule(part), net))
    return of_part > of_net / 2


@check
def size_ratio(model: str, other: str) -> float:
    """The parameters of a net as a share of another's."""
    return _table(model, ()).parameters / _table(other, ()).parameters


@check
def sides(pixels: int, windows: list[list[int]], round_up: bool = False) -> list[int]:
    """The sides of the maps behind a chain of windows (size, stride) without padding, rounded down or up."""
    rule, found = rounded_up_size if round_up else output_size, [pixels]
    for size, stride in windows:
        found.append(rule(found[-1], size, stride))
    return found[1:]


@check
def positive_at_start(layers: list[str], model: str = "alexnet_2012") -> bool:
    """Whether a fresh net gives clearly more than half of the units of each of these layers a positive input.

    For one picture of blurred noise, around 0 and about as strong as photographs of 0…255 less their mean. The hidden
    layers are narrower than the paper's, which changes no share but by chance.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        x, shares = F.interpolate(60 * torch.randn(1, 3, 28, 28), (224, 224), mode="bilinear"), {}
        net = get_model(model, hidden=256).eval()
        for part in ("features", "classifier"):
            for name, layer in net.get_submodule(part).named_children():
                x = layer(x)
                shares[name] = (x > 0).double().mean().item()
            x = x.flatten(1)
    return all(shares[name] > 0.55 for name in layers)


# Pictures.


@check
def crops_and_reflections(picture: int, crop: int) -> int:
    """How many different views random windows and reflections make of one picture."""
    return 2 * len(crop_positions(picture, picture, crop, crop))


@check
def crops_share_most(picture: int, crop: int) -> bool:
    """Whether a random window has more than half of its pixels in common with another one, on average."""
    places = torch.arange(offsets(picture, crop), dtype=torch.float64)
    apart = (places[:, None] - places).abs()
    return (((crop - apart).clamp(min=0) / crop).mean() ** 2).item() > 1 / 2


@check
def augmentation_costs_little(model: str, crop: int, **options: Any) -> bool:
    """Whether a window, mirrored and recoloured, takes less than a hundredth of the operations of its training step.

    Each value is read, given its share of a colour, and written. A step multiplies and adds three times by each weight
    that a picture meets: forward, for the gradient of the inputs, and for that of the weights.
    """
    values, weights = 3 * crop**2, _table(model, _given(options)).multiply_adds
    return 3 * values < 3 * 2 * weights / 100


@check
def ten_test_views(picture: int, crop: int) -> list[str]:
    """The views of a test picture: top and left of each window, and whether it is mirrored."""
    views = ten_views(picture, picture, crop, crop)
    return [f"({top}, {left}){' mirrored' * mirrored}" for top, left, mirrored in views]


@check
def greyness_of_first_colour() -> float:
    """The cosine between the first principal component of the colours of scikit-learn's two photographs and grey."""
    spec = find_spec("sklearn")  # importing it takes longer than all that follows
    assert spec is not None
    assert spec.origin is not None
    pictures = sorted(Path(spec.origin).with_name("datasets").glob("images/*.jpg"))
    pixels = torch.cat([torch.tensor(np.asarray(Image.open(p))).flatten(0, 1) for p in pictures]).double()
    first = torch.linalg.eigh(pixels.T.cov()).eigenvectors[:, -1]
    return abs(F.normalize(torch.ones(3, dtype=torch.float64), dim=0) @ first).item()


@check
def prepared(width: int, height: int, size: int) -> list[int]:
    """Width and height of a picture once its shorter side is brought to `size` and the centre cut out."""
    return list(centre_square(shorter_side(Image.new("RGB", (width, height)), size), size).size)


# Training.


@check
def exchanging_layers(model: str) -> list[str]:
    """The layers for which two columns, each on a GPU, send each other something."""
    from repro.training.parallel.account import traffic

    rows = traffic(_net(model, ()), model_info(model).input_size, "columns", 128)
    return list(dict.fromkeys(row.what.split(".")[-1] for row in rows))
