"""What a course's slides say of printed nets, of linear layers as convolutions, and of blocks and their sizes."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from repro import dense
from repro.claims.checks import nets
from repro.claims.checks.leibe2017 import library_net
from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.errors import ReproError
from repro.models import get_model, layer_table, model_info

SEED = 0
CLOSE = 1e-5

# Szegedy et al. 2015, table 1: maps of 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5 and pool projection of each module.
INCEPTION = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
GOOGLENET_STEM = ((3, 64, 7), (64, 64, 1), (64, 192, 3))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, groups: int = 1) -> int:
    """The parameters of a convolution, biases too."""
    with torch.device("meta"):
        layer = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups)
    return sum(p.numel() for p in layer.parameters())


@check
def block_parameters(layers: Sequence[Sequence[int]]) -> int:
    """The parameters, biases too, of convolutions given as (input maps, output maps, kernel size[, groups])."""
    return sum(_convolution(*layer) for layer in layers)


def inception_parameters(in_channels: int, widths: Sequence[int]) -> int:
    """The parameters of an Inception module with these numbers of maps, biases too."""
    single, reduce_3, maps_3, reduce_5, maps_5, projected = widths
    return block_parameters(
        [
            (in_channels, single, 1),
            (in_channels, reduce_3, 1),
            (reduce_3, maps_3, 3),
            (in_channels, reduce_5, 1),
            (reduce_5, maps_5, 5),
            (in_channels, projected, 1),
        ]
    )


def googlenet_parameters(num_classes: int = 1000) -> int:
    """The parameters of GoogLeNet as published, biases too, without its auxiliary classifiers."""
    total, maps = block_parameters(GOOGLENET_STEM), GOOGLENET_STEM[-1][1]
    for widths in INCEPTION:
        total += inception_parameters(maps, widths)
        maps = widths[0] + widths[2] + widths[4] + widths[5]
    return total + (maps + 1) * num_classes


@check
def times_googlenet(model: str) -> float:
    """The parameters of a net as a multiple of GoogLeNet's."""
    return nets.parameters(model) / googlenet_parameters()


@check
def library_ratio(name: str, than: str | int) -> float:
    """The parameters of a net of torchvision as a share of another's, or of a number."""
    first, second = (n if isinstance(n, int) else _library_parameters(n) for n in (name, than))
    return first / second


@check
def times_smaller(name: str, than: str | int) -> float:
    """How many times fewer parameters a net of torchvision has than another one, or than a number."""
    return 1 / library_ratio(name, than)


def _library_parameters(name: str) -> int:
    return sum(p.numel() for p in library_net(name).parameters())


@check
def library_pathways(name: str) -> int:
    """The largest number of groups that a convolution of a net of torchvision has."""
    return max(m.groups for m in library_net(name).modules() if isinstance(m, nn.Conv2d))


@check
def library_layers(name: str, part: str, count: int | None = None) -> list[str]:
    """The first `count` layers of a part of a net of torchvision as `conv 64-192 5x5 stride 1 pad 2`; no ReLUs."""
    found = []
    for layer in list(library_net(name).get_submodule(part).children())[:count]:
        match layer:
            case nn.Conv2d():
                size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
                text = f"conv {layer.in_channels}-{layer.out_channels} {size}x{size} stride {stride} pad {padding}"
                found.append(text)
            case nn.MaxPool2d():
                found.append(f"maxpool {layer.kernel_size}x{layer.kernel_size} stride {layer.stride}")
            case nn.Linear():
                found.append(f"linear {layer.in_features}-{layer.out_features}")
            case nn.Dropout():
                found.append(f"dropout {layer.p}")
            case _:
                assert isinstance(layer, nn.ReLU), layer
    return found


@check
def convolutions_and_linear(model: str) -> list[int]:
    """How many convolutions and how many linear layers a net has."""
    return [nets.count_layers(model, "Conv2d"), nets.count_layers(model, "Linear")]


