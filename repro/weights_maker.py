"""Cutting small weights out of a finished run: `repro weights make RECIPE` writes what `repro.weights.load` reads."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from repro.data.augmentation import Batches
from repro.data.images import ImageSet
from repro.errors import RecipeError, ResourceError, UnknownName, nearest
from repro.evaluation import Trained, load_trained
from repro.files import write_atomic
from repro.progress import track
from repro.training import load_recipe
from repro.training.device import autocast
from repro.weights import FOLDER, MODEL, PLANS, PREPARATION, Manifest, cut

# Weight decays of the head; the best one on held-out training pictures stays.
DECAYS = (1e-2, 1e-1, 1.0)
HELD_OUT = 5  # every fifth training picture chooses the decay
PASSES, LEARNING_RATE, BATCH = 10, 1e-3, 100
SMALLEST_STD = 0.01  # of a unit, as a share of the mean over units


def make(recipe: str, seed: int, run_dir: Path, records_dir: Path) -> tuple[Path, Manifest]:
    """Cut, round, fit the head, measure, and write `weights/RECIPE.safetensors` with its manifest below the records.

    Raises `UnknownName` for a recipe of which the book keeps no weights, `CheckpointError` where the run is not there.
    """
    if recipe not in PLANS:
        raise UnknownName(f"weights of {recipe!r}: {nearest(recipe, PLANS)}")
    plan, trained = PLANS[recipe], load_trained(load_recipe(recipe), seed, run_dir, "cpu")
    train, test = trained.pictures.train_set, trained.pictures.test_set
    if not isinstance(train, ImageSet) or not isinstance(test, ImageSet):
        raise RecipeError(f"{recipe}: its pictures stream from disk; only sets in memory are known here")
    model = cut(trained.net.model, plan.layers, plan.head, len(train.classes), trained.net.input_size[1])
    model.eval().load_state_dict({name: _rounded(t) for name, t in model.state_dict().items()})
    head_fit: dict[str, Any] = {}
    if plan.head == "linear":
        head = model.get_submodule("head.1")
        assert isinstance(head, nn.Linear)
        with autocast(trained.device, trained.net.precision):
            codes = run(nn.Sequential(model.features, nn.Flatten()), _plain(trained, train), "features")
        head_fit = fit_head(head, codes, train.labels)
        head.load_state_dict({name: _rounded(t) for name, t in head.state_dict().items()})
    error = None
    if plan.head != "none":
        answers = run(model, _plain(trained, test), "testing").argmax(1)
        error = (answers != test.labels).double().mean().item()
    tensors = {MODEL + name: _half(t) for name, t in model.state_dict().items()}
    for key, values in (("mean", trained.pictures.mean), ("std", trained.pictures.std)):
        tensors[PREPARATION + key] = torch.tensor(values)[:, None, None]
    data = tensors_to_bytes({name: t.contiguous() for name, t in tensors.items()})
    side = trained.recipe.data.size or train.input_size[1]
    manifest = Manifest(
        recipe=recipe,
        seed=seed,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        model=trained.recipe.model,
        model_options=trained.recipe.model_options,
        layers=plan.layers,
        head=plan.head,
        classes=list(train.classes) if plan.head != "none" else [],
        size=side,
        crop=trained.net.input_size[1],
        fit="squash" if trained.recipe.data.fit == "squash" else "cut",
        head_error=error,
        head_fit=head_fit,
        run={
            "recipe_digest": trained.record.recipe_digest,
            "git": trained.record.git,
            "train_digest": train.digest,
            "test_digest": test.digest,
            "test_error": trained.record.last.test_error,
        },
    )
    return _write(records_dir / FOLDER / f"{recipe}.safetensors", data, manifest), manifest


def fit_head(head: nn.Linear, codes: Tensor, labels: Tensor) -> dict[str, Any]:
    """Fit a linear classifier to the flattened maps (N, D) of all training pictures; both are changed in place.

    Softmax regression by AdamW with a cosine rate, on features brought to mean 0 and variance 1; mean and variance are
    folded into the weights. Returns the weight decay and the errors on the held-out pictures that chose it.
    """
    mean, std = codes.mean(0), codes.std(0, correction=0)
    std.clamp_(min=SMALLEST_STD * std.mean())  # a unit that hardly ever answers would get weights beyond float16
    codes.sub_(mean).div_(std)
    held_out = torch.arange(len(labels)) % HELD_OUT == 0
    errors = {}
    for decay in track(DECAYS, len(DECAYS), "weight decays tried"):
        tried = _regression(codes[~held_out], labels[~held_out], head.out_features, decay)
        wrong = tried(codes[held_out]).argmax(1) != labels[held_out]
        errors[decay] = wrong.double().mean().item()
    chosen = min(errors, key=errors.__getitem__)
    fitted = _regression(codes, labels, head.out_features, chosen)
    with torch.no_grad():
        head.weight.copy_(fitted.weight / std)
        head.bias.copy_(fitted.bias - (fitted.weight / std) @ mean)
    return {"weight_decay": chosen, "held_out_errors": {str(key): value for key, value in errors.items()}}


def _regression(codes: Tensor, targets: Tensor, num_classes: int, decay: float) -> nn.Linear:
    layer = nn.Linear(codes.shape[1], num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=LEARNING_RATE, weight_decay=decay)
    steps = PASSES * -(-len(targets) // BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(PASSES):
        for chosen in torch.randperm(len(targets), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(codes[chosen]), targets[chosen]).backward()
            optimizer.step()
            rate.step()
    return layer.requires_grad_(False)


@torch.no_grad()
def run(model: nn.Module, batches: Batches, what: str) -> Tensor:
    """What a net gives for all pictures, in float32."""
    starts = range(0, len(batches), BATCH)
    found = [
        model(batches.plain(start, min(start + BATCH, len(batches)))[0])
        for start in track(starts, len(batches), what, BATCH)
    ]
    return torch.cat(found).float()


def _plain(trained: Trained, images: ImageSet) -> Batches:
    """A split's pictures as a `Preparation` has them: nothing at random, less the mean colour.

    A mean image, where the run had one, would take as much room as a layer.
    """
    pictures, border = trained.pictures, trained.recipe.data.border
    return Batches(images, pictures.mean, pictures.std, augmentation=pictures.test_batches.augmentation, border=border)


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _rounded(tensor: Tensor) -> Tensor:
    """A tensor as it will come out of the file."""
    return _half(tensor).to(tensor.dtype)


def _write(path: Path, data: bytes, manifest: Manifest) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        write_atomic(path.with_suffix(".json"), json.dumps(manifest.model_dump(), indent=1).encode())
    except OSError as e:
        raise ResourceError(f"{path}: the weights cannot be written ({e.strerror or e})") from e
    return path
