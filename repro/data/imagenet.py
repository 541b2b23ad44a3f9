"""ImageNet from the copy that someone has to the shards that training reads: `repro data prepare imagenet`.

As the AlexNet paper prepared it (section 2), the shorter side is brought to 256 pixels and the centre 256×256 cut out;
with `fit="shorter"` nothing is cut, for crops from all of the picture as the VGG paper takes them (section 3.1). The
samples of a split are shuffled before they are dealt out to shards, so that each shard is like any other. Chapter 11
walks through it.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from repro.data import cache, sums
from repro.data.imagenet_layouts import DEVKIT_TAR, Copy, Entry, find, shortened, unpack
from repro.data.imagenet_shard import PARTS, Job, Part, disk_refused, make_shard
from repro.data.random import permutation
from repro.data.shard_files import (
    CHANNELS,
    MANIFEST,
    MEAN_IMAGE,
    Encoding,
    Manifest,
    Moments,
    ShardFit,
    StoredFile,
    array_bytes,
    map_file,
    store,
    write_index,
)
from repro.data.shards import ShardSet
from repro.data.sources import SPECS
from repro.data.stream import usable_cores
from repro.errors import DataError, ResourceError
from repro.files import write_atomic
from repro.progress import track

NAME = "imagenet"
NUM_CLASSES = 1000
SHARD_SIZE = 1024  # samples: 20 MB of JPEG files, 201 MB of raw pixels
QUALITY = 90
SEED = 2012  # of the order in which samples are dealt out
PLAN, UNPACKED = "plan.json", "unpacked"


def prepare_imagenet(
    source: Path,
    *,
    fit: ShardFit = "cut",
    size: int = 256,
    encoding: Encoding = "jpeg",
    workers: int | None = None,
    partial: bool = False,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
) -> Iterator[ShardSet]:
    """Prepare the splits that lie under `source` and yield each when it is done; what was done before is kept.

    `workers` is the number of processes (None: one for each processor). A copy without some of the 1,281,167 and 50,000
    pictures of 1,000 classes is refused before the work begins, unless `partial`. Raises DataError for a copy that is
    missing or damaged, ResourceError when the disk is full; run again, it goes on with the shard that was not finished.
    """
    found = find(source)
    faults = found.missing(SPECS[NAME].splits, NUM_CLASSES)
    if faults and not partial:
        lines = "\n  ".join([f"{source}: not the whole of ImageNet:", *faults])
        raise DataError(f"{lines}\n--partial takes what is there")
    for split in found.entries:
        folder = cache.folder_of(NAME, split, size, fit)
        if _is_there(folder, encoding, force):
            print(f"repro: {folder} was prepared before; --force does it again", file=sys.stderr)
        else:
            _verify(source, found, split)
            _prepare(found, split, folder, _Options(fit, size, encoding, workers or usable_cores(), shard_size), faults)
        yield ShardSet(folder)


def _verify(source: Path, found: Copy, split: str) -> None:
    """Hold a split's files against the digests that lie beside them, where there are some."""
    files = {Path(e.path) for e in found.entries[split]}
    if found.layout == "archives" and (source / DEVKIT_TAR).exists():
        files.add(source / DEVKIT_TAR)
    sums.verify(source, sorted(files))


class _Options:
    """How pictures are stored, and by how many processes."""

    def __init__(self, fit: ShardFit, size: int, encoding: Encoding, workers: int, shard_size: int) -> None:
        self.fit, self.size, self.encoding = fit, size, encoding
        self.workers, self.shard_size = workers, shard_size


def _is_there(folder: Path, encoding: Encoding, force: bool) -> bool:
    """Whether the split needs no work; raises DataError for one that is stored the other way."""
    if force:
        return False
    try:
        there = Manifest.read(folder)
    except DataError as e:
        print(f"repro: {e}; making it again", file=sys.stderr)
        return False
    if there is not None and there.encoding != encoding:
        raise DataError(f"{folder}: prepared before as {there.encoding}, not {encoding}; --force replaces it")
    return there is not None


def _prepare(found: Copy, split: str, folder: Path, options: _Options, faults: list[str]) -> None:
    half = folder.with_name(folder.name + ".preparing")
    entries = found.entries[split]
    try:
        _begin(half, entries, options)
        if found.layout == "parquet":
            entries = _unpacked(entries, half / UNPACKED)
        jobs = _jobs(half, entries, options)
        _require_room(half, jobs, options)
        parts = _make(jobs, options.workers, f"preparing {NAME} {split}", len(entries))
        _finish(half, found, split, parts, options, faults)
        _publish(half, folder)
    except OSError as e:
        raise disk_refused(half, e) from e


def _begin(half: Path, entries: list[Entry], options: _Options) -> None:
    """Keep what an interrupted run of the same plan left, and nothing of any other."""
    plan = hashlib.sha256(repr((options.fit, options.size, options.encoding, options.shard_size, QUALITY)).encode())
    for entry in entries:
        plan.update(repr(entry).encode())
    text = json.dumps({"plan": plan.hexdigest()}).encode()
    kept = half / PLAN
    if kept.exists() and kept.read_bytes() == text:
        return
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    write_atomic(kept, text)


