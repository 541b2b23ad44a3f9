"""The third way to a set: download it through torchvision, once, and take nothing on trust.

torchvision checks the archives; what they hold is decoded here like any other source, and the number of pictures is
held against what was published.
"""

import socket
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from repro.data import cache
from repro.data.decode import Target, decode_all
from repro.errors import DataError

if TYPE_CHECKING:
    from repro.data.sources import Decoded, Spec

TIMEOUT_S = 10.0  # for one answer of the server, not for the whole file
FLOWERS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
FLOWERS_VAL_SHARE = 10  # one in ten of each class, rounded down


def fetch(name: str, split: str, size: int | None, spec: "Spec") -> "Decoded":
    """Download a set (all its splits) and return one; raises OSError or RuntimeError when the network fails."""
    with _timeout(TIMEOUT_S):
        decoded = _flowers(split, size) if name == "flowers" else _torchvision(name, split, size, spec)
    published = spec.digests.get(split)
    if size is None and published not in (None, _digest(decoded)):
        raise DataError(
            f"{name} {split}: what was downloaded is not the published set, by its digest; try another network"
        )
    expected = spec.splits[split]
    if len(decoded.labels) != expected:
        raise DataError(f"{name} {split}: {len(decoded.labels):,} pictures downloaded, expected {expected:,}")
    return decoded


def _digest(decoded: "Decoded") -> str:
    images, labels = torch.from_numpy(decoded.images), torch.from_numpy(decoded.labels)
    return cache.content_digest(images, labels, decoded.classes)


def _torchvision(name: str, split: str, size: int | None, spec: "Spec") -> "Decoded":
    from torchvision import datasets

    from repro.data.sources import Decoded

    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    found = kind(str(cache.cache_dir() / "downloads"), train=split == "train", download=True)
    images = np.asarray(found.data, dtype=np.uint8).reshape(len(found.targets), *found.data.shape[1:3], spec.channels)
    if size is not None:
        images = _resize(images, size, spec.channels)
    labels = np.asarray(found.targets, dtype=np.int64)
    return Decoded(images, labels, spec.classes, "torchvision", {})


def _resize(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    from repro.data.decode import centre_square

    resized = [np.asarray(centre_square(Image.fromarray(i.squeeze()), size)) for i in images]
    return np.stack(resized).reshape(len(images), size, size, channels)


def _flowers(split: str, size: int | None) -> "Decoded":
    """The five-class flower photographs (3,670); one in ten of each class, by the hash of its file name, is `val`.

    Which photographs the flower report held back is not known, so no split of ours can be its split.
    """
    from torchvision.datasets.utils import download_url

    from repro.data.sources import FLOWER_CLASSES, Decoded

    archive = cache.cache_dir() / "downloads" / "flower_photos.tgz"
    download_url(FLOWERS_URL, str(archive.parent), archive.name)
    with tempfile.TemporaryDirectory() as tmp:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if (m.isfile() or m.isdir()) and not m.name.startswith(("/", ".."))]
            tar.extractall(tmp, members, filter="data")
        files: list[tuple[Path, int]] = []
        for label, kind in enumerate(FLOWER_CLASSES):
            paths = sorted(
                Path(tmp, "flower_photos", kind).glob("*.jpg"), key=lambda p: sha256(p.name.encode()).digest()
            )
            held_back = len(paths) // FLOWERS_VAL_SHARE
            files += [(p, label) for p in (paths[:held_back] if split == "val" else paths[held_back:])]
        encoded = [path.read_bytes() for path, _ in files]
        images, conversions = decode_all(
            encoded, Target(3, size), f"decoding flowers {split}", lambda i: str(files[i][0])
        )
    labels = np.array([label for _, label in files], np.int64)
    return Decoded(images, labels, FLOWER_CLASSES, "download", conversions)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
