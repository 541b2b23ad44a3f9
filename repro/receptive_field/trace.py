"""A model run once without numbers, into a graph of what reads what.

The tensors are on the meta device: they have shapes and no contents, so nothing is copied or computed. A mode of torch
sees every function that is called, also where no module calls it; the rules of `functions` say what each one reads.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from repro.errors import ReproError
from repro.receptive_field.calls import Call, Outcome, TraceError, Value
from repro.receptive_field.functions import RULES
from repro.receptive_field.layout import MAP, NO_PLACES
from repro.receptive_field.windows import BOTH_SAME, Size, Windows, rule_of

IMAGES = 2  # in the batch: with one, `squeeze` would take the batch for a dimension to drop
# What torch says where a window is larger than the map that it is given.
TOO_SMALL = (
    "Kernel size can't be greater than",
    "Output size is too small",
    "should be less than the corresponding input dimension",
    "Calculated output size",
)
# What it says where a program asks for the contents of a tensor that has none.
NO_NUMBERS = ("meta tensor", "meta device", "data-dependent", "no data", "boolean value of tensor")
TORCH = Path(torch.__file__).parent
HERE = Path(__file__).parent


class InputTooSmall(TraceError):
    """A window of the net is larger than the map that it gets from this input."""


@dataclass
class Node:
    """A place in the net where units are: what a layer or function gives, and which earlier nodes it reads."""

    name: str
    kind: str
    extent: Size
    edges: tuple[tuple[int, Windows], ...]
    shown: bool = True
    windows: Windows = BOTH_SAME  # those that a table shows


@dataclass
class _Scope:
    """A module that is being run: its path, how many nodes there were before, and whether what it does is looked at."""

    path: str
    layer: nn.Module
    first: int
    opaque: bool


@dataclass
class _Tracer(TorchFunctionMode):
    """Collects the nodes of one run."""

    names: dict[nn.Module, str]
    nodes: list[Node] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)  # so that no id is used twice
    scopes: list[_Scope] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def find(self, x: Any) -> Value | None:
        """What is known of a tensor that depends on the image; None for all else."""
        if not isinstance(x, Tensor):
            return None
        if id(x) not in self.values and x.is_meta and id(x) not in self.constants:
            raise TraceError(
                f"{self.where()}: a tensor of shape {tuple(x.shape)} comes from an operation that cannot be watched, "
                "such as a compiled one; give the rule of the module that calls it with "
                "repro.receptive_field.register_window"
            )
        return self.values.get(id(x))

    def keep(self, output: Any, value: Value | None) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.kept.append(tensor)
                if value:
                    self.values[id(tensor)] = value
                else:
                    self.constants.add(id(tensor))

    def where(self) -> str:
        return self.scopes[-1].path if self.scopes and self.scopes[-1].path else "the model"

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        opaque = any(scope.opaque for scope in self.scopes)
        inputs = [] if opaque else _tensors((args, kwargs))
        depends = any(self.find(t) for t in inputs)
        try:
            output = function(*args, **kwargs)
        except RuntimeError as e:
            if any(text in str(e) for text in TOO_SMALL) and not opaque:
                raise self.too_small(_name(function), inputs, e) from e
            raise
        writes = depends and _name(function) == "setitem"
        if opaque or not (writes or _tensors(output)):  # a shape, a size
            return output
        self.keep(output, self.watch(function, args, kwargs, output) if depends else None)
        return output

    def watch(self, function: Any, args: Any, kwargs: Any, output: Any) -> Value | None:
        """The rule of a function, applied to a call that depends on the image."""
        name = _name(function)
        path = self.scopes[-1].path if self.scopes else ""
        call = Call(name, f"{path}.{name}".strip("."), args, output, self.find)
        if name not in RULES:
            raise call.unknown("it is not known")
        if kwargs.get("out") is not None:
            raise call.unknown("it writes into a tensor given as out=")
        if output is args[0] and output._is_view() and any(self.find(t) for t in _tensors((args[1:], kwargs))):
            raise call.unknown("it changes a part of a tensor in place; write the result into a new one")
        outcome = RULES[name](call, *args, **kwargs)
        return self.add(call.where, name, outcome) if outcome else None

    def add(self, name: str, kind: str, outcome: Outcome) -> Value:
        windows = next((w for _, w in outcome.edges if w != BOTH_SAME), BOTH_SAME)
        self.nodes.append(Node(name, kind, outcome.extent, outcome.edges, outcome.shown, windows))
        return Value(len(self.nodes) - 1, outcome.layout, outcome.extent)

    def enter(self, layer: nn.Module, _: Any) -> None:
        path = self.names[layer]
        opaque = rule_of(layer) is not None
        self.scopes.append(_Scope(path, layer, len(self.nodes), opaque))

    def leave(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        scope = self.scopes.pop()
        if any(outer.opaque for outer in self.scopes):
            return
        with torch._C.DisableTorchFunction():  # looking at a tensor here is no part of the net
            if scope.opaque:
                self.apply_rule(scope, _tensors((args, kwargs)), output)
            elif not any(layer.children()):
                self.name_layer(scope, output)

    def apply_rule(self, scope: _Scope, inputs: list[Tensor], output: Any) -> None:
        rule = rule_of(scope.layer)
        value = next((v for v in map(self.find, inputs) if v), None)
        if value is None or rule is None or not isinstance(output, Tensor):
            self.keep(output, None)
            return
        same = output.ndim == inputs[0].ndim and None not in value.layout.axes and not value.layout.is_flat
        layout = value.layout if same else NO_PLACES
        extent = tuple(output.shape[d] for d in layout.axes if d is not None)
        if value.layout.is_flat and output.shape == inputs[0].shape:
            layout, extent = value.layout, value.extent
        size = (extent[0], extent[1]) if extent else (1, 1)
        edges = ((value.node, rule(scope.layer, value.extent, size)),)
        kind = type(scope.layer).__name__
        self.keep(output, self.add(scope.path, kind, Outcome(layout, size, edges)))

    def name_layer(self, scope: _Scope, output: Any) -> None:
        """One row for a layer without children, if at most one of the functions it calls reads more than its place."""
        value = self.values.get(id(output)) if isinstance(output, Tensor) else None
        if value is None:
            return
        own = self.nodes[scope.first :]
        if not own:  # the layer does nothing
            edges = ((value.node, BOTH_SAME),)
            value = self.add(scope.path, "", Outcome(value.layout, value.extent, edges))
            self.keep(output, value)
            own = self.nodes[scope.first :]
        reading = [node for node in own if node.windows != BOTH_SAME]
        if len(reading) > 1 or value.node != len(self.nodes) - 1:
            return
        for node in own:
            node.shown = False
        last = own[-1]
        last.name, last.kind, last.shown = scope.path, type(scope.layer).__name__, True
        last.windows = reading[0].windows if reading else BOTH_SAME

    def too_small(self, name: str, inputs: list[Tensor], e: RuntimeError) -> InputTooSmall:
        value = next((v for v in map(self.find, inputs) if v), None)
        got = f" gets a map of {value.extent[0]}×{value.extent[1]}, which is too small for it:" if value else ":"
        return InputTooSmall(f"{self.where()} ({name}){got} {str(e).splitlines()[0]}")


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _name(function: Any) -> str:
    """The name of a function of torch, without the marks of operators and of methods that work in place."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property
        return str(getattr(function.__self__, "__name__", name))
    name = name.strip("_")
    return name[1:] if name in ("iadd", "isub", "imul", "itruediv", "radd", "rmul") else name


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> list[Node]:
    """The nodes of a model for one image `(C, H, W)`, in the order of computation; the first one is the image.

    The model is run in evaluation mode and left as it was. Raises `TraceError` where it cannot be traced.
    """
    names = {module: name for name, module in model.named_modules()}
    tracer = _Tracer(names)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(IMAGES, *input_size, dtype=dtype, device="meta")
    tracer.nodes.append(Node("input", "input", (input_size[1], input_size[2]), ()))
    tracer.keep(image, Value(0, MAP, (input_size[1], input_size[2])))
    state = {
        name: torch.empty_like(t, device="meta")
        for named in (model.named_parameters, model.named_buffers)
        for name, t in named(remove_duplicate=False)
    }
    tracer.keep(state, None)
    try:
        with _as_it_was(model), _watched(model, tracer), torch.no_grad(), tracer:
            torch.func.functional_call(model, state, (image,), tie_weights=False)
    except ReproError:
        raise
    except Exception as e:
        raise TraceError(_message(tracer, e)) from e
    return _with_numbers(tracer.nodes)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts, then each module's own again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _watched(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(tracer.enter))
            handles.append(module.register_forward_hook(tracer.leave, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def use_name(name: str, use: int) -> str:
    """What the second and later uses of a layer or function are called: `name:2`."""
    return name if use == 1 else f"{name}:{use}"


def _with_numbers(nodes: list[Node]) -> list[Node]:
    uses: Counter[str] = Counter()
    for node in nodes:
        if node.shown:
            uses[node.name] += 1
            node.name = use_name(node.name, uses[node.name])
    return nodes


def _message(tracer: _Tracer, e: Exception) -> str:
    """Where a model stops being traced: the line of its own code, what that line says, and what to do."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(p) for p in (TORCH, HERE))]
    line = f"{own[-1].filename}:{own[-1].lineno}: `{own[-1].line}`" if own else "its call"
    text = str(e).splitlines()[0] if str(e) else ""
    if any(
        word in str(e)
        for word in ("meta tensor", "Meta tensor", "meta device", "data-dependent", "Boolean value of Tensor")
    ):
        do = "sizes and branches must not depend on the values of tensors: here they have shapes only"
    else:
        do = "it fails for an input of this size; see that the model runs on it, or give input_size"
    return f"{tracer.where()} cannot be traced, {line} raises {type(e).__name__}: {text}; {do}"
