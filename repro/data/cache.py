"""Decoded pictures on disk: written once, verified and memory-mapped ever after.

One folder holds one split at one size: `images.bin` (uint8, N×H×W×C), `labels.bin` (int64, N) and `meta.json`.
The folder is built beside its final place and renamed, so a reader sees all of it or nothing; two processes that
prepare the same set both succeed, and the second keeps the first one's work. Every load checks the sha256 of all
three files: neither file systems nor memory maps notice a flipped bit.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.data.images import ImageSet, channel_statistics
from repro.errors import DataError, ResourceError
from repro.files import is_alive
from repro.refusals import refusal

FORMAT = 2
HALF_MADE = re.compile(r"\..+-(?P<pid>\d+)-[^-]+\.half")


def cache_dir() -> Path:
    """`$REPRO_CACHE`, or `repro` in the user's cache folder."""
    if chosen := os.environ.get("REPRO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "repro"


def folder_of(name: str, split: str, size: int | None, fit: str = "cut") -> Path:
    """Where the cache keeps one split of a set at one size (None: its own size), fitted to it in one way."""
    return cache_dir() / name / f"{split}-{size or 'native'}{'' if fit == 'cut' else f'-{fit}'}"


def content_digest(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """A sha256 over what a set contains that does not depend on the order of its samples.

    Each sample is hashed (label, shape, bytes), the hashes are added modulo 2²⁵⁶, and the sum is hashed together
    with the class names in their order. Adding, unlike XOR, notices a sample that occurs twice.
    """
    shape = ",".join(map(str, images.shape[1:])).encode()
    total = 0
    for image, label in zip(images.cpu().contiguous().numpy(), labels.tolist(), strict=True):
        sample = hashlib.sha256(b"%d;%s;" % (label, shape))
        sample.update(image.data)
        total += int.from_bytes(sample.digest(), "little")
    head = json.dumps(list(classes), ensure_ascii=True).encode()
    return hashlib.sha256(head + (total % 2**256).to_bytes(32, "little")).hexdigest()


def write(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    source: str,
    conversions: dict[str, int],
    skipped: Sequence[str] = (),
) -> None:
    """Store one split under `folder`, in place of what is there if that differs or is damaged.

    Raises ResourceError when the disk refuses, leaving nothing behind.
    """
    mean, std = channel_statistics(images)
    digest = content_digest(images, labels, classes)
    meta = {
        "format": FORMAT,
        "shape": list(images.shape),
        "classes": list(classes),
        "source": source,
        "conversions": conversions,
        "skipped": list(skipped),
        "mean": mean,
        "std": std,
        "digest": digest,
    }
    try:
        half = make_half(folder)
    except OSError as e:
        raise refused(folder, e) from e
    try:
        meta["files"] = {
            "images.bin": _write_file(half / "images.bin", images),
            "labels.bin": _write_file(half / "labels.bin", labels),
        }
        (half / "meta.json").write_text(json.dumps(meta | {"sha256": _digest(meta)}, indent=1))
        _publish(half, folder, digest)
    except OSError as e:
        raise refused(folder, e) from e
    finally:
        shutil.rmtree(half, ignore_errors=True)


def read(name: str, split: str, folder: Path) -> ImageSet | None:
    """The split kept in `folder`, verified and memory-mapped; None when there is none.

    Raises DataError naming the file when what is there is damaged.
    """
    while True:
        before = _identity(folder)
        try:
            found = _read(name, split, folder)
        except DataError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found
        # Another process has replaced the folder meanwhile: some files were the old ones, some the new.


def _identity(folder: Path) -> tuple[int, int] | None:
    """What changes when a folder of this name is replaced by another."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(name: str, split: str, folder: Path) -> ImageSet | None:
    meta = _read_meta(folder / "meta.json")
    if meta is None:
        return None
    for file in ("images.bin", "labels.bin"):
        _verify(folder / file, meta["files"][file])
    n, h, w, c = meta["shape"]
    try:
        images = torch.from_file(str(folder / "images.bin"), shared=False, size=n * h * w * c, dtype=torch.uint8)
        labels = torch.from_file(str(folder / "labels.bin"), shared=False, size=n, dtype=torch.int64)
    except RuntimeError as e:
        raise refusal(e) or _damaged(folder, f"cannot be mapped ({e})") from e
    return ImageSet(
        name,
        split,
        images.view(n, h, w, c),
        labels,
        tuple(meta["classes"]),
        meta["digest"],
        meta["source"],
        tuple(meta["mean"]),
        tuple(meta["std"]),
        meta["conversions"],
        tuple(meta.get("skipped", ())),  # not stated by caches of before there were folders
    )


def make_half(folder: Path) -> Path:
    """A folder beside `folder`, to be filled and renamed; those of processes that are gone are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{os.getpid()}-", suffix=".half", dir=folder.parent))
    half.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
    return half


def _write_file(path: Path, tensor: Tensor) -> dict[str, Any]:
    data = tensor.contiguous().numpy().data
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return {"bytes": data.nbytes, "sha256": hashlib.sha256(data).hexdigest()}


@contextlib.contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Keep other writers out: each decides on what it finds, and none replaces what another has just put there."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; a folder is then replaced once too often
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # gives the lock back, as the end of a process does


def _publish(half: Path, folder: Path, digest: str) -> None:
    """Rename `half` to `folder`, unless a whole folder with the same contents is there already."""
    with _alone_in(folder.parent):
        while True:
            try:
                os.replace(half, folder)
                return
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Another process was first, or what is there is older or damaged.
            try:
                there = read("", "", folder)
            except DataError:
                there = None
            if there is not None and there.digest == digest:
                return
            # Moved aside in one step: no reader meets a folder that is half deleted.
            aside = make_half(folder)
            with contextlib.suppress(FileNotFoundError):  # another process may have moved it
                os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _read_meta(path: Path) -> dict[str, Any] | None:
    """What `write` stated; None when there is nothing, or something of another format, which is made anew."""
    try:
        meta: dict[str, Any] = json.loads(path.read_bytes())
        if meta["format"] != FORMAT:
            return None
        intact = meta.pop("sha256") == _digest(meta)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _damaged(path, f"not readable ({e})") from e
    if not intact:
        raise _damaged(path, "its sha256 is not the one it states")
    return meta


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _verify(path: Path, expected: dict[str, Any]) -> None:
    try:
        found = path.stat().st_size
        if found != expected["bytes"]:
            raise _damaged(path, f"{found:,} bytes, expected {expected['bytes']:,}")
        with path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != expected["sha256"]:
                raise _damaged(path, "its sha256 is not the one written beside it")
    except OSError as e:
        if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the file may be whole
        raise _damaged(path, e.strerror or str(e)) from e


def _sweep(parent: Path) -> None:
    """Remove half-made folders whose process is gone (killed while preparing)."""
    for half in parent.glob(".*.half"):
        made = HALF_MADE.fullmatch(half.name)
        if made and not is_alive(int(made["pid"])):
            shutil.rmtree(half, ignore_errors=True)


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(f"{path}: damaged cache file: {fault}; run `repro data prepare` again with --force")


def refused(folder: Path, e: OSError) -> ResourceError:
    """The error to raise when the disk refuses what was to become `folder`."""
    why = e.strerror or str(e)
    return ResourceError(
        f"{folder}: the cache cannot be written ({why}); free space or set REPRO_CACHE to another folder"
    )
