"""One shard of ImageNet made from encoded pictures: what a worker process of `repro.data.imagenet` does.

Each picture is decoded, brought to size, stored as JPEG or raw, and decoded again as training will see it; from that
come the sums of which mean, deviation, mean image and colour components are made.
"""

import errno
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from repro.data.decode import FORMATS, Target, decode
from repro.data.imagenet_layouts import Entry
from repro.data.shard_files import (
    CHANNELS,
    Encoding,
    Moments,
    Samples,
    ShardFit,
    StoredFile,
    array_bytes,
    map_file,
    store,
    write_shard,
)
from repro.data.stream import decode_jpeg
from repro.errors import DataError, ResourceError
from repro.files import write_atomic

PARTS = "parts"  # the folder of what is needed until all shards are there


@dataclass(frozen=True)
class Job:
    """One shard to make in `folder`: from which pictures, and how."""

    folder: Path
    file: str
    entries: Sequence[Entry]
    fit: ShardFit
    size: int
    encoding: Encoding
    quality: int


class Part(BaseModel):
    """What a finished shard adds to the manifest; written after it, so that it stands for a whole shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stored: StoredFile
    sum: StoredFile | None
    """Of its pictures at each pixel, where they have one size."""
    labels: list[int]
    sizes: list[tuple[int, int]]
    moments: Moments
    found: dict[str, list[str]]
    """Conversions and wrong names: which pictures."""
    skipped: list[str]


def make_shard(job: Job) -> Part:
    """Make one shard, or find it made before; raises ResourceError when the disk refuses."""
    if (done := finished(job)) is not None:
        return done
    samples, found, skipped = Samples([], [], [], []), {}, []  # type: ignore[var-annotated]
    moments = Moments()
    total = np.zeros((job.size, job.size, CHANNELS), np.int64) if job.fit == "cut" else None
    for entry in job.entries:
        try:
            pixels, odd = _decode(entry, Target(CHANNELS, job.size, job.fit))
        except Exception as e:  # Pillow raises a dozen kinds for damaged files
            why = "no image format that is known here" if isinstance(e, UnidentifiedImageError) else e
            skipped.append(f"{entry.name}: {why}")
            continue
        for kind in odd:
            found.setdefault(kind, []).append(entry.name)
        stored, seen = _stored(pixels, job)
        moments += Moments.of(seen)
        if total is not None:
            total += seen
        samples.images.append(stored)
        samples.labels.append(entry.label)
        samples.sizes.append((pixels.shape[0], pixels.shape[1]))
        samples.names.append(entry.name)
    try:
        parts = job.folder / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        part = Part(
            stored=write_shard(job.folder / job.file, samples, job.encoding, job.size),
            sum=None if total is None else store(parts / f"{job.file}.npy", array_bytes(total)),
            labels=samples.labels,
            sizes=samples.sizes,
            moments=moments,
            found=found,
            skipped=skipped,
        )
        write_atomic(_beside(job), part.model_dump_json().encode())
    except OSError as e:
        raise disk_refused(job.folder, e) from e
    return part


def finished(job: Job) -> Part | None:
    """What is known of a shard that was made before and is still whole."""
    try:
        part = Part.model_validate_json(_beside(job).read_bytes())
        map_file(job.folder, part.stored)
        if part.sum is not None:
            map_file(job.folder / PARTS, part.sum)
    except (OSError, ValidationError, DataError):
        return None
    return part


def disk_refused(folder: Path, e: OSError) -> ResourceError:
    """The error for a disk that is full or cannot be written."""
    full = e.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot be written ({e.strerror or e})"
    return ResourceError(
        f"{folder}: {what}; finished shards are kept: make room, or set REPRO_CACHE to another disk and move the "
        "folder there, and run the command again"
    )


def _beside(job: Job) -> Path:
    return job.folder / PARTS / f"{job.file}.json"


def _decode(entry: Entry, target: Target) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels (H, W, 3), and what was odd: conversions, and a format that the name does not say."""
    content = entry.read()
    pixels, odd = decode(content, target)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind = str(image.format)
    suffix = os.path.splitext(entry.name)[1]
    if suffix.lower() in (".jpeg", ".jpg") and kind not in ("JPEG", "MPO"):  # MPO: JPEG with more pictures behind it
        odd.append(f"{kind} named {suffix}")
    return pixels, odd


def _stored(pixels: NDArray[np.uint8], job: Job) -> tuple[bytes | NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture as the shard keeps it, and as it will be seen."""
    if job.encoding == "raw":
        return pixels, pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=job.quality)
    return buffer.getvalue(), decode_jpeg(buffer.getvalue())
