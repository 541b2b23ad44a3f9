"""What the tests of ImageNet share: a copy of PNG files whose pixels are known, prepared into shards."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
from helpers import encode
from PIL import Image

from repro.data import ImageSet, ShardSet
from repro.data.imagenet import prepare_imagenet
from repro.data.images import channel_statistics


def write_copy(folder: Path, sizes: list[tuple[int, int]], classes: int = 3) -> dict[str, np.ndarray]:
    """Pictures of these sizes (height, width) as train/CLASS/*.PNG, the first 3 as val too; pixels by name."""
    generator = np.random.default_rng(7)
    pixels = {}
    for i, (height, width) in enumerate(sizes):
        pixels[f"{i}.PNG"] = picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ("train", "val")[: 2 if i < 3 else 1]:
            path = folder / split / f"c{i % classes}" / f"{i}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Image.fromarray(picture)))
    return pixels


def prepared(source: Path, **options: object) -> ShardSet:
    """The training split of a copy, in shards of four samples."""
    options = {"size": 12, "workers": 1, "partial": True, "shard_size": 4} | options
    return next(prepare_imagenet(source, **options))  # type: ignore[arg-type]


def names(images: ShardSet) -> list[str]:
    """The file names of all samples in their order."""
    return [Path(n).name for k in range(len(images.files)) for n in images.shard(k).column("name")]


def in_memory(images: ShardSet, pixels: dict[str, np.ndarray]) -> ImageSet:
    """The same samples as an ImageSet, from pixels that never were in a shard."""
    stacked = torch.from_numpy(np.stack([pixels[n] for n in names(images)]))
    mean, std = channel_statistics(stacked)
    labels = torch.tensor([int(n.split(".")[0]) % 3 for n in names(images)])
    return ImageSet("drawn", "train", stacked, labels, images.classes, "", "", mean, std)


def kill(job: object) -> None:
    """In the place of `make_shard`: what the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
