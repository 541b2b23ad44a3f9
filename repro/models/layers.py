"""Layers that `torch.nn` does not have, those of LeNet-5 and AlexNet as published, and the check of an input's shape.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86
(1998), section II-B and appendix A.  Chapter 2 teaches them.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section
4.2, and its source (computerhistory/AlexNet-Source-Code): windows that hang over the border, dropout without scaling,
and the unshared layers of the CIFAR-10 nets before it.  Chapters 3, 6 and 9 teach them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import ReproError
from repro.receptive_field import BOTH_SAME, Whole, Windows, output_size, register_window, slides


class InputShapeError(ReproError, ValueError):
    """A net was given an image of another size or with another number of channels than it was built for."""

    exit_code = 2


def check_input(x: Tensor, expected: tuple[int, int, int], model: str, *also: tuple[int, int, int]) -> None:
    """Raise `InputShapeError` unless `x` is `(N, C, H, W)` with `(C, H, W) == expected`, or one of `also`.

    Without it the fault surfaces layers later, as a product of matrices that do not fit.
    """
    allowed = (expected, *also)
    if x.ndim != 4 or tuple(x.shape[1:]) not in allowed:
        wanted = " or ".join("N×" + "×".join(map(str, shape)) for shape in allowed)
        found = "×".join(map(str, x.shape))
        raise InputShapeError(f"{model} expects a batch of shape {wanted}, found {found}")


class ScaledTanh(nn.Module):
    """The squashing function `A tanh(S x)`: elementwise, any shape.

    The constants make f(±1) = ±1 with the greatest curvature there, and a gain of about 1 in between, so that
    targets of ±1 lie inside the range (appendix A).
    """

    AMPLITUDE = 1.7159
    SLOPE = 2 / 3

    def forward(self, x: Tensor) -> Tensor:
        return self.AMPLITUDE * torch.tanh(self.SLOPE * x)


class TrainableSubsampling(nn.Module):
    """The sum over each 2×2 block, times a coefficient, plus a bias: one of each per map (section II-B).

    `(N, C, H, W)` becomes `(N, C, H // 2, W // 2)`. The squashing function that follows is not part of it.
    """

    BLOCK = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        init_by_fan_in(self.coefficient, self.BLOCK**2)
        init_by_fan_in(self.bias, self.BLOCK**2)

    def forward(self, x: Tensor) -> Tensor:
        block_sums = F.avg_pool2d(x, self.BLOCK, divisor_override=1)  # (N, C, H/2, W/2)
        return torch.addcmul(self.bias.view(-1, 1, 1), block_sums, self.coefficient.view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f"{self.channels}, block={self.BLOCK}"


class SparseConv2d(nn.Module):
    """A convolution in which each output map reads only the input maps that a table gives it.

    `table[o]` lists the input maps of output map `o`. Only the connected kernels are parameters, `weight` of
    shape (kernels, k, k) in the table's order; `forward` lays them into a dense kernel whose other entries are
    zero, which is faster than one small convolution per output map.
    """

    positions: Tensor

    def __init__(self, in_channels: int, table: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, len(table), kernel_size
        pairs = [(o, i) for o, inputs in enumerate(table) for i in inputs]
        if len(set(pairs)) != len(pairs) or any(not 0 <= i < in_channels for _, i in pairs):
            raise ValueError(f"each output map names each of {in_channels} inputs at most once: {table}")
        self.weight = nn.Parameter(torch.empty(len(pairs), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(self.out_channels))
        positions = torch.tensor([o * in_channels + i for o, i in pairs])
        self.register_buffer("positions", positions, persistent=False)  # part of the design, not of the state
        self._init_weights(table)

    def _init_weights(self, table: Sequence[Sequence[int]]) -> None:
        """A unit's fan-in is its own number of connected maps times k²."""
        area = self.kernel_size**2
        first = 0
        for o, inputs in enumerate(table):
            init_by_fan_in(self.weight[first : first + len(inputs)], len(inputs) * area)
            init_by_fan_in(self.bias[o], len(inputs) * area)
            first += len(inputs)

    def dense_weight(self) -> Tensor:
        """The kernel `(out_channels, in_channels, k, k)`, with zeros where the table has no connection."""
        k = self.kernel_size
        empty = self.weight.new_zeros(self.out_channels * self.in_channels, k, k)
        return empty.index_copy(0, self.positions, self.weight).view(self.out_channels, self.in_channels, k, k)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense_weight(), self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"kernels={len(self.weight)} of {self.out_channels * self.in_channels}"
        )


