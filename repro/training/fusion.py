"""The same net, computed in a way that suits a CPU: pooling before ReLU or inside a convolution, and cheaper dropout.

A net is written as its paper draws it: convolution, ReLU, max-pooling. The larger half of a step of LeNet is then spent
on passes over maps that pooling throws away. The two rewritings of pooling below give the same function, the same
gradients and the same winner among equals; that of dropout draws other numbers with the same distribution. All share
the net's parameters, so training one trains the other.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.layers import Dropout2012


def fuse(model: nn.Module) -> nn.Module:
    """`model` with its `ReLU, MaxPool2d` pairs and dropout rewritten, to call in its place; the parameters are shared.

    `model` itself stays as it was written. Layers that are not rewritten are the very same objects in both; training
    and evaluation have to be set on both.
    """
    fused = copy.copy(model)
    fused._modules = {name: fuse(child) for name, child in model.named_children()}
    if type(model) is nn.Sequential:
        return nn.Sequential(*_fuse_layers(list(fused.children())))
    return fused if any(model.children()) else model


def _fuse_layers(layers: list[nn.Module]) -> list[nn.Module]:
    done: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d) and done and isinstance(done[-1], nn.ReLU) and not layer.return_indices:
            done.pop()
            if done and _pools_in_phases(done[-1], layer):
                done.append(ConvPoolReLU(done.pop(), layer.kernel_size))  # type: ignore[arg-type]
            else:
                done.append(PoolReLU(layer))
        elif isinstance(layer, nn.Dropout | Dropout2012) and (256 * layer.p).is_integer() and layer.p < 1:
            done.append(ByteDropout(layer.p, scale_in_training=isinstance(layer, nn.Dropout)))
        else:
            done.append(layer)
    return done


class PoolReLU(nn.Module):
    """Max-pooling, then ReLU: as ReLU never decreases, the order does not matter, and this one has less to rectify.

    Pooling runs in channels-last layout: a CPU then compares many channels at once, otherwise one number at a time.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        pooled = self.pool(x.contiguous(memory_format=torch.channels_last))
        return torch.relu_(pooled.contiguous(memory_format=layout))


class ConvPoolReLU(nn.Module):
    """A convolution of a one-channel image, s×s max-pooling and ReLU: `(N, 1, H, W)` to `(N, C, H', W')`.

    Output (sy + i, sx + j) of a convolution is output (y, x) of one with stride s whose kernel is moved by (i, j). So
    one convolution with stride s and s² moved copies of each kernel lays the candidates of every window into
    channels of their own, and pooling becomes a maximum over whole maps, which a CPU computes 16 numbers at a
    time. In the plain order it walks windows of 2×2 one number at a time: LeNet's first block takes half as long here.
    """

    moves: Tensor

    def __init__(self, conv: nn.Conv2d, size: int) -> None:
        super().__init__()
        self.conv, self.size = conv, size
        self.register_buffer("moves", _moves(conv.kernel_size, size).to(conv.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, s = len(x), self.size
        channels, _, height, width = self.conv.weight.shape
        moved = (self.conv.weight.view(channels, -1) @ self.moves).view(channels, s * s, -1)
        kernels = moved.transpose(0, 1).reshape(-1, 1, height + s - 1, width + s - 1)
        bias = None if self.conv.bias is None else self.conv.bias.expand(s * s, -1).flatten()
        x = x.flatten(1).view(x.shape)  # strides that no kernel mistakes for channels-last
        x = F.conv2d(x, kernels, bias, stride=s, padding=self.conv.padding)  # (N, s²·C, H', W')
        _, _, h, w = x.shape
        largest: Tensor = _Largest.apply(x.contiguous().view(n, s * s, -1))
        return torch.relu(largest).view(n, -1, h, w)


class ByteDropout(nn.Module):
    """Dropout whose probability is a multiple of 1/256, any shape: one random byte decides for each number.

    It scales in training, as `nn.Dropout` does, or in evaluation, as `Dropout2012` does. Eight bytes come from one
    draw, and drawing is nearly the whole cost: `nn.Dropout` draws for each number, in one thread, and its masks take
    fifteen times as long.
    """

    def __init__(self, p: float, scale_in_training: bool = True) -> None:
        super().__init__()
        self.p, self.scale_in_training = p, scale_in_training

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x if self.scale_in_training else x * (1 - self.p)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = (draws.view(torch.uint8)[: x.numel()].view(x.shape) >= round(256 * self.p)).to(x.dtype)
        return x * (kept.mul_(1 / (1 - self.p)) if self.scale_in_training else kept)

    def extra_repr(self) -> str:
        return f"p={self.p}, scale_in_training={self.scale_in_training}"


class _Largest(torch.autograd.Function):
    """The largest of P candidates, the first among equals: `(N, P, M)` to `(N, M)`.

    Forward it is max-pooling of a P×1 window over M channels in channels-last layout, so nothing is copied. Pooling's
    own backward would copy twice and return a layout in which the convolution's is twice as slow.
    """

    @staticmethod
    def forward(ctx: Any, candidates: Tensor) -> Tensor:
        n, p, m = candidates.shape
        windows = candidates.view(n, p, 1, m).permute(0, 3, 1, 2)
        largest, winner = F.max_pool2d(windows, (p, 1), return_indices=True)
        ctx.save_for_backward(winner.view(n, 1, m))
        ctx.candidates = p
        return largest.view(n, m)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (winner,) = ctx.saved_tensors
        n, _, m = winner.shape
        return gradient.new_zeros(n, ctx.candidates, m).scatter_(1, winner, gradient.view(n, 1, m))


def _moves(kernel_size: tuple[int, ...], size: int) -> Tensor:
    """The matrix of 0 and 1 that moves a flat k×k kernel to each of s² places: `(k², s²·(k+s−1)²)`.

    Places come in the order in which pooling walks a window. One product with it takes the place of s² paddings.
    """
    height, width = kernel_size
    kernels = torch.eye(height * width).view(-1, height, width)
    places = [(i, j) for i in range(size) for j in range(size)]
    moved = [F.pad(kernels, (j, size - 1 - j, i, size - 1 - i)) for i, j in places]
    return torch.stack(moved, dim=1).flatten(1)


def _pools_in_phases(conv: nn.Module, pool: nn.MaxPool2d) -> bool:
    """Whether `ConvPoolReLU` can stand for these two and gains: with more channels its wider kernel costs more."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.in_channels == 1
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and isinstance(pool.kernel_size, int)
        and pool.kernel_size == pool.stride
        and (pool.padding, pool.dilation, pool.ceil_mode) == (0, 1, False)
    )
