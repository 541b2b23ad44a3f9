"""What the functions between the layers read: rules for those of torch, by name, with the arguments that torch takes.

A name stands for the function of `torch`, of `torch.nn.functional`, and the method of a tensor, in place or not.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from repro.receptive_field.calls import Call, Outcome, spread
from repro.receptive_field.layout import Layout
from repro.receptive_field.windows import (
    BOTH_SAME,
    Mode,
    Resample,
    Share,
    Slide,
    Spread,
    Window,
    Windows,
    pair,
    slides,
)  # fmt: skip

MODES: dict[str, Mode] = {"nearest": "nearest", "nearest-exact": "nearest-exact", "bilinear": "linear"}
FunctionRule = Callable[..., Outcome | None]  # None: the result does not depend on the image's values
RULES: dict[str, FunctionRule] = {}


def rule(*names: str) -> Callable[[FunctionRule], FunctionRule]:
    def enter(function: FunctionRule) -> FunctionRule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def axes(make: Callable[[int], Window]) -> Windows:
    return make(0), make(1)


POINTWISE = """
relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus softsign
logsigmoid log_sigmoid threshold prelu rrelu tanhshrink softshrink hardshrink erf
dropout dropout2d alpha_dropout feature_alpha_dropout feature_dropout native_dropout batch_norm local_response_norm
add sub rsub mul div true_divide floor_divide rdiv rtruediv truediv floordiv rpow pow sqrt rsqrt exp expm1 log log1p
log2 abs neg negative pos positive square reciprocal sign round floor ceil sin cos clamp clip clamp_min clamp_max
maximum minimum where lerp addcmul addcdiv masked_fill nan_to_num eq ne lt le gt ge logical_and logical_or logical_not
"""
CONSTANT = """
zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor
"""


@rule(*POINTWISE.split())
def pointwise(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    return call.joined([a for a in (*args, *kwargs.values()) if call.find(a)])


@rule("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "data")
def plain(call: Call, x: Any, *args: Any, **kwargs: Any) -> Outcome:
    return call.moved(x, call.the(x).layout)


@rule(*CONSTANT.split())
def constant(call: Call, *args: Any, **kwargs: Any) -> None:
    return None


@rule("conv2d")
def conv2d(
    call: Call, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Outcome:  # fmt: skip
    return call.windowed(input, slides(tuple(weight.shape[2:]), stride, padding, dilation))


@rule("conv_transpose2d")
def conv_transpose2d(
    call: Call, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Outcome:  # fmt: skip
    s, p, d = pair(stride), pair(padding), pair(dilation)
    return call.windowed(input, axes(lambda a: Spread(weight.shape[2 + a], s[a], p[a], d[a])))


@rule("max_pool2d", "max_pool2d_with_indices")
def max_pool2d(
    call: Call,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
    **__: Any,
) -> Outcome:
    return call.windowed(input, slides(kernel_size, stride or kernel_size, padding, dilation))


@rule("avg_pool2d")
def avg_pool2d(
    call: Call, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, *_: Any, **__: Any
) -> Outcome:
    return call.windowed(input, slides(kernel_size, stride or kernel_size, padding))


@rule("lp_pool2d")
def lp_pool2d(
    call: Call, input: Any, norm_type: Any, kernel_size: Any, stride: Any = None, *_: Any, **__: Any
) -> Outcome:
    return call.windowed(input, slides(kernel_size, stride or kernel_size))


@rule("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices")
def adaptive_pool2d(call: Call, input: Any, *_: Any, **__: Any) -> Outcome:
    return _adaptive(call, input)


def _adaptive(call: Call, input: Any) -> Outcome:
    before, after = call.the(input).extent, call.first_output.shape[-2:]
    return call.windowed(input, axes(lambda a: Share(before[a], after[a])))


@rule("interpolate")
def interpolate(
    call: Call, input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Outcome:  # fmt: skip
    if mode == "area":
        return _adaptive(call, input)
    if mode not in MODES or antialias:
        raise call.unknown(f"mode {mode!r}{' with antialias' * antialias}; {', '.join(MODES)} and area have rules")
    before, after = call.the(input).extent, call.first_output.shape[-2:]
    factors = None if recompute_scale_factor else scale_factor

    def window(a: int) -> Window:
        n, m = before[a], after[a]
        if align_corners:
            return Resample(n, m, "linear", Fraction(n - 1, max(m - 1, 1)), align_corners=True)
        factor = factors[a] if isinstance(factors, tuple | list) else factors
        return Resample(n, m, MODES[mode], 1 / Fraction(str(factor)) if factor else Fraction(n, m))

    return call.windowed(input, axes(window))


@rule("pixel_shuffle")
def pixel_shuffle(call: Call, input: Any, upscale_factor: int) -> Outcome:
    extent = call.the(input).extent
    step = Fraction(1, upscale_factor)
    return call.windowed(input, axes(lambda a: Resample(extent[a], extent[a] * upscale_factor, "nearest", step)))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call, input: Any, downscale_factor: int) -> Outcome:
    return call.windowed(input, slides(downscale_factor, downscale_factor))


@rule("pad")
def pad(call: Call, input: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Outcome:
    """`pad` counts from the last dimension on, (before, after) for each."""
    given = call.the(input)
    before = {input.ndim - 1 - i // 2: pad[i] for i in range(0, len(pad), 2) if pad[i] or pad[i + 1]}
    if not before.keys() & set(given.layout.axes):  # channels only
        return Outcome(given.layout, given.extent, ((given.node, BOTH_SAME),))
    if given.layout.is_flat or None in given.layout.axes:
        raise call.unknown("it pads a map that is laid out in a row")
    border: Any = "zeros" if mode == "constant" else mode
    places = [d for d in given.layout.axes if d is not None]
    height, width = (call.first_output.shape[d] for d in places)
    windows = axes(lambda a: Slide(padding=before.get(places[a], 0), border=border))
    return Outcome(given.layout, (height, width), ((given.node, windows),))


@rule("linear")
def linear(call: Call, input: Any, weight: Any, bias: Any = None) -> Outcome:
    return _product(call, input)


def _product(call: Call, x: Any) -> Outcome:
    """A product with a matrix of weights over the last dimension: features, a map in a row, or channels put there."""
    if x.ndim - 1 in call.the(x).layout.axes:
        return call.over(x, [-1], keeps=False)
    return call.joined([x])


@rule("matmul", "mm")
def matmul(call: Call, x: Any, other: Any) -> Outcome:
    return _weighted(call, x, other)


def _weighted(call: Call, x: Any, other: Any) -> Outcome:
    if call.find(x) is None or call.find(other) or other.ndim != 2:
        raise call.unknown(
            "of two factors both, or the second, depend on the image: what is read depends on its values"
        )
    return _product(call, x)


@rule("addmm")
def addmm(call: Call, bias: Any, x: Any, other: Any, **_: Any) -> Outcome:
    if call.find(bias):
        raise call.unknown("what it adds depends on the image")
    return _weighted(call, x, other)


@rule("flatten", "view", "reshape", "unflatten", "reshape_as", "view_as")
def reshape(call: Call, x: Any, *_: Any, **__: Any) -> Outcome:
    return call.reshaped(x)


@rule("squeeze", "unsqueeze")
def unsqueeze(call: Call, x: Any, *dims: Any, **named: Any) -> Outcome:
    dim, value, ndim = (*dims, *named.values()), call.the(x), x.ndim
    if call.name == "unsqueeze":
        at = dim[0] % (ndim + 1)
        places = {d: d + (d >= at) for d in range(ndim)}
    else:
        asked = {d % ndim for d in (dim[0] if isinstance(dim[0], tuple | list) else dim)} if dim else set(range(ndim))
        left = [d for d in range(ndim) if not (d in asked and x.shape[d] == 1)]
        places = {d: i for i, d in enumerate(left)}
    return call.moved(x, value.layout.moved(places))


@rule("permute", "transpose", "swapaxes", "swapdims", "t", "movedim")
def permute(call: Call, x: Any, *args: Any, **named: Any) -> Outcome:
    given = (*args, *named.values())
    order = list(range(x.ndim))
    if call.name == "permute":
        order = [d % x.ndim for d in (given[0] if isinstance(given[0], tuple | list) else given)]
    elif call.name == "movedim":
        if not all(isinstance(d, int) for d in given):
            raise call.unknown("it moves several dimensions at once; permute has a rule")
        order.insert(given[1] % x.ndim, order.pop(given[0] % x.ndim))
    else:
        a, b = (d % x.ndim for d in given) if given else (0, 1)
        order[a], order[b] = b, a
    return call.moved(x, call.the(x).layout.moved({old: new for new, old in enumerate(order)}))


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call, x: Any, *_: Any, **__: Any) -> Outcome:
    value, new = call.the(x), call.first_output
    layout = value.layout.moved({d: d + new.ndim - x.ndim for d in range(x.ndim)})
    if layout.is_flat or None in layout.axes:
        if value.extent == (1, 1) and new.ndim == 4 and layout.axes == (None, None):
            raise call.unknown("features without a place are repeated over a map; give them two dimensions of 1 first")
        return call.moved(x, layout)
    height, width = (new.shape[d] for d in layout.axes if d is not None)
    windows = spread(value.extent, (height, width))
    return Outcome(layout, (height, width), ((value.node, windows),), shown=False)


@rule("cat", "concat", "concatenate")
def cat(call: Call, tensors: Any, dim: int = 0, **named: Any) -> Outcome:
    dim = named.get("axis", dim)
    found = [t for t in tensors if call.find(t)]
    values = [call.the(t) for t in found]
    dim %= found[0].ndim
    if any(dim in v.layout.axes and not v.layout.is_flat and v.layout.axes.count(dim) for v in values):
        raise call.unknown("it puts maps beside each other, not their channels")
    if len({v.extent for v in values}) > 1:  # rows of features from maps of different sizes: no places in common
        return call.gathered(found)
    return call.joined(found)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "narrow")
def split(call: Call, x: Any, size: Any, *args: Any, **named: Any) -> Outcome:
    dim = size if call.name == "narrow" else named.get("dim", args[0] if args else 0)
    if dim % x.ndim in call.the(x).layout.axes:
        raise call.unknown("it cuts a map into pieces, not its channels")
    return call.moved(x, call.the(x).layout)


@rule("getitem")
def getitem(call: Call, x: Any, index: Any) -> Outcome:
    value = call.the(x)
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, int | slice | None) and i is not Ellipsis for i in index):
        raise call.unknown("its index is a tensor or a list; slices and numbers have a rule")
    used = sum(i is not None and i is not Ellipsis for i in index)
    at = next((n for n, i in enumerate(index) if i is Ellipsis), len(index))
    full = (*index[:at], *[slice(None)] * (x.ndim - used), *index[at + 1 :])
    places, picked, old, new = {}, {}, 0, 0
    for i in full:
        if i is None:
            new += 1
            continue
        if isinstance(i, slice):
            places[old] = new
            new += 1
        picked[old] = i
        old += 1
    return _sliced(call, x, value.layout.moved(places), picked)


def _sliced(call: Call, x: Any, layout: Layout, picked: dict[int, Any]) -> Outcome:
    """The places that are left of a map: a slice of step 2 has a stride of 2, a number leaves one place."""
    value = call.the(x)
    whole = slice(None)
    windows: list[Window] = []
    extent = []
    for d, n in zip(value.layout.axes, value.extent, strict=True):
        i = whole if d is None else picked[d]
        if i != whole and value.layout.is_flat:
            raise call.unknown("it cuts a map that is laid out in a row")
        chosen = range(n)[i] if isinstance(i, slice) else range(n)[i : i + 1 or None]
        windows.append(Slide(1, chosen.step, -chosen.start))
        extent.append(len(chosen))
    cut = windows[0] != Slide() or windows[1] != Slide()
    return Outcome(layout, (extent[0], extent[1]), ((value.node, (windows[0], windows[1])),), shown=cut)


@rule("max", "min")
def extreme(call: Call, x: Any, *args: Any, **named: Any) -> Outcome:
    """Of two tensors place by place, or of one along a dimension."""
    tensors = [t for t in (x, *args, *named.values()) if isinstance(t, Tensor)]
    return call.joined([t for t in tensors if call.find(t)]) if len(tensors) > 1 else _reduced(call, x, *args, **named)


@rule("mean", "sum", "amax", "amin", "std", "var", "logsumexp", "norm")
def reduce(call: Call, x: Any, *args: Any, **named: Any) -> Outcome:
    return _reduced(call, x, *(args[1:] if call.name == "norm" else args), **named)


def _reduced(call: Call, x: Any, *args: Any, **named: Any) -> Outcome:
    dim = named.get("dim", args[0] if args else None)
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, tuple | list) else [dim]
    keeps_dim = call.first_output.ndim == x.ndim
    return call.over(x, list(dims), keeps=False, keeps_dim=keeps_dim)


@rule("softmax", "log_softmax", "normalize", "cumsum")
def along(call: Call, x: Any, *args: Any, **named: Any) -> Outcome:
    args = args[1:] if call.name == "normalize" else args
    dim = named.get("dim", args[0] if args else 1 if call.name == "normalize" or x.ndim in (2, 4) else 0)
    return call.over(x, [1 if dim is None else dim], keeps=True)


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call, input: Any, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Outcome:
    return call.over(input, list(range(-len(normalized_shape), 0)), keeps=True)


@rule("group_norm", "instance_norm")
def group_norm(call: Call, input: Any, *_: Any, use_input_stats: bool = True, **__: Any) -> Outcome:
    """With `use_input_stats` false the statistics are those that instance normalisation has kept: a constant."""
    return call.over(input, list(range(2, input.ndim)) if use_input_stats else [], keeps=True)
