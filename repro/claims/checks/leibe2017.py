"""What a lecture says of convolutions, pooling, ImageNet and dreams; claims of the other sources use some of it too."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from repro import data, weights
from repro.claims.checks.nets import unbuilt
from repro.claims.checks.registry import check
from repro.models import layer_table, model_info
from repro.receptive_field import output_size, receptive_field
from repro.visualization.dream import Dream, dream
from repro.visualization.natural import spectral_slope

Fact = Literal["out_channels", "kernel_size", "stride", "padding"]
SEED = 0
STEPS = 8  # of a dream: half of what the chapter takes, and enough to arrive
SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8


def library_net(name: str) -> nn.Module:
    """A net of torchvision without weights; Inception nets without auxiliary classifiers, which only training needs."""
    inception = name in ("googlenet", "inception_v3")
    options = {"init_weights": False, "aux_logits": False} if inception else {}
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


@check
def weights_of_unit(channels: int, side: int, kernel_size: int | None = None) -> int:
    """The weights of one unit over an image, biases aside: of all its pixels, or of a window of `kernel_size`."""
    with torch.device("meta"):
        if kernel_size is None:
            return nn.Linear(channels * side * side, 1, bias=False).weight.numel()
        return nn.Conv2d(channels, 1, kernel_size, bias=False).weight.numel()


@check
def filter_weights(filters: int, channels: int, kernel_size: int) -> int:
    """The weights of a layer of shared filters, biases aside."""
    with torch.device("meta"):
        return nn.Conv2d(channels, filters, kernel_size, bias=False).weight.numel()


@check
def stack_weights(stacks: Sequence[Sequence[int]]) -> list[int]:
    """For stacks of convolutions, each a list of kernel sizes: weights from one map to one map, biases aside."""
    return [sum(filter_weights(1, 1, size) for size in stack) for stack in stacks]


@check
def pixels_read(channels: int, side: int, kernel_size: int) -> list[int]:
    """How many channels, rows and columns of an image a unit in the middle of a convolution reads, by its gradient."""
    image = torch.zeros(1, channels, side, side, requires_grad=True)
    layer = nn.Conv2d(channels, 1, kernel_size)
    nn.init.ones_(layer.weight)
    maps = layer(image)
    (gradient,) = torch.autograd.grad(maps[0, 0, maps.shape[2] // 2, maps.shape[3] // 2], image)
    read = gradient[0] != 0
    return [int(read.any(dim=others).sum()) for others in ((1, 2), (0, 2), (0, 1))]


@check
def response_maps(side: int, kernel_size: int, filters: int, before: int = 0, after: int = 0) -> list[int]:
    """Height, width and number of the maps of a convolution over a grey image, padded at the two ends of each axis."""
    image = torch.empty(1, 1, side, side, device="meta")
    weight = torch.empty(filters, 1, kernel_size, kernel_size, device="meta")
    _, maps, height, width = F.conv2d(F.pad(image, (before, after, before, after)), weight).shape
    return [height, width, maps]


@check
def equal_padding_keeps(side: int, kernel_size: int) -> bool:
    """Whether some padding, the same at both ends, lets a convolution of stride 1 keep the size of an image."""
    return any(output_size(side, kernel_size, padding=padding) == side for padding in range(kernel_size))


@check
def places(side: int, kernel_size: int, stride: int = 1, padding: int = 0) -> int:
    """How many places a window has along one axis."""
    return output_size(side, kernel_size, stride, padding)


def _edge_maps(digits: Tensor) -> Tensor:
    """Four maps (N, 4, H, W) of digits (N, 1, H, W): where it gets brighter to either side, up and down."""
    filters = torch.stack([SOBEL, -SOBEL, SOBEL.T, -SOBEL.T])[:, None]
    return F.conv2d(digits, filters, padding=1).relu()


def _digits() -> Tensor:
    return data.load("digits", "test").images.permute(0, 3, 1, 2) / 255


@check
def pools_by_slice(window: int) -> bool:
    """Whether max-pooling gives for each map what it gives for that map alone, and as many maps as it was given."""
    maps = _edge_maps(_digits())
    alone = [F.max_pool2d(maps[:, c : c + 1], window) for c in range(maps.shape[1])]
    return torch.equal(F.max_pool2d(maps, window), torch.cat(alone, dim=1))


@check
def pooling_lessens(window: int, shift: int) -> bool:
    """Whether a shift of digits by some pixels changes their edge maps less if they are max-pooled.

    A change is the mean distance of the maps before and after, in units of that between the maps of two digits.
    """
    room = F.pad(_digits(), (4, 4, 4, 4))  # no ink leaves the picture
    moved = room.roll(shift, dims=-1)

    def change(pool: int) -> Tensor:
        still, after = (F.max_pool2d(_edge_maps(x), pool).flatten(1) for x in (room, moved))
        return (after - still).norm(dim=1).mean() / (still - still.roll(1, dims=0)).norm(dim=1).mean()

    return bool(change(window) < change(1))


@check
def shared_gradient_adds(kernel_size: int) -> bool:
    """Whether the gradient of shared weights is the sum of those that each place would have for weights of its own."""
    digit = _digits()[:1].double()
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(1, 1, kernel_size, kernel_size, generator=generator, dtype=torch.float64, requires_grad=True)
    (shared,) = torch.autograd.grad(F.conv2d(digit, weight).tanh().square().sum(), weight)
    windows = F.unfold(digit, kernel_size)[0].T  # (places, k²)
    copies = weight.detach().flatten().repeat(len(windows), 1).requires_grad_()
    (own,) = torch.autograd.grad((copies * windows).sum(1).tanh().square().sum(), copies)
    return torch.allclose(own.sum(0), shared.flatten(), rtol=1e-10)


@check
def fields_grow(model: str) -> bool:
    """Whether each convolution of a net reads more of the image than the one before it."""
    sizes = [row.size[0] for row in receptive_field(unbuilt(model)) if "Conv" in row.kind]
    return all(a < b for a, b in itertools.pairwise(sizes))


@check
def depths(models: Sequence[str]) -> list[int]:
    """The layers with weights of each of several nets."""
    return [len(layer_table(unbuilt(m), model_info(m).input_size).layers_with_weights()) for m in models]


@check
def hidden_layers(model: str) -> int:
    """The layers with weights of a net but the last, which is the output."""
    return depths([model])[0] - 1


@check
def convolution_facts(model: str, facts: Sequence[Fact], numbers: Sequence[int]) -> list[int]:
    """Facts of some of a net's convolutions, which are numbered from 1: all of the first one, then of the next."""
    convolutions = [m for m in unbuilt(model).modules() if isinstance(m, nn.Conv2d)]
    chosen = [getattr(convolutions[number - 1], fact) for number in numbers for fact in facts]
    return [value if isinstance(value, int) else value[0] for value in chosen]


