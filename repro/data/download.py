"""The third way to a set: download it through torchvision, once, and take nothing on trust.

The archives of a set are fetched into a folder beside its final place, which is renamed when all are there; they are
verified each time they are read. What they hold is decoded here like any other source, and held against the published
digest and counts.
"""

import errno
import gzip
import os
import shutil
import socket
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repro.data import cache
from repro.data.decode import Fit, Target, centre_square, decode_all
from repro.errors import DataError

if TYPE_CHECKING:
    from repro.data.sources import Decoded, Spec

TIMEOUT_S = 10.0  # for one answer of the server, not for the whole file
FLOWERS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
FLOWERS_ARCHIVE = "flower_photos.tgz"
DAMAGE = (EOFError, RuntimeError, ValueError, gzip.BadGzipFile, struct.error, tarfile.TarError, zlib.error)
FLOWERS_VAL_SHARE = 10  # one in ten of each class, rounded down


def fetch(name: str, split: str, size: int | None, spec: "Spec", fit: Fit = "cut") -> "Decoded":
    """One split of a set, downloaded if it was not before.

    Raises OSError or RuntimeError when the network fails, DataError when what came is not the published set.
    """
    with _timeout(TIMEOUT_S):
        folder = _archives(name)
    try:
        if name == "flowers":
            decoded = _read_flowers(folder, Target(3, size, fit), split)
        else:
            decoded = _read_published(folder, name, split, spec)
    except DAMAGE as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{name}: the download is damaged ({e}) and was removed; run the command again") from e
    expected = spec.splits[split]
    if len(decoded.labels) != expected:
        raise DataError(f"{name} {split}: {len(decoded.labels):,} pictures downloaded, expected {expected:,}")
    published = spec.digests.get(split)
    if published not in (None, decoded.digest()):
        raise DataError(
            f"{name} {split}: what was downloaded is not the published set, by its digest; remove {folder}, and try "
            "another network"
        )
    return decoded if name == "flowers" or size is None else _resized(decoded, size)


def _archives(name: str) -> Path:
    """The folder that holds a set's archives; two processes may fetch at once, and the first one's stay."""
    folder = cache.cache_dir() / "downloads" / name
    if folder.is_dir():
        return folder
    try:
        half = cache.make_half(folder)
    except OSError as e:
        raise cache.refused(folder, e) from e
    try:
        _download(name, half)
        os.replace(half, folder)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _download(name: str, folder: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    if name == "flowers":
        download_url(FLOWERS_URL, str(folder), FLOWERS_ARCHIVE)
    elif name == "cifar10":
        datasets.CIFAR10(str(folder), download=True)
        (folder / datasets.CIFAR10.filename).unlink()  # what it holds lies unpacked beside it, each file with its md5
    else:
        kind = _idx_kind(name)
        for file, md5 in kind.resources:
            _from_any(kind.mirrors, file, md5, folder)


def _from_any(mirrors: list[str], file: str, md5: str, folder: Path) -> None:
    """Download a file from the first mirror that has it with the right md5; raises the last mirror's error."""
    from torchvision.datasets.utils import download_url

    for i, mirror in enumerate(mirrors, start=1):
        try:
            return download_url(mirror + file, str(folder), file, md5)
        except (OSError, RuntimeError):
            if i == len(mirrors):
                raise


def _idx_kind(name: str) -> Any:
    from torchvision import datasets

    return {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]


def _read_published(folder: Path, name: str, split: str, spec: "Spec") -> "Decoded":
    from torchvision import datasets

    from repro.data.sources import Decoded

    if name == "cifar10":
        found = datasets.CIFAR10(str(folder), train=split == "train")  # checks every file's md5 before it unpickles
        images, targets = found.data, found.targets
    else:
        # torchvision's own reader takes unpacked files unchecked: its md5 is of the archives alone.
        pictures, labels = _idx_kind(name).resources[:2] if split == "train" else _idx_kind(name).resources[2:]
        images, targets = _read_idx(folder, *pictures)[..., None], _read_idx(folder, *labels)
    return Decoded(np.ascontiguousarray(images), np.asarray(targets, np.int64), spec.classes, "torchvision", {})


def _read_idx(folder: Path, file: str, md5: str) -> NDArray[np.uint8]:
    """An array of bytes in MNIST's own format: two zeros, type 8, number of axes, their lengths, the values."""
    from torchvision.datasets.utils import check_integrity

    path = folder / file
    if not check_integrity(str(path), md5):
        raise RuntimeError(f"{file}: its md5 is not the published one")
    content = gzip.decompress(path.read_bytes())
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _resized(decoded: "Decoded", size: int) -> "Decoded":
    from dataclasses import replace

    from PIL import Image

    images = np.stack([np.asarray(centre_square(Image.fromarray(i.squeeze()), size)) for i in decoded.images])
    return replace(decoded, images=images.reshape(len(images), size, size, -1))


def _read_flowers(folder: Path, target: Target, split: str) -> "Decoded":
    """The five-class flower photographs (3,670); one in ten of each class, by the hash of its file name, is `val`.

    Which photographs the flower report held back is not known, so no split of ours can be its split.
    """
    from repro.data.sources import FLOWER_CLASSES, Decoded

    with tempfile.TemporaryDirectory() as tmp:
        with tarfile.open(folder / FLOWERS_ARCHIVE) as tar:
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
        images, conversions = decode_all(encoded, target, f"decoding flowers {split}", lambda i: str(files[i][0]))
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
