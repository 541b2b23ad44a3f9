"""Which pixels a unit reads, told by autograd: the check that the arithmetic of this package is held against.

Nothing here knows a formula for sizes or windows. The net runs with a positive constant for every weight, and with a
twin in the place of each function whose gradient may vanish or be negative; then a pixel's gradient is a sum of
positive terms, one for each path from the pixel to the unit. No two of them cancel, so the gradient is zero where there
is no path and nowhere else, as long as nothing underflows: weights are 1 / fan-in, so that a path loses a factor of
its windows' areas alone, and float64 has room for 300 layers of 3×3. Araujo, Norris & Sim, *Computing receptive fields
of convolutional neural networks* (2019), define the field by these paths. Chapter 13 teaches it.

The price of a convolution with one weight throughout is that of a single map: it sums its input maps first.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repro.errors import UnknownName, nearest
from repro.receptive_field.table import UnitError, full_size

Twin = Callable[..., Any]


def gradient_support(
    model: nn.Module, layer: str, row: int, col: int, input_size: int | Sequence[int] | None = None
) -> Tensor:
    """The pixels with a gradient in unit (`row`, `col`) of a layer, summed over its maps: bool `(H, W)`.

    `layer` names a module as `named_modules` does, with `:2` for the second time that it is called; functions between
    modules have no name here. A fully connected layer has the one unit (0, 0). The model is run in evaluation mode
    and left as it was; its weights are neither read nor copied, and those on the meta device serve as well. Every map
    counts as connected unless the model itself lays zeros between the weights.
    Raises `UnknownName` for a layer that is not there or does not run and `UnitError` for a unit outside it.
    """
    channels, height, width = full_size(model, input_size)
    image = torch.ones(1, channels, height, width, dtype=torch.float64, requires_grad=True)
    state = _positive_state(model)
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if not any(module.children()) and not type(module).__module__.startswith("torch.nn."):
                stack.callback(module.register_forward_pre_hook(_unsigned).remove)
        stack.enter_context(_Positive())
        maps = layer_output(model, layer, lambda: torch.func.functional_call(model, state, image))
    unit = unit_of(maps, layer, row, col)
    if not unit.requires_grad:  # its windows lie in the padding, or reach nothing of the image
        return torch.zeros(height, width, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(unit.sum(), image)
    return gradient[0].ne(0).any(dim=0)


class _Reached(Exception):
    """Ends the forward pass: what lies above the layer does not matter."""


def layer_output(model: nn.Module, layer: str, run: Callable[[], object]) -> Tensor:
    """What a layer returns while `run` runs the model in evaluation mode, `(N, C, H, W)` with its graph.

    Features in a row, `(N, C)`, are maps of one unit. Raises as `gradient_support` does. Modes and hooks are as before
    afterwards, whatever happens.
    """
    name, _, occurrence = layer.partition(":")
    modules = dict(model.named_modules())
    if name not in modules or (occurrence and not occurrence.isdecimal()):
        raise UnknownName(f"no layer is called {layer!r}; {nearest(layer, modules)} (functions have no name here)")
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)
        if len(outputs) == int(occurrence or 1):
            raise _Reached

    training = {module: module.training for module in modules.values()}
    hook = modules[name].register_forward_hook(keep)
    try:
        model.eval()
        with contextlib.suppress(_Reached):
            run()
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    if len(outputs) < int(occurrence or 1):
        raise UnknownName(f"{layer!r} does not run: {name} is called {len(outputs)} times for one image")
    if not isinstance(outputs[-1], Tensor) or outputs[-1].ndim not in (2, 4):
        raise UnitError(f"the output of {layer} is no batch of maps or of features, so that it has no units")
    return outputs[-1] if outputs[-1].ndim == 4 else outputs[-1][:, :, None, None]


def unit_of(maps: Tensor, layer: str, row: int, col: int) -> Tensor:
    """Unit (`row`, `col`) of every map, `(N, C)`; raises `UnitError` for one outside the layer."""
    rows, cols = maps.shape[2:]
    if not (0 <= row < rows and 0 <= col < cols):
        raise UnitError(f"{layer} has units (0, 0) to ({rows - 1}, {cols - 1}), found ({row}, {col})")
    return maps[:, :, row, col]


def _unsigned(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a layer reads, as a copy whose gradient loses its signs before it joins those of other layers.

    For layers that are not torch's: they may compute a gradient by themselves, with terms of both signs, and may not
    expect equal maps that share memory.
    """

    def copy(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.requires_grad):
            return x
        seen = x.clone(memory_format=torch.contiguous_format)
        seen.register_hook(torch.abs)
        return seen

    return tuple(map(copy, inputs))


def _positive_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers for `functional_call`: 1 / fan-in, or 1 for vectors; a constant takes no memory.

    Buffers keep their magnitudes, since a mask's zeros are connections that the net does not have.
    """

    def constant(like: Tensor) -> Tensor:
        fan_in = like[0].numel() if like.ndim > 1 and len(like) else 1
        return torch.tensor(1 / max(1, fan_in), dtype=torch.float64).expand(like.shape)

    state = {name: constant(parameter) for name, parameter in model.named_parameters()}
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            state[name] = constant(buffer) if buffer.is_meta else buffer.detach().abs().double()
    return state


class _Positive(TorchFunctionMode):
    """Gives every function that a model calls its twin, if it has one; not where a layer computes its own gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_") if torch.is_grad_enabled() else ""
        return TWINS.get(name, func)(*args, **(kwargs or {}))


