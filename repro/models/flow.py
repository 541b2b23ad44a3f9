"""How a signal passes through a net, layer by layer: its size and what it says of the picture, and the gradient's size.

A net that is too deep for its starting weights shows it before the first step: what leaves its layers shrinks until the
constants (biases, and what they make of the layers above) are all that is left, and gradients shrink on the way back.
Glorot & Bengio 2010 and He et al. 2015 derive starting weights from these sizes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import DataError
from repro.models.layers import Dropout2012


@dataclass(frozen=True)
class FlowRow:
    """One convolution or linear layer, for one batch.

    `std` is the deviation of what the layer gives, before any normalisation or nonlinearity, over all pictures and
    units. Of its square, `picture_share` is the part that differs between the pictures at the same unit; the rest is
    the difference between units, the same for every picture. `gradient_rms` is the root mean square of the loss's
    gradient over the layer's weights.
    """

    name: str
    std: float
    picture_share: float  # 0…1
    gradient_rms: float


def signal_flow(model: nn.Module, images: Tensor, labels: Tensor) -> list[FlowRow]:
    """The flow of images `(N, C, H, W)` with classes `(N,)` through `model`, layer by layer in the order of their use.

    The loss is the mean cross-entropy. A copy runs in training mode without dropout: batch normalisation takes the
    statistics of the batch, no mask passes for a difference between pictures, and the model keeps its mode, its
    statistics, its gradients and, whatever goes wrong, no hook. Raises DataError for fewer than two images, between
    which nothing can differ.
    """
    if len(images) < 2:
        raise DataError(f"signal_flow: {len(images)} image(s); at least two are needed to tell what differs with them")
    watched = copy.deepcopy(model).train()
    for layer in watched.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd | Dropout2012):
            layer.eval()
    seen: list[tuple[str, nn.Parameter, float, float]] = []
    with _watching(watched, seen), torch.enable_grad():
        loss = F.cross_entropy(watched(images), labels)
    gradients = torch.autograd.grad(loss, [weight for _, weight, _, _ in seen])
    return [
        FlowRow(name, std, share, gradient.square().mean().sqrt().item())
        for (name, _, std, share), gradient in zip(seen, gradients, strict=True)
    ]


def picture_share(outputs: Tensor) -> float:
    """The part of the variance of outputs `(N, …)` that lies between pictures at the same unit, 0…1; of none, 0."""
    whole = outputs.var(correction=0).item()
    return outputs.var(dim=0, correction=0).mean().item() / whole if whole else 0.0


@contextmanager
def _watching(model: nn.Module, seen: list[tuple[str, nn.Parameter, float, float]]) -> Iterator[None]:
    """While it lasts, name, weight, deviation and share of every convolution and linear layer are noted at its use."""

    def watcher(name: str) -> Any:
        def after(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            values = output.detach()  # measured at once: the next layer may work in place
            weight = layer.get_parameter("weight")
            seen.append((name, weight, values.std(correction=0).item(), picture_share(values)))

        return after

    watched = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(watcher(name)) for name, layer in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
