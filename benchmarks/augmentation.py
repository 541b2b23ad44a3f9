"""Augmented CIFAR-10 batches of 128 (random crop, flip, standardise): whole batches against one picture at a time."""

import time

import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms import functional as TF

from benchmarks.harness import OURS, Comparison, Side, alternate, require_close
from benchmarks.tutorial import WORKERS, dataset, loader
from repro.data import ImageSet, load
from repro.data.augmentation import Augmentation, Batches
from repro.data.random import permutation
from repro.training import load_recipe

GOAL = 12.0
BATCHES = 60  # of one round
CHECKED = 16  # pictures that are held against torchvision's


def compare(rounds: int) -> list[Comparison]:
    """Seconds per batch; no net is run."""
    recipe = load_recipe("alexnet-cifar10")
    images = load(recipe.data.name, fallback="shapes")
    chosen = Augmentation(recipe.augmentation.crop_padding, recipe.augmentation.flip)
    batches = Batches(images, images.mean, images.std, augmentation=chosen)
    samples, size = dataset(images, recipe), recipe.batch_size

    def ours() -> float:
        order = permutation(len(batches))[: BATCHES * size]
        start = time.perf_counter()
        for indices in order.split(size):
            batches.augmented(indices, seed=0, epoch=0)
        return (time.perf_counter() - start) / BATCHES

    def theirs(workers: int) -> Side:
        def side() -> float:
            order = torch.randperm(len(images))[: (BATCHES + 1) * size].tolist()
            loaded = iter(loader(Subset(samples, order), size, workers))
            next(loaded)  # starting the workers belongs to the epoch
            start = time.perf_counter()
            count = sum(1 for _ in loaded)
            return (time.perf_counter() - start) / count

        return side

    note = require_torchvision_pixels(images, batches)
    sides = {OURS: ours} | {f"torchvision, {n} workers": theirs(n) for n in WORKERS}
    seconds = alternate("CIFAR batch", sides, rounds)
    goal = GOAL if images.name == recipe.data.name else None
    return [Comparison("CIFAR batch, augmented", f"{images.name}, {len(images):,}", seconds, goal, notes=[note])]


def require_torchvision_pixels(images: ImageSet, batches: Batches) -> str:
    """Raise AssertionError unless each augmented picture is one of those torchvision's crop and flip can make of it."""
    indices = torch.arange(CHECKED)
    ours, _ = batches.augmented(indices, seed=0, epoch=0)
    theirs = torch.stack([_nearest(images, i, picture, batches) for i, picture in enumerate(ours)])
    return require_close("pixels", ours, theirs, tolerance=1e-6)


def _nearest(images: ImageSet, i: int, picture: Tensor, batches: Batches) -> Tensor:
    border, (height, width) = batches.augmentation.crop_padding, picture.shape[1:]
    padded = TF.pad(TF.to_pil_image(images.images[i].permute(2, 0, 1)), [border])
    made = []
    for top in range(2 * border + 1):
        for left in range(2 * border + 1):
            crop = TF.crop(padded, top, left, height, width)
            made += [TF.to_tensor(crop), TF.to_tensor(TF.hflip(crop))]
    candidates = TF.normalize(torch.stack(made), images.mean, images.std)
    return candidates[(candidates - picture).abs().flatten(1).amax(1).argmin()]