@check
def convolutions_first(models: Sequence[str]) -> bool:
    """Whether in each of these nets convolutions come first, and then linear layers."""
    for model in models:
        rows = layer_table(unbuilt(model), model_info(model).input_size).layers_with_weights()
        linear = [row.kind == "Linear" for row in rows]
        if linear != sorted(linear) or len(set(linear)) != 2:
            return False
    return True


@check
def normalisations(model: str) -> int:
    """How many layers of response normalisation a net has."""
    return sum("Norm" in type(m).__name__ for m in unbuilt(model).modules())


@check
def linear_is_pointwise(features: int, outputs: int) -> bool:
    """Whether a linear layer gives what a 1×1 convolution with its weights gives over a single place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        linear, x = nn.Linear(features, outputs), torch.randn(8, features)
    as_maps = F.conv2d(x[..., None, None], linear.weight[..., None, None], linear.bias)
    return torch.allclose(as_maps[..., 0, 0], linear(x), atol=CLOSE)


@check
def conversion_changes_nothing(model: str) -> bool:
    """Whether a net with its linear layers as convolutions gives what it gave, for a picture of its own size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net, picture = get_model(model).eval(), torch.rand(2, *model_info(model).input_size)
        with torch.no_grad():
            return torch.allclose(dense.convolutionize(net)(picture).flatten(1), net(picture), atol=CLOSE)


@check
def linear_layers_suffice(name: str, side: int, pooling: bool = True) -> bool:
    """Whether a net of torchvision gives several answers for a larger picture once its linear layers are convolutions.

    Its adaptive pooling stays as it is, or is taken out.
    """
    net = library_net(name)

    def extent(side: int) -> int:
        """The side of the map that the first linear layer reads."""
        maps = net.get_submodule("features")(torch.empty(1, 3, side, side, device="meta"))
        return int((net.get_submodule("avgpool")(maps) if pooling else maps).shape[-1])

    return extent(side) > extent(model_info(name).input_size[1])  # more than one window of the trained size


@check
def takes_picture(model: str, side: int) -> bool:
    """Whether a net with its linear layers as convolutions has an answer for a picture of this side."""
    net = dense.convolutionize(unbuilt(model))
    try:
        return net(torch.empty(1, net.native_size[0], side, side, device="meta")).numel() > 0
    except ReproError:
        return False


@check
def answers_are_coarser(model: str) -> bool:
    """Whether the answers of a net, run densely, lie more than a pixel apart."""
    net = dense.convolutionize(unbuilt(model))
    return net.grid(*net.native_size[1:]).stride[0] > 1


@check
def dense_run_saves(model: str, height: int, width: int) -> bool:
    """Whether all crops of a picture, one by one, take more multiply-adds than a dense run with the same answers."""
    net = dense.convolutionize(unbuilt(model))
    rows, columns = net.grid(height, width).shape
    features = layer_table(unbuilt(model).get_submodule("features"), (net.native_size[0], height, width)).multiply_adds
    crop = nets.multiply_adds(model)
    linear = nets.multiply_adds(model, "classifier")
    return rows * columns * crop > features + rows * columns * linear


@check
def stride_1_pooling_is_overfeat(units: int, pool: int, reads: int) -> bool:
    """Whether a last pooling at stride 1, and nothing else changed, gives the interleaved scores of all its offsets.

    In one dimension: a pooling of `pool` units, a classifier that reads `reads` pooled ones, whole numbers.
    """
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randint(10, (1, 1, units), generator=generator).float()
    classifier = torch.randint(-5, 6, (1, 1, reads), generator=generator).float()
    by_offset = [F.conv1d(F.max_pool1d(x[..., offset:], pool), classifier) for offset in range(pool)]
    interleaved = torch.stack(by_offset, 3).flatten()
    return torch.equal(F.conv1d(F.max_pool1d(x, pool, stride=1), classifier).flatten(), interleaved)


@check
def averaging_commutes(features: int, outputs: int, side: int) -> bool:
    """Whether the mean of a linear layer's answers over a map is its answer for the mean of the map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        linear, maps = nn.Linear(features, outputs), torch.randn(2, side, side, features)
    return torch.allclose(linear(maps).mean((1, 2)), linear(maps.mean((1, 2))), atol=CLOSE)
