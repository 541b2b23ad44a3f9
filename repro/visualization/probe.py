"""What every method of looking into a net needs: the net left as it was found, its maps, and honest refusals.

All methods take any `nn.Module` and standardised images, ask `untouched` for the net, `images_for` for the images and
`outputs` for what its layers give. Chapter 16 uses them first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repro.errors import ReproError, UnknownName, nearest

MEMORY = 1 << 30  # bytes that the maps of one batch may take, unless a caller says otherwise
PASSES = 2  # a layer's input and output are alive at once


class ProbeError(ReproError, ValueError):
    """A net, layer, unit or image that cannot be looked into in the way that was asked."""

    exit_code = 2


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """The net in evaluation mode, with no layer that works in place and no gradient for its weights.

    Afterwards, and after an error too, each module has its own mode, hooks and `inplace` again, and each parameter its
    `requires_grad`. `.grad` is never written: ask `torch.autograd.grad` for the gradient of an input.
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [module.training for module in modules]
    hooks = [{name: dict(kept) for name, kept in _hooks(module).items()} for module in modules]
    in_place = [(module, vars(module)["inplace"]) for module in modules if "inplace" in vars(module)]
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        model.eval()
        for module, _ in in_place:
            module.__dict__["inplace"] = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode, kept in zip(modules, modes, hooks, strict=True):
            module.training = mode
            for name, own in _hooks(module).items():
                for key in [key for key in own if key not in kept[name]]:
                    del own[key]
        for module, value in in_place:
            module.__dict__["inplace"] = value
        for parameter, needed in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(needed)


def _hooks(module: nn.Module) -> dict[str, dict[int, object]]:
    """The dictionaries in which torch keeps a module's hooks, by name."""
    return {name: kept for name, kept in vars(module).items() if "_hooks" in name and isinstance(kept, dict)}


def images_for(model: nn.Module, images: Tensor) -> Tensor:
    """Standardised images as a batch `(N, C, H, W)` of the net's own dtype, on its device; `(C, H, W)` is one image.

    Raises `ProbeError` for anything but finite floating-point images (a `Preparation` makes them), and for a net in
    half precision, whose small gradients would be zeros.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = f"{images.dtype} tensor" if isinstance(images, Tensor) else type(images).__name__
        raise ProbeError(
            f"image: standardised floats (N, C, H, W) are needed, found {found}; prepare(image) gives them"
        )
    if images.ndim not in (3, 4) or not images.numel():
        raise ProbeError(f"image: (C, H, W) or (N, C, H, W) is needed, found {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ProbeError("image: holds NaN or infinity; look at what made it")
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if weight is None else weight.dtype
    if dtype in (torch.float16, torch.bfloat16):
        raise ProbeError(f"model: its weights are {dtype}, too coarse for single pixels; use model.float()")
    device = images.device if weight is None else weight.device
    return (images if images.ndim == 4 else images[None]).detach().to(device, dtype)


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The module called `layer`, as `named_modules` calls it; raises `UnknownName` with the nearest names."""
    modules = dict(model.named_modules())
    if layer not in modules or layer == "":
        raise UnknownName(f"layer {layer!r}: this net has none of that name; {nearest(layer, filter(None, modules))}")
    return modules[layer]


def outputs(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """What each of `layers` gives for images that `images_for` has made: differentiable where the images ask for it.

    Of a layer that is used several times the last use counts. Call it inside `untouched`. Raises `UnknownName` for a
    layer that there is not, `ProbeError` for one that the net never calls or that gives no tensor.
    """
    found: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise ProbeError(f"layer {name}: gives {type(output).__name__}, not a tensor; choose one inside it")
            found[name] = output

        handles.append(find_layer(model, name).register_forward_hook(hook))

    try:
        for name in layers:
            keep(name)
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in found]:
        raise ProbeError(f"layer {missing[0]}: the net does not call it for this image")
    return found


def as_maps(layer: str, output: Tensor) -> Tensor:
    """The output itself if it is maps `(N, C, H, W)`; raises `ProbeError` for a layer without spatial extent."""
    if output.ndim != 4:
        raise ProbeError(f"layer {layer}: gives {tuple(output.shape[1:])} per image, not maps; choose one before it")
    return output


def check_unit(layer: str, shape: Sequence[int], unit: int | tuple[int, ...]) -> tuple[int, ...]:
    """`unit` as a tuple: a map, or a map, row and column, of a layer that gives `shape` (C, H, W) or (C,) per image.

    Raises `ProbeError` for one out of range.
    """
    chosen = (unit,) if isinstance(unit, int) else tuple(unit)
    if len(chosen) not in (1, len(shape)):
        raise ProbeError(f"layer {layer}: unit {unit}: a map or all of {len(shape)} numbers are needed")
    for value, size, what in zip(chosen, shape, ("map", "row", "column"), strict=False):
        if not 0 <= value < size:
            raise ProbeError(f"layer {layer}: {what} {value} is out of range: 0 to {size - 1}")
    return chosen


def batch_size(
    model: nn.Module,
    input_size: Sequence[int],
    memory: int = MEMORY,
    gradients: bool = False,
    answer: Callable[[Tensor], object] | None = None,
) -> int:
    """How many images `(C, H, W)` may pass at once so that their maps take at most `memory` bytes; at least 1.

    Without gradients two neighbouring layers are alive at once, with them all. One image is run to see its maps, by the
    whole net or by `answer`, which may stop before its end.
    """
    sizes: list[int] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    weight = next(model.parameters(), torch.empty(0))
    leaves = [module for module in model.modules() if not list(module.children())]
    with untouched(model), torch.no_grad():
        for leaf in leaves:
            leaf.register_forward_hook(hook)  # `untouched` takes it away again
        (answer or model)(torch.zeros(1, *input_size, dtype=weight.dtype, device=weight.device))
    each = 2 * sum(sizes) if gradients else PASSES * max(sizes, default=1)
    return max(1, memory // max(each, 1))
