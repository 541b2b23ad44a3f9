"""Where the pictures of a copy of ImageNet lie: the official archives, folders of classes, or parquet files.

Every layout ends as a list of `Entry`: a stretch of a file that holds one encoded picture, its class and its name. Of
an archive only the headers are read, and nothing is ever extracted: see `repro.data.archives`.
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from repro.data import archives, folder, parquet
from repro.errors import DataError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT_TAR = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
CLASS_TAR = re.compile(r"(n\d{8})\.tar")
SPLITS = {"train": "train", "val": "val", "validation": "val"}  # as they are called in a copy, and here
FEWEST, MOST = 732, 1300  # training pictures of a class, where the devkit does not say how many
VAL_EACH = 50
MOST_OF_DEVKIT = 64 * 2**20  # bytes unpacked, of a few millions


class Entry(NamedTuple):
    """One encoded picture: `size` bytes from `offset` of a file, or all of it where `size` is −1.

    In a parquet file that was not unpacked yet, `offset` is the row.
    """

    path: str
    offset: int
    size: int
    label: int
    name: str

    def read(self) -> bytes:
        with open(self.path, "rb") as f:
            f.seek(self.offset)
            return f.read(self.size)


@dataclass
class Copy:
    """A copy of ImageNet: its classes in the order of the labels, and the pictures of each split."""

    layout: str
    classes: tuple[str, ...]
    entries: dict[str, list[Entry]]
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Split and class: how many pictures its documents promise."""

    def missing(self, totals: dict[str, int], num_classes: int) -> list[str]:
        """What it lacks of the published set, each fault a line; empty when nothing."""
        faults = []
        if len(self.classes) != num_classes:
            faults.append(f"{len(self.classes):,} classes, expected {num_classes:,}")
        for split, total in totals.items():
            entries = self.entries.get(split, [])
            if len(entries) != total:
                faults.append(f"{split}: {len(entries):,} pictures, expected {total:,}")
            counts = Counter(e.label for e in entries)
            wrong = []
            for label, name in enumerate(self.classes):
                low, high = self._range(split, name)
                if not low <= counts[label] <= high:
                    wrong.append(f"{name} {counts[label]} of {low if low == high else f'{low}…{high}'}")
            if wrong and entries:
                faults.append(f"{split}: {len(wrong):,} classes with other counts: {shortened(wrong)}")
        return faults

    def _range(self, split: str, name: str) -> tuple[int, int]:
        if (stated := self.expected.get(split, {}).get(name)) is not None:
            return stated, stated
        return (VAL_EACH, VAL_EACH) if split == "val" else (FEWEST, MOST)


def shortened(names: list[str], limit: int = 10) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find(source: Path) -> Copy:
    """The copy of ImageNet under a folder; raises DataError when there is none, or it is damaged."""
    if (source / TRAIN_TAR).exists() or (source / VAL_TAR).exists():
        return _from_archives(source)
    for place in (source, source / "data"):
        if place.is_dir() and any(s in SPLITS for s in parquet.splits(place)):
            return _from_parquet(place)
    if source.is_dir() and any(s in SPLITS for s in folder.splits(source)):
        return _from_folders(source)
    raise DataError(
        f"{source}: no copy of ImageNet; expected {TRAIN_TAR} and {VAL_TAR} with {DEVKIT_TAR}, or folders "
        "train/CLASS/ and val/CLASS/ of pictures, or parquet files train-00000-of-NNNNN.parquet"
    )


def _from_folders(source: Path) -> Copy:
    found = {SPLITS[s]: (s, kinds) for s, kinds in folder.splits(source).items() if s in SPLITS}
    classes = tuple(sorted({kind for _, kinds in found.values() for kind in kinds}))
    entries = {}
    for split, (own, kinds) in found.items():
        files = ((classes.index(k), p) for k in kinds for p in folder.files(source / own / k))
        entries[split] = [Entry(str(p), 0, -1, label, p.relative_to(source).as_posix()) for label, p in files]
    return Copy("folders", classes, entries)


