"""What the VGG paper makes of its nets: stacks of 3×3, how a column starts and grows, and dense evaluation."""

from collections.abc import Sequence
from functools import cache
from math import inf, log, prod, sqrt
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.claims.checks import nets
from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.dense import FullyConvolutional, convolutionize
from repro.models import get_model, layer_table, vgg
from repro.models.normalization import LocalResponseNorm
from repro.models.registry import model_info
from repro.receptive_field import receptive_field


@cache
def _sliding(model: str) -> FullyConvolutional:
    return convolutionize(unbuilt(model))


def _convolutions(model: str) -> list[nn.Conv2d]:
    return [layer for layer in unbuilt(model).modules() if isinstance(layer, nn.Conv2d)]


@check
def maps(model: str) -> list[int]:
    """How many maps each convolution of a net makes."""
    return [layer.out_channels for layer in _convolutions(model)]


@check
def stack_is_constrained(kernel_size: int, depth: int) -> bool:
    """Whether so many layers, with nothing between them, reach fewer kernels than one layer that sees as much.

    The weights of the one kernel that equals them all are functions of their weights; what counts is in how many
    independent directions these can move it.
    """

    def composed(kernels: Tensor) -> Tensor:  # (depth, 1, 1, k, k)
        whole = kernels[0]
        for kernel in kernels[1:]:
            whole = F.conv2d(whole, kernel.flip(-1, -2), padding=kernel_size - 1)
        return whole

    draw = torch.Generator().manual_seed(0)
    kernels = torch.randn(depth, 1, 1, kernel_size, kernel_size, generator=draw, dtype=torch.float64)
    weights = composed(kernels).numel()
    jacobian = torch.autograd.functional.jacobian(composed, kernels).reshape(weights, -1)
    return int(torch.linalg.matrix_rank(jacobian)) < weights


@check
def starts_at_chance(model: str, std: float, pixel_std: float) -> bool:
    """Whether the logits of a chain of layers start smaller than the logarithm of the number of classes.

    Weights have mean 0 and deviation `std`, biases are 0, and the pixels' deviation is `pixel_std`. A layer that adds n
    inputs multiplies the deviation by std·√n, and by std·√(n / 2) behind a ReLU; what pools add is left out.
    """
    layers = [m for m in unbuilt(model).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    fans = [layer.weight[0].numel() for layer in layers]
    deviation = pixel_std * prod(std * sqrt(n / (2 if i else 1)) for i, n in enumerate(fans))
    return deviation < log(layers[-1].weight.shape[0])


@check
def first_convolutions_fit(small: str, large: str, count: int) -> bool:
    """Whether the first convolutions of one net, counted through, have the shapes of those of another."""
    shapes = [[layer.weight.shape for layer in _convolutions(model)[:count]] for model in (small, large)]
    return shapes[0] == shapes[1]


@check
def layers_grown(small: str, large: str) -> int:
    """How many layers a deeper column takes from a shallow one, by their places in the blocks."""
    with torch.device("meta"):
        source, target = get_model(small), get_model(large)
    assert isinstance(source, vgg.VGG)
    assert isinstance(target, vgg.VGG)
    return len(vgg.grow(source, target))


@check
def kernels_of_linear_layers(model: str) -> list[int]:
    """The sides of the kernels that the linear layers of a net have as convolutions."""
    sliding = _sliding(model)
    converted = list(sliding.layers)[sliding.first_connected :]
    return [int(layer.kernel_size[0]) for layer in converted if hasattr(layer, "kernel_size")]  # type: ignore[index]


@check
def crops_cost_more(model: str, sides: Sequence[int], crops: int) -> bool:
    """Whether so many crops take more multiply-adds than pictures of these sides and their reflections, run densely."""
    features = unbuilt(model).get_submodule("features")
    alone = nets.multiply_adds(model)
    connected = nets.multiply_adds(model, "classifier")
    dense = 0
    for side in sides:
        places = prod(_sliding(model).grid(side, side).shape)
        dense += 2 * (layer_table(features, (3, side, side)).multiply_adds + places * connected)
    return crops * alone > dense


@check
def reads_beyond_crop(model: str, times: float) -> bool:
    """Whether an output of a net, run densely, reads more than so many times the area of its crop."""
    row = receptive_field(unbuilt(model))[-1]
    return prod(row.size) > times * prod(model_info(model).input_size[1:])


def _apart(padding: int) -> float:
    """How far the map of a crop lies from that of the picture around it, for VGG's kind of block; random weights."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(1, 4, 3, padding=padding), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=padding))
    picture = torch.rand(1, 1, 24, 24)
    alone = block(picture[:, :, 6:18, 6:18])
    units = slice(6, 6 + alone.shape[2])  # padding moves the units of both maps alike
    return (alone - block(picture)[:, :, units, units]).abs().max().item()


@check
def crops_differ_by_padding() -> bool:
    """Whether crops and dense run of a block of two 3×3 convolutions differ with padding, and without it do not."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return _apart(padding=1) > 1e-3 and _apart(padding=0) < 1e-5


@check
def normalising_keeps_more() -> bool:
    """Whether a backward pass keeps more bytes with LRN between a ReLU and a pool than without, ours and PyTorch's."""

    def kept(*layers: nn.Module) -> int:
        x = torch.rand(1, 16, 9, 9, requires_grad=True)
        found: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            last = nn.Sequential(nn.ReLU(), *layers, nn.MaxPool2d(2))(x)
        del last  # until here no storage is given up, so no two have one address
        return sum(found.values())

    with torch.random.fork_rng(devices=[]):
        return min(kept(LocalResponseNorm()), kept(nn.LocalResponseNorm(5))) > kept()


@check
def normalising_takes_longer() -> bool:
    """Whether a step through a ReLU and a pool takes longer with LRN in between, ours and PyTorch's; the best of five.

    The maps are those of AlexNet's first layer for four pictures.
    """
    normalisations: list[list[nn.Module]] = [[], [LocalResponseNorm()], [nn.LocalResponseNorm(5)]]
    nets = [nn.Sequential(nn.ReLU(), *norms, nn.MaxPool2d(3, 2)) for norms in normalisations]
    x = torch.linspace(-1, 1, 4 * 96 * 55**2).view(4, 96, 55, 55).requires_grad_()
    best = [inf] * len(nets)
    for _ in range(5):
        for i, net in enumerate(nets):
            started = perf_counter()
            net(x).sum().backward()
            best[i] = min(best[i], perf_counter() - started)
    return best[0] < min(best[1:])
