"""A prepared split on disk, opened by name: `open_set("imagenet", "train", size=256)`.

What `load` decodes into memory is a few gigabytes at most. ImageNet's training split is 252 GB of 256×256 pixels, or
26 GB of JPEG files, and stays where it is: `ShardSet` knows labels and statistics of every sample, and reaches the
encoded bytes of any of them by a memory map. `repro.data.imagenet` writes what is read here.
"""

import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from repro.data import cache, sources
from repro.data.color import ColorPCA
from repro.data.images import ImageSet
from repro.data.random import permutation
from repro.data.shard_files import (
    CHANNELS,
    MANIFEST,
    Manifest,
    Remote,
    Shard,
    check_length,
    map_file,
    read_columns,
    sizes_of,
)
from repro.data.sources import SPECS, load
from repro.errors import DataError
from repro.progress import track

OnDamage = Literal["stop", "skip"]
WINDOW = 16  # shards whose samples `ShardSet.order` mixes
_SHARDS, _SAMPLES = range(2)  # what the draws of `order` are for


class ShardSet:
    """One prepared split: what an `ImageSet` says of itself, and the samples by index, none of them in memory.

    `labels` int64 (N,); `mean` and `std` per channel over all pixels, units of 0…1; `sizes` int64 (N, 2), height and
    width, or None where all pictures are size×size. Each shard's sha256 is verified when it is first opened.
    A damaged one raises DataError that names it (`on_damage="stop"`); with `"skip"` all shards are verified at once,
    those damaged are left out, a line on stderr says what that costs, and `digest` is another. Statistics stay those of
    the whole split.
    """

    def __init__(self, folder: Path, on_damage: OnDamage = "stop", remote: str | None = None) -> None:
        self.folder, self._remote = folder, Remote(remote) if remote else None
        self._fetch(MANIFEST)
        manifest = Manifest.read(folder)
        if manifest is None:
            raise DataError(f"{folder}: no {MANIFEST}: nothing was prepared here, or not to its end")
        self.manifest = manifest
        self.name, self.split, self.source = manifest.name, manifest.split, manifest.source
        self.classes, self.conversions = tuple(manifest.classes), manifest.conversions
        self.skipped = tuple(manifest.skipped)
        self.mean, self.std = manifest.moments.mean_and_std()
        self.size, self.fit, self.encoding = manifest.size, manifest.fit, manifest.encoding
        self._fetch(manifest.index.file)
        labels, sizes = sizes_of(read_columns(map_file(folder, manifest.index)))
        self._require_sound(labels)
        self._keep(list(range(len(manifest.shards))), labels, sizes)
        if on_damage == "skip":
            self._leave_out_damaged(labels, sizes)
        elif self._remote is None:
            for shard in manifest.shards:
                check_length(folder, shard)

    def _require_sound(self, labels: np.ndarray) -> None:
        place, stated = self.folder / self.manifest.index.file, sum(s.samples for s in self.manifest.shards)
        if len(labels) != stated:
            raise DataError(f"{place}: {len(labels):,} labels for {stated:,} pictures; prepare the split again")
        if len(outside := labels[(labels < 0) | (labels >= len(self.classes))]):
            expected = f"0…{len(self.classes) - 1}"
            raise DataError(
                f"{place}: label {outside[0]} is out of range; expected {expected}; prepare the split again"
            )

    def _keep(self, kept: list[int], labels: np.ndarray, sizes: np.ndarray) -> None:
        """Number the samples of the shards `kept` from 0; `labels` and `sizes` are those of all shards."""
        files = self.manifest.shards
        ends = np.cumsum([0, *(s.samples for s in files)])
        rows = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in kept] or [np.arange(0)])
        self.files = [files[k] for k in kept]
        self.labels = torch.from_numpy(labels[rows])
        self.sizes = torch.from_numpy(sizes[rows]) if self.fit == "shorter" else None
        self.starts = np.cumsum([0, *(s.samples for s in self.files)])
        self._open: list[Shard | None] = [None] * len(self.files)
        self._locks = [threading.Lock() for _ in self.files]
        self.digest = self.manifest.model_copy(update={"shards": self.files}).digest

    def _leave_out_damaged(self, labels: np.ndarray, sizes: np.ndarray) -> None:
        faults = self.verify()
        if not faults:
            return
        lost = sum(self.files[k].samples for k in faults)
        if lost == len(self):
            raise DataError(f"{self.folder}: every shard is damaged; the first: {next(iter(faults.values()))}")
        print(
            f"repro: {self.name} {self.split}: going on without {len(faults)} of {len(self.files)} shards, "
            f"{lost:,} of {len(self):,} samples: {'; '.join(faults.values())}",
            file=sys.stderr,
        )
        self.skipped += tuple(faults.values())
        self._keep([k for k in range(len(self.files)) if k not in faults], labels, sizes)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        fit = "×".join([str(self.size)] * 2) if self.fit == "cut" else f"shorter side {self.size}"
        left_out = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return (
            f"{self.name} {self.split}: {len(self):,} images, {fit}, {len(self.classes)} classes, "
            f"{len(self.files):,} {self.encoding} shards (digest {self.digest[:8]}, {self.source}{left_out})"
        )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures; with `fit="shorter"` of the square that every one of them contains."""
        return CHANNELS, self.size, self.size

    @property
    def mean_image(self) -> Tensor | None:
        """The mean at each pixel, float32 (H, W, C) in units of 0…1; None where sizes differ."""
        if (stored := self.manifest.mean_image) is None:
            return None
        self._fetch(stored.file)
        found = np.load(io.BytesIO(map_file(self.folder, stored).numpy().tobytes()), allow_pickle=False)
        return torch.from_numpy(found)

    @property
    def pca(self) -> ColorPCA:
        """Principal components of the colours of all pixels."""
        m = self.manifest.moments
        total, products = (torch.tensor(x, dtype=torch.float64) for x in (m.total, m.products))
        return ColorPCA.from_sums(total, products, m.pixels)

    def shard(self, k: int) -> Shard:
        """The k-th shard, verified the first time. Any thread may call it."""
        if (found := self._open[k]) is None:
            with self._locks[k]:
                if (found := self._open[k]) is None:
                    self._fetch(self.files[k].file)
                    found = self._open[k] = Shard(self.folder, self.files[k], self.encoding, self.size)
        return found

    def locate(self, indices: list[int]) -> list[tuple[int, int]]:
        """Shard and row of each sample; raises DataError for an index that is none."""
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise DataError(f"{self.name} {self.split}: no sample {max(indices)}; there are {len(self):,}")
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        return list(zip(shards.tolist(), (np.asarray(indices, np.int64) - self.starts[shards]).tolist(), strict=True))

    def place(self, i: int) -> str:
        """The file and row of a sample, for messages."""
        [(shard, row)] = self.locate([i])
        return f"{self.folder / self.files[shard].file}: row {row}"

    def order(self, seed: int, epoch: int) -> Tensor:
        """An order of all samples, int64 (N,), decided by seed and epoch, in which WINDOW shards are read at a time.

        For shards that do not fit into memory on a disk that seeks slowly, or in remote storage: there the
        permutation of all samples would first have to fetch every shard. Because samples were shuffled over the whole
        split when they were prepared, the batches are about as mixed.
        """
        shards = permutation(len(self.files), seed, epoch, _SHARDS).split(WINDOW)
        parts = []
        for window, chosen in enumerate(shards):
            rows = torch.cat([torch.arange(self.starts[k], self.starts[k + 1]) for k in chosen.tolist()])
            parts.append(rows[permutation(len(rows), seed, epoch, _SAMPLES, window)])
        return torch.cat(parts)

    def verify(self) -> dict[int, str]:
        """Open every shard; which are damaged, and how."""

        def fault(k: int) -> str | None:
            try:
                self.shard(k)
            except DataError as e:
                return str(e)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(fault, range(len(self.files)))
            what = f"verifying {self.name} {self.split}"
            return {k: f for k, f in enumerate(track(found, len(self.files), what)) if f is not None}

    def _fetch(self, file: str) -> None:
        if self._remote is not None:
            self._remote.fetch(self.folder, file)


def check(name: str, split: str) -> str:
    """Verify a split of its usual size, every shard of one that has shards; a line. Raises DataError if damaged."""
    if name not in SPECS or not SPECS[name].sharded:
        return sources.check(name, split)
    images = open_set(name, split)
    if isinstance(images, ShardSet) and (faults := images.verify()):
        raise DataError(f"{name} {split}: {len(faults)} shards are damaged: " + "; ".join(faults.values()))
    return f"{images}: whole"


def open_set(
    name: str, split: str = "train", *, size: int | None = None, fit: str = "cut", on_damage: OnDamage = "stop"
) -> ImageSet | ShardSet:
    """A split by name: its shards where they were prepared with this size and fit, else what `load` returns.

    With `REPRO_SHARDS` set to an address that pyarrow opens (`s3://bucket/shards`), shards that are not in the cache
    are copied from `ADDRESS/NAME/SPLIT-SIZE/` as they are needed. Raises what `load` raises.
    """
    usual = SPECS[name].size if name in SPECS else None
    folder = cache.folder_of(name, split, size or usual, fit)
    address = os.environ.get("REPRO_SHARDS")
    remote = f"{address.rstrip('/')}/{name}/{folder.name}" if address else None
    if (folder / MANIFEST).exists() or (remote and _there(remote)):
        return ShardSet(folder, on_damage, remote)
    return load(name, split, size=size, fit=fit)  # type: ignore[arg-type]


def _there(address: str) -> bool:
    """Whether a manifest lies under an address."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(address)
        return bool(system.get_file_info(f"{path}/{MANIFEST}").type == fs.FileType.File)
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"REPRO_SHARDS: {address} cannot be read ({' '.join(str(e).split())})") from e