def _unpacked(entries: list[Entry], folder: Path) -> list[Entry]:
    """The same entries in plain files, which take as much room as the parquet files until the split is done."""
    folder.mkdir(exist_ok=True)
    paths = sorted({e.path for e in entries})
    places: dict[str, tuple[str, list[tuple[int, int, str | None]]]] = {}
    for path in track(paths, len(paths), "unpacking parquet files"):
        target = folder / f"{Path(path).stem}.bin"
        index = target.with_suffix(".json")
        if not index.exists():
            write_atomic(index, json.dumps(unpack(Path(path), target)).encode())
        places[path] = str(target), json.loads(index.read_bytes())
    found = []
    for e in entries:
        target_path, stretches = places[e.path]
        offset, size, name = stretches[e.offset]
        found.append(Entry(target_path, offset, size, e.label, name or e.name))
    return found


def _jobs(half: Path, entries: list[Entry], options: _Options) -> list[Job]:
    dealt = permutation(len(entries), SEED).split(options.shard_size)
    return [
        Job(
            half,
            f"shard-{k:05d}-of-{len(dealt):05d}.arrow",
            [entries[i] for i in chosen.tolist()],
            options.fit,
            options.size,
            options.encoding,
            QUALITY,
        )
        for k, chosen in enumerate(dealt)
    ]


def _require_room(half: Path, jobs: list[Job], options: _Options) -> None:
    """Raise ResourceError where it is certain that the disk is too small."""
    if options.encoding != "raw" or options.fit != "cut":
        return
    left = sum(len(j.entries) for j in jobs if not (half / j.file).exists())
    needed, free = left * options.size**2 * CHANNELS, shutil.disk_usage(half).free
    if needed > free:
        raise ResourceError(
            f"{half}: {needed / 1e9:,.0f} GB of raw pixels need more than the {free / 1e9:,.0f} GB free there; "
            "make room, or store JPEG files (--format jpeg), about a ninth of it"
        )


def _make(jobs: list[Job], workers: int, what: str, total: int) -> list[Part]:
    """Every shard, those made before among them."""
    size, workers = len(jobs[0].entries), min(workers, len(jobs))
    if workers == 1:
        return list(track(map(make_shard, jobs), total, what, size))
    # Fresh processes: a fork would copy the threads' locks in whatever state they are.
    try:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    except OSError as e:
        raise ResourceError(
            f"{workers} processes: they get no memory to share, such as /dev/shm has ({e.strerror}); give --workers 1"
        ) from e
    try:
        return list(track(pool.map(make_shard, jobs), total, what, size))
    except BrokenProcessPool as e:
        raise ResourceError(
            "a process that prepared shards was killed, as the system does when memory runs out; finished shards are "
            "kept: run the command again, with fewer --workers"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(half: Path, found: Copy, split: str, parts: list[Part], options: _Options, faults: list[str]) -> None:
    """Index, mean image, and the manifest that makes it a split."""
    labels = [label for p in parts for label in p.labels]
    if not labels:
        raise DataError(f"{NAME} {split}: no picture can be decoded; the first: {parts[0].skipped[0]}")
    found_kinds: dict[str, list[str]] = {}
    for part in parts:
        for kind, names in part.found.items():
            found_kinds.setdefault(kind, []).extend(names)
    skipped = sorted(s for p in parts for s in p.skipped)
    Manifest(
        name=NAME,
        split=split,
        classes=list(found.classes),
        fit=options.fit,
        size=options.size,
        encoding=options.encoding,
        quality=QUALITY if options.encoding == "jpeg" else None,
        shards=[p.stored for p in parts],
        index=write_index(half, labels, [s for p in parts for s in p.sizes]),
        mean_image=_mean_image(half, parts),
        moments=sum((p.moments for p in parts), Moments()),
        source=found.layout,
        conversions={kind: len(names) for kind, names in sorted(found_kinds.items())},
        skipped=skipped,
        report=[*(f for f in faults if f.startswith(f"{split}:")), *report(split, len(labels), found_kinds, skipped)],
    ).write(half)


def report(split: str, count: int, kinds: dict[str, list[str]], skipped: list[str]) -> list[str]:
    """What was found, each kind a line with the names of the first."""
    lines = [f"{split}: {count:,} pictures"]
    lines += [f"{split}: {len(names):,} {kind}: {shortened(sorted(names))}" for kind, names in sorted(kinds.items())]
    if skipped:
        lines.append(f"{split}: {len(skipped):,} damaged and left out: {shortened(skipped)}")
    return lines


def _mean_image(half: Path, parts: list[Part]) -> StoredFile | None:
    """As `repro.data.images.mean_image` computes it: float32 (H, W, C) in units of 0…1."""
    sums = [p.sum for p in parts if p.sum is not None]
    if not sums:
        return None
    total = sum(np.load(io.BytesIO(map_file(half / PARTS, s).numpy().tobytes()), allow_pickle=False) for s in sums)
    mean = total / (255 * sum(len(p.labels) for p in parts))
    return store(half / MEAN_IMAGE, array_bytes(mean.astype(np.float32)))


def _publish(half: Path, folder: Path) -> None:
    """Give the whole split its name, in place of what was there."""
    for rest in (PARTS, UNPACKED):
        shutil.rmtree(half / rest, ignore_errors=True)
    (half / PLAN).unlink(missing_ok=True)
    if (folder / MANIFEST).exists() or folder.exists():
        aside = cache.make_half(folder)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    os.replace(half, folder)
