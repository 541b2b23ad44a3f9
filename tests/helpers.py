"""Small builders that several tests share: tiny parquet sets, a tiny net, a tiny recipe."""

import gzip
import hashlib
import io
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from repro.data import ImageSet
from repro.models import registry
from repro.training.recipe import Recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("cat", "dog", "eel")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(n: int, side: int = 6, seed: int = 0) -> np.ndarray:
    """uint8 (n, side, side, 3), every pixel drawn."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def drawn_set(n: int, height: int, width: int, channels: int) -> ImageSet:
    """`n` pictures with every pixel drawn; labels are the indices."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return ImageSet("drawn", "train", images, torch.arange(n), ("a",), "", "", (), ())


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    classes: Sequence[str] | None = CLASSES,
    **columns: pa.Array,
) -> Path:
    """One file in the layout of the hub; `columns` replace those of the same name, `classes` may be left out."""
    rows = [None if i is None else {"bytes": i, "path": None} for i in images]
    table = pa.table({"image": pa.array(rows, IMAGE), "label": pa.array(labels, pa.int64())} | columns)
    if classes is not None:
        features = {"info": {"features": {"label": {"names": list(classes)}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def idx_file(array: np.ndarray) -> bytes:
    """MNIST's format: two zeros, the type 8, the number of axes, their lengths in big-endian, the bytes; in gzip."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes(), mtime=0)


def offer_idx(cache: Path, patch: pytest.MonkeyPatch, images: np.ndarray, labels: Sequence[int]) -> list[Path]:
    """Fashion-MNIST as if it had just been downloaded: these grey pictures and labels in each of its splits."""
    from torchvision import datasets

    folder = cache / "downloads" / "fashion_mnist"
    folder.mkdir(parents=True, exist_ok=True)
    resources = []
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(idx_file(array))
            resources.append((path.name, hashlib.md5(path.read_bytes()).hexdigest()))
    patch.setattr(datasets.FashionMNIST, "resources", resources)
    return [folder / name for name, _ in resources]


def own_set(data: Path, name: str = "pets", n: int = 12, side: int = 6) -> np.ndarray:
    """A set of its own under `data`: `n` PNGs to train (label i % 3) and 3 to test; returns the training pixels."""
    images = random_images(n, side)
    encoded = [encode(Image.fromarray(i)) for i in images]
    write_parquet(data / name / "train-00000-of-00001.parquet", encoded, [i % 3 for i in range(n)])
    write_parquet(data / name / "test-00000-of-00001.parquet", encoded[:3], [0, 1, 2])
    return images


def unsealed(path: Path) -> dict[str, Any]:
    """The content of a file that `repro.files.write_model` wrote, to be changed, without the sha256 of it."""
    content = json.loads(path.read_bytes())
    del content["content_sha256"]
    return content


def needs_data(name: str) -> pytest.MarkDecorator:
    """Skip where the real set is not under REPRO_DATA; on CI its absence is a failure instead."""
    here = Path(os.environ.get("REPRO_DATA") or os.devnull, name).is_dir()
    return pytest.mark.skipif(not here and not os.environ.get("CI"), reason=f"REPRO_DATA holds no {name}")


class TinyNet(nn.Module):
    """Everything that carries state or draws at random, in 2,000 parameters: 28×28 grey to ten logits."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=5, stride=3),  # (N, 4, 8, 8)
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (N, 64)
            nn.Dropout(dropout),
            nn.Linear(64, 24),
            nn.ReLU(),
            nn.Linear(24, 10),
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def register_tiny() -> None:
    """Enter TinyNet into the registry as `tiny`, once."""
    if "tiny" not in registry.list_models():
        registry.register("tiny", input_size=(1, 28, 28), source="tests")(lambda dropout=0.3: TinyNet(dropout))


def tiny_recipe(**changes: Any) -> Recipe:
    """Two epochs of TinyNet on 200 digits with everything switched on; `changes` replace whole tables or values."""
    content: dict[str, Any] = {
        "name": "tiny",
        "title": "for tests",
        "model": "tiny",
        "data": {"name": "digits", "limit": 200},
        "augmentation": {"crop_padding": 2, "flip": True},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "epochs": 2,
        "batch_size": 32,
    }
    return parse_recipe(content | changes, "tiny")


# The same recipe as a file for the command line.
TINY_TOML = """
title = "for tests"
model = "tiny"
epochs = 6
batch_size = 32
[data]
name = "digits"
limit = 400
[augmentation]
crop_padding = 2
flip = true
[optimizer]
learning_rate = 0.05
momentum = 0.9
weight_decay = 1e-3
[schedule]
name = "cosine"
"""
