"""Small trained nets that come with the book, to look into: convolutions in float16, and a linear head.

Chapters 16 to 20 use them. `repro weights make` cuts one out of a finished run: the convolutions stay as they were
trained, rounded to float16, and in place of the large fully connected layers a linear classifier is fitted to what they
give. A file of weights has a manifest beside it (JSON) with its sha256, the run's record and its own test error.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from repro import records
from repro.data.preparation import Preparation
from repro.errors import CheckpointError, ReproError, ResourceError, UnknownName, nearest
from repro.fetch import FetchError, Published, fetch_file
from repro.files import read_model
from repro.models import get_model
from repro.models.normalization import LocalResponseNorm
from repro.tensors import read_tensors

FOLDER = "weights"  # in that of the records
MODEL, PREPARATION = "model/", "preparation/"
IMAGENET_SIZE, IMAGENET_CROP = 256, 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of its training

REMEDY = "bring it back: git checkout -- records/weights"

Which = Literal["book", "imagenet"]


@dataclass(frozen=True)
class Plan:
    """What is kept of a recipe's net: its first `layers` of `features` (None: all), and with which head.

    `head` is "own" (the net's own classifier), "linear" (fitted anew) or "none": convolutions alone. `imagenet` names
    torchvision's net that takes the place of this one.
    """

    layers: int | None
    head: Literal["own", "linear", "none"]
    imagenet: str | None


# All thirteen convolutions of VGG-16 would take 29 MB in float16; its first four blocks take 15.
PLANS = {
    "lenet5-modern": Plan(None, "own", None),
    "alexnet-cifar10-5": Plan(None, "linear", "alexnet"),
    "vgg16-bn-cifar10-5": Plan(34, "linear", "vgg16_bn"),
    "vgg16-cifar10-5": Plan(5, "none", None),
    "vgg8-cifar10-5": Plan(5, "none", None),
    "flowers-report": Plan(None, "linear", "alexnet"),
}


class Manifest(BaseModel):
    """What a file of weights is and where it comes from; errors are fractions, of float16 weights run in float32."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    seed: int
    bytes: int
    sha256: str
    model: str
    model_options: dict[str, Any]
    layers: int | None
    head: str
    classes: list[str]
    size: int
    crop: int
    fit: Literal["cut", "squash"]
    head_error: float | None
    """The share of the test pictures that trunk and head together get wrong; None without a head."""
    head_fit: dict[str, Any]
    """How the head was fitted: the strength of its regularisation, chosen on the training pictures alone."""
    run: dict[str, Any]
    """The run's digest of recipe, commit, data digests, and its own test error with all of its layers."""


class Trunk(nn.Module):
    """Convolutions and a head: `(N, C, H, W)` to logits `(N, K)`, or to maps `(N, C', H', W')` where there is no head.

    Layers are called `features.…` and `head.…`.
    """

    def __init__(self, features: nn.Module, head: nn.Module, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.features, self.head, self.input_size = features, head, input_size

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Pretrained:
    """A trained net to look into: in evaluation mode, on the CPU, in float32.

    `model` maps what `prepare` makes of pictures to logits, in the order of `classes`. `source` says in a sentence
    which weights these are; `error` is the share of the test pictures that they get wrong, None where that is not known
    or the net has no head.
    """

    name: str
    model: nn.Module
    prepare: Preparation
    classes: tuple[str, ...]
    source: str
    error: float | None
    record: records.Record | None

    @property
    def convolutions(self) -> tuple[str, ...]:
        """The names of the convolutions, in the order of their use."""
        return tuple(name for name, layer in self.model.named_modules() if isinstance(layer, nn.Conv2d))


def names() -> list[str]:
    """The nets that `load` knows, named as the recipes that trained them."""
    return sorted(PLANS)


def load(name: str, weights: Which = "book", folder: Path | None = None) -> Pretrained:
    """A trained net: the book's own, or torchvision's of the same plan, trained on ImageNet, from its cache or the web.

    Raises `UnknownName`, `CheckpointError` for a file that is missing, damaged or of another net, and `ResourceError`
    where torchvision's weights are neither in its cache nor to be had.
    """
    if name not in PLANS:
        raise UnknownName(f"weights {name!r}: {nearest(name, PLANS)}")
    if weights == "imagenet":
        return _imagenet(name)
    if weights != "book":
        raise UnknownName(f"weights={weights!r}: {nearest(str(weights), ('book', 'imagenet'))}")
    stated, tensors = read(name, folder)
    what = f"weights of {name}"
    try:
        model = empty(stated)
    except (ReproError, TypeError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{what}: no net is as their manifest says ({e}); {REMEDY}") from e
    fill(model, {k.removeprefix(MODEL): t for k, t in tensors.items() if k.startswith(MODEL)}, what)
    mean, std = (tensors.get(PREPARATION + key, torch.empty(0)).float() for key in ("mean", "std"))
    if not mean.shape == std.shape == (model.input_size[0], 1, 1):
        raise CheckpointError(
            f"{what}: the mean and deviation of {model.input_size[0]} channels are not there; {REMEDY}"
        )
    prepare = Preparation(stated.size, stated.crop, mean, std, stated.fit)
    found = [r for r in records.load(name, folder.parent if folder else None) if r.seed == stated.seed]
    trained = f"{len(found[0].epochs)} passes over {found[0].data['name']}" if found else "a run without a record here"
    source = f"Weights of this book: recipe {name}, seed {stated.seed}, {trained}."
    return Pretrained(
        name, model, prepare, tuple(stated.classes), source, stated.head_error, found[0] if found else None
    )


def weights_dir(folder: Path | None = None) -> Path:
    """Where the files of weights are: `folder`, or beside the records."""
    return folder or records.records_dir() / FOLDER


def manifest(name: str, folder: Path | None = None) -> Manifest:
    """What a file of weights says of itself; raises `CheckpointError` where it is missing or damaged."""
    return read_model(Manifest, weights_dir(folder) / f"{name}.json", "manifest of weights", REMEDY)


def read(name: str, folder: Path | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """A file of weights and its manifest, the bytes held against their sha256; raises `CheckpointError`."""
    stated, path = manifest(name, folder), weights_dir(folder) / f"{name}.safetensors"
    return stated, read_tensors(path, stated.bytes, stated.sha256, f"{name}.json", REMEDY)


def empty(manifest: Manifest) -> Trunk:
    """The net that a manifest speaks of, on the meta device: shapes without weights."""
    with torch.device("meta"):
        net = get_model(manifest.model, **manifest.model_options)
        return cut(net, manifest.layers, manifest.head, len(manifest.classes), manifest.crop)


def cut(net: nn.Module, layers: int | None, head: str, num_classes: int, side: int) -> Trunk:
    """The first `layers` of `net.features` under a head, for squares of `side` pixels; modules are those of `net`."""
    features = net.get_submodule("features")
    if not isinstance(features, nn.Sequential):
        raise CheckpointError(f"{type(net).__name__}: its features are no chain of layers, so nothing is cut out")
    kept = nn.Sequential(OrderedDict(list(features.named_children())[:layers]))
    channels = next((layer.in_channels for layer in kept.modules() if isinstance(layer, nn.Conv2d)), None)
    if channels is None:
        raise CheckpointError(f"{type(net).__name__}: no convolution is among its first {layers} layers")
    input_size = channels, side, side
    top: nn.Module = nn.Identity()
    if head == "own":
        top = nn.Sequential(nn.Flatten(), *net.get_submodule("classifier").children())
    elif head == "linear":
        device = next(kept.parameters()).device
        with torch.no_grad():
            maps = kept.eval()(torch.zeros(1, *input_size, device=device))
        top = nn.Sequential(nn.Flatten(), nn.Linear(maps.numel(), num_classes))
    return Trunk(kept, top, input_size)


def fill(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Give a net of the meta device its weights, as float32, and set it to evaluation.

    Raises `CheckpointError` naming the first tensor that is missing, unknown or of another shape.
    """

    def form(t: Tensor) -> str:
        return f"{tuple(t.shape)}{'' if t.is_floating_point() else ' of whole numbers'}"

    wanted, present = ({name: form(t) for name, t in one.items()} for one in (model.state_dict(), state))
    for name in sorted(wanted.keys() | present.keys()):
        own, found = wanted.get(name, "none"), present.get(name, "none")
        if own != found:
            raise CheckpointError(f"{what}: {name}: this net has {own}, the file {found}")
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()


def _imagenet(name: str) -> Pretrained:
    """torchvision's net in the place of one of ours, its layers called as ours are."""
    import torchvision

    builder = PLANS[name].imagenet
    if builder is None:
        raise UnknownName(
            f"weights {name!r}: there is no ImageNet net in its place; there is for "
            f"{', '.join(n for n, plan in PLANS.items() if plan.imagenet)}"
        )
    entry = torchvision.models.get_model_weights(builder).DEFAULT
    state = _torchvision_state(entry.url)
    with torch.device("meta"):
        net = getattr(torchvision.models, builder)()
    fill(net, state, f"torchvision's {builder}")
    book = empty(manifest(name)).features
    names = [n for n, layer in book.named_children() if not isinstance(layer, LocalResponseNorm)]  # it has none
    layers = dict(zip(names, net.features, strict=False)) if len(names) == len(net.features) else net.features._modules
    head = nn.Sequential(net.avgpool, nn.Flatten(), *net.classifier)
    model = Trunk(nn.Sequential(OrderedDict(layers)), head, (3, IMAGENET_CROP, IMAGENET_CROP)).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    source = f"torchvision's {builder}, trained on ImageNet ({entry})."
    error = 1 - entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
    prepare = Preparation(IMAGENET_SIZE, IMAGENET_CROP, mean, std)
    return Pretrained(name, model, prepare, tuple(entry.meta["categories"]), source, error, None)


def _torchvision_state(url: str) -> dict[str, Tensor]:
    """torchvision's weights from its cache or the web, held against the digits of their sha256 in the file's name."""
    file = url.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch_file(Published(file, (url,), "sha256", _digits(file)), path.parent)
        except (OSError, FetchError) as e:
            raise ResourceError(
                f"{path}: torchvision's weights are not there and cannot be fetched ({e}); put {url} there, "
                'or use weights="book"'
            ) from e
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(_digits(file)):
        raise CheckpointError(f"{path}: damaged: its sha256 does not begin with {_digits(file)}; remove it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError) as e:
        raise CheckpointError(f"{path}: not readable ({e}); remove it") from e


def _digits(file: str) -> str:
    """`alexnet-owt-7be5be79.pth` begins its sha256 with 7be5be79."""
    return file.removesuffix(".pth").rsplit("-", 1)[1]