@check
def vgg_layers(models: Sequence[str]) -> list[str]:
    """What stands below each other in the columns of the VGG paper's table 1, in its words, for several nets."""
    words = {nn.MaxPool2d: "maxpool", nn.ReLU: "", nn.Dropout: "", nn.Linear: "FC-{0.out_features}"}
    found = []
    for model in models:
        layers = [m for m in unbuilt(model).modules() if not any(m.children())]
        texts = [
            f"conv{m.kernel_size[0]}-{m.out_channels}" if isinstance(m, nn.Conv2d) else words.get(type(m), "LRN")
            for m in layers
        ]
        found.append(" ".join(text.format(m) for text, m in zip(texts, layers, strict=True) if text))
    return found


@check
def library_depth(name: str) -> int:
    """The layers with weights on the longest way through a net of torchvision."""
    return _depth(library_net(name))


def _depth(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d | nn.Linear):
        return 1
    parts = {name: _depth(child) for name, child in module.named_children()}
    if type(module).__name__ == "Inception":  # its children lie beside each other
        return max(parts.values())
    beside = parts.pop("downsample", 0)  # of a residual block
    return max(sum(parts.values()), beside)


@cache
def _class_names() -> list[str]:
    """The thousand classes of ILSVRC, as torchvision lists them: a short name each, in WordNet's order."""
    names: list[str] = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
    return names


@check
def minutes_to_speak_classes(words_per_second: float) -> float:
    """How long it takes to speak out the short names of ILSVRC's classes."""
    return sum(len(name.split()) for name in _class_names()) / words_per_second / 60


@check
def classes_from_to(first: str, last: str) -> int:
    """How many classes of ILSVRC stand from one to another, both counted; kinds of an animal stand together."""
    names = _class_names()
    return names.index(last) - names.index(first) + 1


@cache
def _dreams(net: str, prior: str) -> Dream:
    dreamer = weights.load(net)
    classes = list(range(len(dreamer.classes)))
    return dream(dreamer.model, classes, steps=STEPS, prior=prior, bounds=dreamer.prepare.bounds)


@check
def dreams_arrive(net: str, probability: float) -> bool:
    """Whether from noise, without a prior, a trained net is brought to this probability for each of its classes."""
    dreams = _dreams(net, "none").images
    with torch.no_grad():
        answers = weights.load(net).model(dreams).softmax(1).diagonal()
    return bool(answers.min() > probability)


@check
def dreams_nearer_to_natural(net: str, prior: str, natural: float) -> bool:
    """Whether a prior brings the slope of the dreams' spectrum nearer to that of natural images."""
    slopes = [spectral_slope(_dreams(net, which).images).mean().item() for which in ("none", prior)]
    return abs(slopes[1] - natural) < abs(slopes[0] - natural)


@check
def dreams_recognised(net: str, by: str, prior: str, share: float) -> bool:
    """Whether another net, trained on the same classes, gives more than a share of the dreams the class they are of."""
    return _recognised(net, by, prior) > share


@check
def prior_helps_another_net(net: str, by: str, prior: str) -> bool:
    """Whether another net gives more of the dreams that had a prior the class they are of than of those without one."""
    return _recognised(net, by, prior) > _recognised(net, by, "none")


def _recognised(net: str, by: str, prior: str) -> float:
    dreams = _dreams(net, prior).images
    with torch.no_grad():
        answers = weights.load(by).model(dreams).argmax(1)
    return int((answers == torch.arange(len(answers))).sum()) / len(answers)