def _from_archives(source: Path) -> Copy:
    train: dict[str, list[tuple[str, int, int]]] = {}
    if (source / TRAIN_TAR).exists():
        with archives.reading(source / TRAIN_TAR), tarfile.open(source / TRAIN_TAR, "r:") as outer:
            for member in archives.regular(outer, source / TRAIN_TAR):
                if not (kind := CLASS_TAR.fullmatch(member.name)):
                    raise DataError(f"{source / TRAIN_TAR}: member {member.name} is no class's archive nXXXXXXXX.tar")
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    train[kind[1]] = [
                        (PurePosixPath(m.name).name, member.offset_data + m.offset_data, m.size)
                        for m in archives.regular(inner, source / TRAIN_TAR / member.name)
                    ]
    known, truth = _devkit(source) if (source / DEVKIT_TAR).exists() else ({}, [])
    classes = tuple(sorted({*train, *(wnid for wnid, _ in known.values())}))
    labels = {wnid: i for i, wnid in enumerate(classes)}
    path = str(source / TRAIN_TAR)
    entries = {"train": [Entry(path, o, size, labels[w], name) for w in sorted(train) for name, o, size in train[w]]}
    if (source / VAL_TAR).exists():
        if not known:
            raise DataError(f"{source}: {DEVKIT_TAR} is missing; it says which class each validation picture is of")
        entries["val"] = _validation(source / VAL_TAR, [labels[known[i][0]] for i in truth])
    expected = {"train": dict(known.values())}
    return Copy("archives", classes, entries, expected)


def _validation(path: Path, labels: list[int]) -> list[Entry]:
    with archives.reading(path), tarfile.open(path, "r:") as archive:
        members = sorted(archives.regular(archive, path), key=lambda m: m.name)
    entries = []
    for m in members:
        name = PurePosixPath(m.name).name
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise DataError(f"{path}: member {m.name} is none of ILSVRC2012_val_00000001.JPEG to {len(labels):08d}")
        entries.append(Entry(str(path), m.offset_data, m.size, labels[int(number[1]) - 1], name))
    return entries


def _devkit(source: Path) -> tuple[dict[int, tuple[str, int]], list[int]]:
    """Of each class number its WordNet id and count of training pictures; the numbers of the validation pictures."""
    from scipy.io import loadmat

    path, contents = source / DEVKIT_TAR, {}
    with archives.reading(path):
        unpacked = archives.unzipped(path, MOST_OF_DEVKIT)
    with archives.reading(path), tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archives.regular(archive, path):
            for wanted in (META, TRUTH):
                if member.name.endswith("/" + wanted) and (file := archive.extractfile(member)):
                    contents[wanted] = file.read()
    try:
        archives.require_small_mat(contents[META], MOST_OF_DEVKIT)
        synsets = loadmat(io.BytesIO(contents[META]), squeeze_me=True)["synsets"]
        leaves = [s for s in synsets.reshape(-1) if int(s["num_children"]) == 0]
        known = {int(s["ILSVRC2012_ID"]): (str(s["WNID"]), int(s["num_train_images"])) for s in leaves}
        truth = [int(line) for line in contents[TRUTH].split()]
    except Exception as e:  # scipy raises a dozen kinds for what is no table of classes
        raise DataError(f"{path}: not the devkit of ILSVRC 2012 ({type(e).__name__}: {e})") from e
    if strange := set(truth) - set(known):
        raise DataError(f"{path}: the validation labels name class {min(strange)}, which {META} does not have")
    return known, truth


def _from_parquet(place: Path) -> Copy:
    entries: dict[str, list[Entry]] = {}
    classes: tuple[str, ...] = ()
    for own, files in parquet.splits(place).items():
        if own not in SPLITS:
            continue
        rows = entries[SPLITS[own]] = []
        for path in files:
            try:
                file = pq.ParquetFile(path, page_checksum_verification=True)
                parquet.check_columns(path, file.schema_arrow)
                labels = file.read(columns=["label"])["label"].to_pylist()
            except parquet.BROKEN as e:
                raise parquet.not_readable(path, e) from e
            names = parquet.class_names(path, file.schema_arrow)
            if classes and names != classes:
                raise DataError(f"{path}: its class names differ from those of the files before it")
            classes = names
            if bad := [x for x in labels if x is None or not 0 <= x < len(classes)]:
                raise DataError(f"{path}: label {bad[0]} is out of range; expected 0…{len(classes) - 1}")
            rows += [Entry(str(path), i, -1, x, f"{path.name}: row {i}") for i, x in enumerate(labels)]
    return Copy("parquet", classes, entries)


def unpack(path: Path, target: Path) -> list[tuple[int, int, str | None]]:
    """Write the pictures of a parquet file behind each other into `target`; offset, size and own name of each.

    A row of parquet cannot be read without those around it, and shards take their samples from everywhere.
    """
    places: list[tuple[int, int, str | None]] = []
    offset, half = 0, target.with_suffix(".half")
    try:
        with half.open("wb") as f:
            for row in _rows(path):
                content, name = row.get("bytes") or b"", row.get("path")
                f.write(content)
                places.append((offset, len(content), name))
                offset += len(content)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
    return places


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(64, columns=["image"]):
            for row in batch.column("image").to_pylist():
                yield row or {}
    except parquet.BROKEN as e:
        raise parquet.not_readable(path, e) from e
