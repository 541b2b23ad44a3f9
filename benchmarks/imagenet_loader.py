"""Feeding a net with ImageNet, on one core: prepared shards against the pipeline that every example uses.

Made photographs of ImageNet's usual 500×375 as JPEG files. The other side reads those files themselves: torchvision's
`ImageFolder` with `RandomResizedCrop(224)`, flip, `ToTensor` and `Normalize` in a `DataLoader`. Ours reads what
`repro data prepare imagenet` made of them, 256×256, and cuts 224 and mirrors at random, through to standardised
batches. Both keep to one core, whatever the number of their threads; files and shards are in the page cache.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import functional as TF

from benchmarks.harness import OURS, Comparison, Side, alternate, require_close
from benchmarks.training import AS_GLIBC_DOES
from repro.data import ShardSet, load
from repro.data.augmentation import Augmentation, Batches
from repro.data.imagenet import prepare_imagenet
from repro.data.random import permutation
from repro.training.device import keep_freed_memory

PICTURES, SIZE, SHARD = 512, 64, 128
GOAL = 5.0  # from JPEG shards
QUALITY = 92  # gives files of 70 kB; ImageNet's have 110 kB on average, which decode more slowly
CROPS = Augmentation(crop=224, flip=True)


def compare(rounds: int) -> list[Comparison]:
    """Seconds per picture."""
    with tempfile.TemporaryDirectory() as folder, _one_core():
        copy = Path(folder) / "copy"
        _write(copy)
        sides = {"ImageFolder": _theirs(copy)}
        comparisons = []
        for encoding, goal in (("jpeg", GOAL), ("raw", None)):
            shards = _prepared(copy, Path(folder) / encoding, encoding)
            note = require_pillows_pixels(shards)
            seconds = alternate(f"{encoding} shards", sides | {OURS: _ours(shards)}, rounds)
            subject = f"ImageNet picture from {'JPEG' if encoding == 'jpeg' else encoding} shards, one core"
            comparisons.append(Comparison(subject, f"made, {PICTURES}", seconds, goal, notes=[note]))
    return comparisons


@contextmanager
def _one_core() -> Iterator[None]:
    """This process and its threads on one processor, where the system can be told; then as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    if before is not None:
        os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def _write(copy: Path) -> None:
    """Parts of the flower photographs, enlarged and with the grain of a camera: 500×375 pixels."""
    photographs = load("flowers", size=256, fallback="shapes").images
    generator = np.random.default_rng(0)
    for i in range(PICTURES):
        chosen = photographs[i % len(photographs), :192].numpy()
        enlarged = np.asarray(Image.fromarray(chosen).resize((500, 375), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = generator.normal(0, 6, enlarged.shape)
        path = copy / "train" / f"n{i % 8:08d}" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(enlarged + grain, 0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def _prepared(copy: Path, cache: Path, encoding: str) -> ShardSet:
    before = os.environ.get("REPRO_CACHE")
    os.environ["REPRO_CACHE"] = str(cache)
    try:
        return next(prepare_imagenet(copy, encoding=encoding, workers=1, partial=True, shard_size=SHARD))  # type: ignore[arg-type]
    finally:
        os.environ.pop("REPRO_CACHE")
        if before is not None:
            os.environ["REPRO_CACHE"] = before


def _ours(shards: ShardSet) -> Side:
    batches = Batches(shards, shards.mean, shards.std, augmentation=CROPS, workers=1)

    def side() -> float:
        keep_freed_memory()  # as in training
        order = permutation(len(shards), 0)
        start = time.perf_counter()
        batches.expect(order.split(SIZE))
        for indices in order.split(SIZE):
            batches.augmented(indices, seed=0, epoch=0)
        return (time.perf_counter() - start) / len(shards)

    return side


def _theirs(copy: Path) -> Side:
    steps = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    samples = datasets.ImageFolder(str(copy / "train"), transforms.Compose(steps))

    def side() -> float:
        keep_freed_memory(*AS_GLIBC_DOES)
        loaded = DataLoader(samples, batch_size=SIZE, shuffle=True)
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in loaded)
        return (time.perf_counter() - start) / count

    return side


def require_pillows_pixels(shards: ShardSet, count: int = 16) -> str:
    """Raise AssertionError unless batches are what Pillow and torchvision make of the shards with the same draws."""
    batches, indices = Batches(shards, shards.mean, shards.std, augmentation=CROPS, workers=1), torch.arange(count)
    ours, _ = batches.augmented(indices, seed=0, epoch=0)
    drawn = batches.draw(indices, seed=0, epoch=0)
    batches.close()
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    theirs: list[Tensor] = []
    for i, (shard, row) in enumerate(shards.locate(indices.tolist())):
        opened = shards.shard(shard)
        whole = (
            Image.fromarray(opened.pixels[row])
            if shards.encoding == "raw"
            else Image.open(io.BytesIO(opened.encoded(row)))
        )
        cut = TF.crop(whole, int(drawn.top[i]), int(drawn.left[i]), 224, 224)
        picture = TF.to_tensor(TF.hflip(cut) if drawn.mirrored[i] else cut)
        theirs.append(TF.normalize(picture, shards.mean, shards.std))
    return require_close("pixels", ours, torch.stack(theirs), tolerance=1e-6)
