"""The third way to a set: download what its publishers offer, once, and take nothing on trust.

The archives of a set are fetched into a folder beside its final place, which is renamed when all are there; each is
held against its published digest when it comes and each time it is read. What they hold is decoded here like any other
source, and held against the published digest and counts.
"""

import errno
import gzip
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repro.data import archives, cache
from repro.data.decode import Fit, Target, centre_square, decode_all
from repro.errors import DataError
from repro.fetch import Published, fetch_file, refuse_offline

if TYPE_CHECKING:
    from repro.data.sources import Decoded, Spec

FLOWERS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
FLOWERS_ARCHIVE = "flower_photos.tgz"
FLOWERS_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"  # as TensorFlow Datasets states it
DAMAGE = (EOFError, RuntimeError, ValueError, gzip.BadGzipFile, struct.error, tarfile.TarError, zlib.error)
MOST_UNPACKED = 2**29  # bytes; the flowers are 0.23 GB
FLOWERS_VAL_SHARE = 10  # one in ten of each class, rounded down


def fetch(name: str, split: str, size: int | None, spec: "Spec", fit: Fit = "cut") -> "Decoded":
    """One split of a set, downloaded if it was not before.

    Raises FetchError when the network fails or is forbidden, DataError when what came is not the published set, and
    ResourceError when the disk refuses.
    """
    files = published(name)
    folder = _archives(name, files)
    try:
        for file in files:
            if not file.is_at(folder / file.name):
                raise ValueError(f"{file.name}: its {file.algorithm} is not the published one")
        if name == "flowers":
            decoded = _read_flowers(folder, Target(3, size, fit), split)
        else:
            decoded = _read_published(folder, name, split, spec)
    except DAMAGE as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{name}: the download is damaged ({e}) and was removed; run the command again") from e
    except OSError as e:
        raise cache.refused(folder, e) from e
    expected = spec.splits[split]
    if len(decoded.labels) != expected:
        raise DataError(f"{name} {split}: {len(decoded.labels):,} pictures downloaded, expected {expected:,}")
    stated = spec.digests.get(split)
    if stated not in (None, decoded.digest()):
        raise DataError(
            f"{name} {split}: what was downloaded is not the published set, by its digest; remove {folder}, and try "
            "another network"
        )
    return decoded if name == "flowers" or size is None else _resized(decoded, size)


def published(name: str) -> list[Published]:
    """The archives of a set, with the addresses and digests that its publishers, or torchvision for them, state."""
    from torchvision import datasets

    if name == "flowers":
        return [Published(FLOWERS_ARCHIVE, (FLOWERS_URL,), "sha256", FLOWERS_SHA256)]
    if name == "cifar10":
        kind = datasets.CIFAR10
        return [Published(kind.filename, (kind.url,), "md5", kind.tgz_md5)]
    kind = _idx_kind(name)
    # Where a mirror has https, another without it is none to fall back on.
    mirrors = [m for m in kind.mirrors if m.startswith("https:")] or kind.mirrors
    return [Published(file, [mirror + file for mirror in mirrors], "md5", md5) for file, md5 in kind.resources]


def _archives(name: str, files: list[Published]) -> Path:
    """The folder that holds a set's archives; two processes may fetch at once, and the first one's stay."""
    folder = cache.cache_dir() / "downloads" / name
    if folder.is_dir():
        return folder
    refuse_offline()
    try:
        half = cache.make_half(folder)
        try:
            for file in files:
                fetch_file(file, half)
            os.replace(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise cache.refused(folder, e) from e
    return folder


def _idx_kind(name: str) -> Any:
    from torchvision import datasets

    return {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]


def _read_published(folder: Path, name: str, split: str, spec: "Spec") -> "Decoded":
    from torchvision import datasets

    from repro.data.sources import Decoded

    if name == "cifar10":
        with tempfile.TemporaryDirectory() as tmp:
            _unpack(folder / datasets.CIFAR10.filename, tmp)
            found = datasets.CIFAR10(tmp, train=split == "train")  # checks every file's md5 before it unpickles
        images, targets = found.data, found.targets
    else:
        # torchvision's own reader takes unpacked files unchecked: its md5 is of the archives alone.
        pictures, labels = published(name)[:2] if split == "train" else published(name)[2:]
        images, targets = _read_idx(folder / pictures.name)[..., None], _read_idx(folder / labels.name)
    return Decoded(np.ascontiguousarray(images), np.asarray(targets, np.int64), spec.classes, "torchvision", {})


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in MNIST's own format: two zeros, type 8, number of axes, their lengths, the values."""
    content = gzip.decompress(path.read_bytes())
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _unpack(archive: Path, folder: str) -> None:
    """Regular files and folders of a tar archive in gzip, and nothing that leads out of `folder`."""
    with tarfile.open(fileobj=archives.unzipped(archive, MOST_UNPACKED), mode="r:") as tar:
        kept = [m for m in tar if (m.isfile() or m.isdir()) and not m.issparse()]
        members = [m for m in kept if not m.name.startswith(("/", ".."))]
        tar.extractall(folder, members, filter="data")


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
        _unpack(folder / FLOWERS_ARCHIVE, tmp)
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
