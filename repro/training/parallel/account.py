"""What passes between the ranks in a step, and what a rank has to keep in memory: both derived from the net's shapes.

Neither runs a step. The exchanges made by hand count their bytes when they send them (`Wire.sent`); those of PyTorch's
engines are counted by the tests, from the collectives that it calls. Both agree with what is derived here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from repro.models.alexnet import COLUMNS
from repro.models.normalization import LocalResponseNorm, reach
from repro.models.summary import LayerCall, layer_calls
from repro.training.parallel.data import ring_bytes
from repro.training.parallel.hybrid import HEAD
from repro.training.parallel.split import sizes_of
from repro.training.parallel.wire import Phase

FLOAT = 4  # bytes of a parameter, its gradient and its velocity
PHASES: tuple[Phase, Phase] = "forward", "backward"


@dataclass(frozen=True)
class Traffic:
    """One exchange of a step: `sent` holds the bytes that each rank sends to all others together."""

    what: str
    phase: Phase
    sent: tuple[int, ...]


def traffic(
    model: nn.Module,
    input_size: tuple[int, int, int],
    mode: str,
    batch_size: int,
    *,
    world_size: int = COLUMNS,
    value_bytes: int = FLOAT,
    parameter_bytes: int = FLOAT,
) -> list[Traffic]:
    """The exchanges of one training step in `mode`; the schemes of hybrid send the same.

    What a rank sends in a collective of PyTorch is counted as if the ranks stood in a ring.

    `value_bytes` is the size of an activity, 4 in float32 and 2 in bfloat16; `parameter_bytes` that of a gradient.
    Raises ValueError for another mode.
    """
    calls = [c for c in layer_calls(model, input_size) if any(True for _ in c.layer.parameters()) or _is_norm(c)]
    if mode == "columns":
        return list(_columns(calls, batch_size * value_bytes))
    if mode == "data":
        return [_gradients(sum(p.numel() for p in model.parameters()) * parameter_bytes, world_size)]
    counts = sizes_of(batch_size, world_size)
    if mode == "hybrid":
        return list(_hybrid(calls, counts, value_bytes, parameter_bytes))
    if mode == "tensor":
        return list(_tensor(calls, counts, value_bytes, parameter_bytes))
    if mode == "fsdp":
        return list(_sharded(model, world_size, parameter_bytes))
    raise ValueError(f"no traffic in mode {mode!r}: columns, data, hybrid, tensor or fsdp")


def _is_norm(call: LayerCall) -> bool:
    return isinstance(call.layer, LocalResponseNorm)


def _columns(calls: list[LayerCall], size: int) -> Iterator[Traffic]:
    """What two columns exchange for activities of `size` bytes each, over the whole batch."""
    first, last = (c.name for c in (calls[0], calls[-1]))
    for call in calls:
        layer, half = call.layer, prod(call.input_shape) // COLUMNS * size
        if isinstance(layer, LocalResponseNorm):
            if layer.groups == 1:  # each lends the maps at its border
                lent = max(reach(layer.size, layer.convention)) * prod(call.input_shape[1:]) * size
                yield from (Traffic(call.name, phase, (lent, lent)) for phase in PHASES)
        elif call.name == last:  # the logits are rank 0's
            yield Traffic(call.name, "forward", (0, half))
            yield Traffic(call.name, "backward", (half, 0))
        elif call.name != first and getattr(layer, "groups", 1) == 1:
            yield from (Traffic(call.name, phase, (half, half)) for phase in PHASES)


def _hybrid(calls: list[LayerCall], counts: list[int], value_bytes: int, parameter_bytes: int) -> Iterator[Traffic]:
    """What the ranks exchange that each have `counts` of the pictures, and equal shares of the units."""
    head, trunk = _halves(calls)
    ranks, batch = range(len(counts)), sum(counts)
    for call in head:
        what = "features" if call is head[0] else call.name
        width = prod(call.input_shape)
        units = sizes_of(width, len(counts))
        own = [counts[r] * width if call is head[0] else batch * units[r] for r in ranks]
        # Forward each rank sends what it has to every other one; backward it sends them the gradient of what they had.
        yield Traffic(what, "forward", tuple(own[r] * (len(counts) - 1) * value_bytes for r in ranks))
        yield Traffic(what, "backward", tuple((sum(own) - own[r]) * value_bytes for r in ranks))
    outputs = sizes_of(prod(head[-1].output_shape), len(counts))
    sent = tuple(batch * outputs[r] * (len(counts) - 1) * value_bytes for r in ranks)
    yield Traffic(f"{head[-1].name} logits", "forward", sent)
    yield _gradients(trunk * parameter_bytes, len(counts))


def _tensor(calls: list[LayerCall], counts: list[int], value_bytes: int, parameter_bytes: int) -> Iterator[Traffic]:
    """The same by DTensor: the first layer split by outputs, the others by inputs, whose sums are shared out."""
    (first, *others), trunk = _halves(calls)
    ranks, batch = len(counts), sum(counts)
    features = batch * prod(first.input_shape) * value_bytes
    own = tuple(n * prod(first.input_shape) * (ranks - 1) * value_bytes for n in counts)
    yield Traffic("features", "forward", own)
    yield Traffic("features", "backward", (ring_bytes(features, ranks),) * ranks)
    for call in others:
        outputs = batch * prod(call.output_shape) * value_bytes
        if call is others[-1]:  # every rank gets the logits, and finds their gradient by itself
            yield Traffic(call.name, "forward", (ring_bytes(outputs, ranks),) * ranks)
        else:
            yield from (Traffic(call.name, p, (ring_bytes(outputs, ranks) // 2,) * ranks) for p in PHASES)
    yield _gradients(trunk * parameter_bytes, ranks)


def _sharded(model: nn.Module, ranks: int, parameter_bytes: int) -> Iterator[Traffic]:
    """FSDP2's: a unit's parameters are gathered forward and again backward, where its gradients are shared out."""
    linear = {name: list(m.parameters()) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    inside = {id(p) for parameters in linear.values() for p in parameters}
    units = {"all else": [p for p in model.parameters() if id(p) not in inside], **linear}
    for what, parameters in units.items():
        # Each is cut along its first dimension, and the last cuts filled up.
        share = sum(-(-len(p) // ranks) * p[0].numel() for p in parameters) * parameter_bytes
        yield Traffic(what, "forward", ((ranks - 1) * share,) * ranks)
        yield Traffic(what, "backward", (2 * (ranks - 1) * share,) * ranks)


def _halves(calls: list[LayerCall]) -> tuple[list[LayerCall], int]:
    """The fully connected layers, and the number of parameters before them."""
    head = [c for c in calls if c.name.startswith(f"{HEAD}.")]
    return head, sum(p.numel() for c in calls if c not in head and c.first for p in c.layer.parameters())


def _gradients(size: int, world_size: int) -> Traffic:
    return Traffic("gradients", "backward", (ring_bytes(size, world_size),) * world_size)


@dataclass(frozen=True)
class Memory:
    """Something that is in memory when the backward pass begins, in bytes."""

    what: str
    bytes: int


def memory(model: nn.Module, input_size: tuple[int, int, int], batch_size: int, ranks: int = 1) -> list[Memory]:
    """What training keeps on each of `ranks` that share every layer equally, in float32, by item.

    Weights, their gradients, their velocity, the batch, and what each layer gives, once: layers that work in place, as
    ReLU does, and those that pass their input on add nothing. What a layer's backward pass keeps besides, and what the
    ranks borrow from each other, is not in it: it is what any program needs at least.
    """
    parameters = sum(p.numel() for p in model.parameters()) * FLOAT // ranks
    rows = [Memory(what, parameters) for what in ("weights", "gradients", "velocity")]
    rows.append(Memory("batch", batch_size * prod(input_size) * FLOAT))
    for call in layer_calls(model, input_size):
        if not getattr(call.layer, "inplace", False):
            rows.append(Memory(call.name, batch_size * prod(call.output_shape) * FLOAT // ranks))
    return rows
