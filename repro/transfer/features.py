"""What each layer of a net says of a set of pictures, as one row of numbers per picture. Chapter 20."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor, nn

from repro.data.preparation import Preparation
from repro.progress import track
from repro.visualization import probe

MOST = 4096  # numbers per picture that maps are averaged down to: as many as AlexNet's last hidden layer has units
WEIGHTED = (nn.Conv2d, nn.Linear)


def stages(model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """The layers whose outputs the second, third … layer with weights takes, in the order of their use.

    The last of them is what is left when the classifier's last layer is chopped off; of a net that ends in a
    convolution it is what the net gives. A layer that is used more than once has no one output and is left out.
    `input_size` is (C, H, W). Raises `ProbeError` for a net with fewer than two layers with weights.
    """
    called: list[tuple[str, nn.Module]] = []
    weight = next(model.parameters(), torch.empty(0))
    with probe.untouched(model), torch.no_grad():
        for name, leaf in model.named_modules():
            if not list(leaf.children()):
                leaf.register_forward_hook(lambda module, _inputs, _output, name=name: called.append((name, module)))
        model(torch.zeros(1, *input_size, dtype=weight.dtype, device=weight.device))
    places = [i for i, (_, layer) in enumerate(called) if isinstance(layer, WEIGHTED)]
    found = [called[i - 1][0] for i in places[1:]]
    if places and isinstance(called[places[-1]][1], nn.Conv2d):
        found.append(called[-1][0])
    times = Counter(name for name, _ in called)
    if not (once := [name for name in found if times[name] == 1]):
        raise probe.ProbeError(f"{type(model).__name__}: no layer lies between two with weights; name the layers")
    return once


@torch.no_grad()
def features(
    model: nn.Module,
    prepare: Preparation,
    images: Tensor,
    layers: Sequence[str],
    memory: int = probe.MEMORY,
    most: int = MOST,
) -> dict[str, Tensor]:
    """What each of `layers` gives for uint8 pictures (N, H, W, C): float32 (N, D) on the CPU, by layer.

    A picture smaller than the net's input is enlarged to it whole (bicubic); any other is brought to it by `prepare`,
    as in training. Maps are averaged over a grid, the finest that leaves at most `most` numbers; what has no spatial
    extent stays as it is. A batch's maps take at most `memory` bytes.
    """
    height, width = images.shape[1:3]
    if max(height, width) < prepare.crop:
        prepare = replace(prepare, size=prepare.crop, fit="squash")
    exact = height == width and height in (prepare.size, prepare.crop) and images.shape[3] == prepare.channels
    size = probe.batch_size(model, prepare.input_size, memory)
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    starts = range(0, len(images), size)
    with probe.untouched(model):
        for start in track(starts, len(images), "pictures through the net", weight=size):
            batch = images[start : start + size]
            standardised = probe.images_for(model, prepare.standardize(batch) if exact else prepare(batch))
            for layer, output in probe.outputs(model, standardised, layers).items():
                rows[layer].append(pooled(output, most).float().cpu())
    return {layer: torch.cat(found) for layer, found in rows.items()}


def pooled(output: Tensor, most: int = MOST) -> Tensor:
    """Maps (N, C, H, W) averaged over the finest square grid with at most `most` numbers, (N, D); others flattened."""
    if output.ndim == 4:
        channels, height, width = output.shape[1:]
        cells = max(1, isqrt(most // channels))
        if cells < max(height, width):
            output = nn.functional.adaptive_avg_pool2d(output, (min(cells, height), min(cells, width)))
    return output.flatten(1)


def pixels(images: Tensor) -> Tensor:
    """The pictures themselves: uint8 (N, H, W, C) as float32 (N, H · W · C) of 0…1."""
    return images.flatten(1).float() / 255


def random_like(model: nn.Module, seed: int) -> nn.Module:
    """A net of the same plan that has learnt nothing: each weight drawn anew from `seed`, the model left as it is.

    Weights of convolutions and linear layers are He's (2015) normal ones, which keep the size of the signal through
    any number of ReLUs; biases are zero, and batch normalisation starts as it does when made.
    """
    generator, fresh = torch.Generator().manual_seed(seed), deepcopy(model)
    for module in fresh.modules():
        if isinstance(module, WEIGHTED):
            fan_in = module.weight[0].numel()
            drawn = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            module.weight.data.copy_(drawn)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
    return fresh


def digest(model: nn.Module) -> str:
    """sha256 over the names, shapes and values of a net's parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