class RBFOutput(nn.Module):
    """Euclidean radial-basis units: `y_i = Σ_j (x_j − w_ij)²` against fixed codes (section II-B, equation 7).

    Takes `(N, features)` and returns the logits `−y`, shape `(N, num_classes)`: the largest is the nearest
    code. The codes are a buffer, not a parameter. Distances are computed in float32 even under autocast: they
    are small differences of large numbers, and bfloat16 keeps only eight bits of them.
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.clone())  # (num_classes, features)

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if x.is_meta else x.device.type  # a tensor without contents, which has no autocast
        with torch.autocast(device, enabled=False):
            x = x.to(self.codes.dtype)
            # ‖x − w‖² = ‖x‖² − 2 x·w + ‖w‖²: one matrix product, no (N, classes, features) difference.
            own = x.square().sum(dim=1, keepdim=True)  # (N, 1)
            return torch.addmm(-self.codes.square().sum(dim=1), x, self.codes.t(), alpha=2) - own

    def extra_repr(self) -> str:
        num_classes, features = self.codes.shape
        return f"{features}, {num_classes}"


def rounded_up_size(input_size: int, kernel_size: int, stride: int = 1, padding: int = 0) -> int:
    """The outputs of a layer of 2012 along one axis: 1 + ⌈(n + 2p − k) / s⌉; the last window may hang over the end.

    `nn.MaxPool2d` and `nn.AvgPool2d` give as many with `ceil_mode=True`, as long as the stride is at most the
    kernel. Raises ValueError as `output_size` does, where the kernel is wider than the padded input.
    """
    fits = output_size(input_size, kernel_size, stride, padding)
    return fits + ((input_size + 2 * padding - kernel_size) % stride > 0)


class RoundUpConv2d(nn.Conv2d):
    """A convolution whose last window may hang over the right and lower border, where it reads zeros.

    `(N, C, H, W)` to `(N, out_channels, H', W')` with H' = 1 + ⌈(H + 2p − k) / s⌉ (`modulesX` in the source's
    `layer.py`). So 224 pixels give 55 places to a kernel of 11 at stride 4, where `nn.Conv2d` finds 54.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
        self.window = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        k, s, p = self.window
        below, right = (-(n + 2 * p - k) % s for n in x.shape[-2:])
        return super().forward(F.pad(x, (0, right, 0, below)) if below or right else x)


class LocallyConnected2d(nn.Module):
    """A convolution of stride 1 without shared weights: every place has kernels and biases of its own.

    Square maps `(N, in_channels, S, S)` to `(N, out_channels, S', S')` with S' = S + 2·padding − kernel_size + 1.
    `weight` is `(S'², in_channels·kernel_size², out_channels)`, places line by line; `bias` `(out_channels, S', S')`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, input_size: int, kernel_size: int, padding: int = 0
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_size, self.kernel_size, self.padding = input_size, kernel_size, padding
        self.output_size = output_size(input_size, kernel_size, padding=padding)
        fan_in = in_channels * kernel_size**2
        self.weight = nn.Parameter(torch.empty(self.output_size**2, fan_in, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels, self.output_size, self.output_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)  # the bounds of `nn.Conv2d`

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, (self.in_channels, self.input_size, self.input_size), type(self).__name__)
        patches = F.unfold(x, self.kernel_size, padding=self.padding)  # (N, C·k², places)
        outputs = torch.bmm(patches.permute(2, 0, 1), self.weight)  # (places, N, out_channels)
        return outputs.permute(1, 2, 0).reshape(len(x), *self.bias.shape) + self.bias

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, "
            f"kernel_size={self.kernel_size}, padding={self.padding}"
        )


class Dropout2012(nn.Module):
    """Dropout as published: zero with probability `p` in training, times 1 − p in evaluation (section 4.2); any shape.

    `nn.Dropout` divides by 1 − p in training instead, and leaves evaluation alone; what a unit passes on has the same
    expectation in training and in evaluation either way, here smaller by 1 − p.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the probability p of dropping a unit is at least 0 and below 1, found {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1 - self.p)
        return x * torch.empty_like(x).bernoulli_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@register_window(ScaledTanh, Dropout2012)
def _(layer: nn.Module, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return BOTH_SAME


@register_window(TrainableSubsampling)
def _(layer: nn.Module, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return slides(TrainableSubsampling.BLOCK, TrainableSubsampling.BLOCK)


@register_window(SparseConv2d, RoundUpConv2d, LocallyConnected2d)
def _(layer: Any, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return slides(layer.kernel_size, getattr(layer, "stride", 1), getattr(layer, "padding", 0))


@register_window(RBFOutput)
def _(layer: nn.Module, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return Whole(input_size[0]), Whole(input_size[1])


@torch.no_grad()
def init_by_fan_in(weight: Tensor, fan_in: int) -> Tensor:
    """Draw from U(−2.4 / fan_in, 2.4 / fan_in), in place: the starting weights of 1998 (appendix A)."""
    bound = 2.4 / fan_in
    return weight.uniform_(-bound, bound)


def init_normal(layer: nn.Module, std: float, bias: float = 0.0) -> None:
    """Draw a layer's `weight` from N(0, std²) and set its `bias`: the starting values of 2012."""
    nn.init.normal_(layer.get_parameter("weight"), std=std)
    nn.init.constant_(layer.get_parameter("bias"), bias)