def _pass(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """For activations, and for norms that look at one place only: a line through zero, and values up to 1.

    The bound keeps the products of gates, and the sums of a thousand residual blocks, from overflowing.
    """
    values = _one_of_equals(x)
    return (values / values.detach().amax().clamp(min=1.0)).expand_as(x)


def _pass_and_mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Every unit reads itself and all others along `dims`."""
    return _pass(x + x.mean(dims, keepdim=True))


def _group_norm(x: Tensor, num_groups: int, *_: Any, **__: Any) -> Tensor:
    return _pass_and_mean(x.unflatten(1, (num_groups, -1)), tuple(range(2, x.ndim + 1))).flatten(1, 2)


def _instance_norm(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return _pass_and_mean(x, tuple(range(2, x.ndim)))


def _layer_norm(x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Tensor:
    return _pass_and_mean(x, tuple(range(-len(normalized_shape), 0)))


def _softmax(x: Tensor, dim: int = 1, *_: Any, **__: Any) -> Tensor:
    return _pass_and_mean(x, (dim,))


def _is_constant(weight: Tensor) -> bool:
    """Whether one number stands for all: known from the strides of `_positive_state`'s tensors."""
    return all(stride == 0 or size == 1 for stride, size in zip(weight.stride(), weight.shape, strict=True))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not _is_constant(weight):
        return F.linear(x, weight, bias)
    return x.mean(-1, keepdim=True).expand(*x.shape[:-1], len(weight))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """With one weight throughout, all maps of a group are the same box filter over the mean of its inputs."""
    if not _is_constant(weight):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    means = x.unflatten(1, (groups, -1)).mean(2).flatten(0, 1).unsqueeze(1)  # (N·groups, 1, H, W)
    box = _box(weight.shape[2:])
    return _same_maps(F.conv2d(means, box, None, stride, padding, dilation), len(x), groups, len(weight))


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    if not _is_constant(weight):
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    means = x.unflatten(1, (groups, -1)).mean(2).flatten(0, 1).unsqueeze(1)
    spread = F.conv_transpose2d(means, _box(weight.shape[2:]), None, stride, padding, output_padding, 1, dilation)
    return _same_maps(spread, len(x), groups, weight.shape[1] * groups)


def _box(kernel_size: Any) -> Tensor:
    """The mean over a window, `(1, 1, k, k)`."""
    return torch.full((1, 1, *kernel_size), 1 / math.prod(kernel_size), dtype=torch.float64)


def _same_maps(maps: Tensor, batch: int, groups: int, channels: int) -> Tensor:
    """`(N·groups, 1, H, W)` to `(N, channels, H, W)`: every group's map as often as it has outputs."""
    shared = maps.view(batch, groups, 1, *maps.shape[2:])
    return shared.expand(-1, -1, channels // groups, -1, -1).flatten(1, 2)


def _max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The mean over the same windows; zeros in the padding and under a window that hangs over add nothing."""
    if return_indices:
        raise UnitError("a pooling layer that returns indices moves its inputs by their values, not by arithmetic")
    (kh, kw), (ph, pw) = _pair(kernel_size), _pair(padding)
    maps = _one_of_equals(x)
    # torch alone says how many windows there are; a meta tensor is asked, since that costs nothing
    shape = F.max_pool2d(maps.detach().to("meta"), kernel_size, stride, padding, dilation, ceil_mode).shape
    stride, dilation = _pair(stride or kernel_size), _pair(dilation)
    below, right = (s * (n + 1) + d * k for s, n, d, k in zip(stride, shape[2:], dilation, (kh, kw), strict=True))
    planes = F.pad(maps.flatten(0, 1).unsqueeze(1), (pw, right, ph, below))
    means = F.conv2d(planes, _box((kh, kw)), None, stride, 0, dilation)[..., : shape[2], : shape[3]]
    return means.reshape(shape).expand(-1, x.shape[1], -1, -1)


def _adaptive_max_pool2d(x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    return F.adaptive_avg_pool2d(x, output_size)


def _pair(value: Any) -> tuple[int, int]:
    """PyTorch's short forms for two axes: a number, one in a list, or both."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def _one_of_equals(x: Tensor) -> Tensor:
    """The one map that `_same_maps` repeated, as a mean: its gradient, unlike that of a slice, needs no memory."""
    return x.mean(1, keepdim=True) if x.ndim > 1 and x.stride(1) == 0 and x.shape[1] > 1 else x


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return x.mean(dim, keepdim) if dim is not None else x.mean()


def _add(x: Any, y: Any, *_: Any, alpha: float = 1, **__: Any) -> Any:
    """Sums and differences: what is taken away is read as well. Never in place, where equal maps share memory."""
    return x + y * abs(alpha)


def _multiply(x: Any, y: Any, *_: Any, **__: Any) -> Any:
    """Products and quotients; a number's sign and size mean nothing."""
    return x * y if isinstance(x, Tensor) and isinstance(y, Tensor) else x if isinstance(x, Tensor) else y


_ELEMENTWISE = """
relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish tanh sigmoid hardtanh hardswish hardsigmoid softplus
softsign softshrink hardshrink tanhshrink logsigmoid threshold clamp clip clamp_min clamp_max abs neg square sqrt
rsqrt reciprocal pow exp log erf dropout dropout1d dropout2d alpha_dropout feature_alpha_dropout batch_norm
local_response_norm
"""
_SUMS = "add radd iadd sub rsub isub subtract maximum minimum"
_PRODUCTS = "mul rmul imul multiply div divide true_divide truediv rtruediv itruediv"
TWINS: dict[str, Twin] = {  # by name, whether a function of torch, an operator or a method, in place or not
    **dict.fromkeys(_ELEMENTWISE.split(), _pass),
    **dict.fromkeys(_SUMS.split(), _add),
    **dict.fromkeys(_PRODUCTS.split(), _multiply),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), _softmax),
    **dict.fromkeys(("amax", "amin"), _mean),
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "max_pool2d": _max_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
}
