"""Read a set of pictures from parquet in the layout of the Hugging Face hub.

Files are named `SPLIT-00000-of-00003.parquet` and have a column `image` (struct of `bytes`, an encoded image
file, and `path`) and an integer column `label`; the class names are in the schema metadata under
`huggingface`. Every fault is reported with its file and row.
"""

import errno
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repro.errors import DataError, ReproError
from repro.refusals import refusal

BROKEN = (OSError, MemoryError, ValueError, pa.ArrowException)  # what pyarrow raises over a damaged file
SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.parquet")


def splits(folder: Path) -> dict[str, list[Path]]:
    """The splits under `folder` with their files in order; raises DataError when a numbered file is missing."""
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in sorted(folder.glob("*.parquet")):
        if m := SHARD.fullmatch(path.name):
            found.setdefault(m["split"], []).append((int(m["index"]), int(m["count"]), path))
    for split, shards in found.items():
        counts = {count for _, count, _ in shards}
        if len(counts) > 1:
            numberings = " and ".join(f"of-{count:05d}" for count in sorted(counts))
            raise DataError(f"{folder}: {split} has files of two numberings, {numberings}; remove the wrong ones")
        count, indices = counts.pop(), {index for index, _, _ in shards}
        if missing := set(range(count)) - indices:
            names = ", ".join(f"{split}-{i:05d}-of-{count:05d}.parquet" for i in sorted(missing))
            raise DataError(f"{folder}: {split} is not whole: missing {names}; copy it again")
        if extra := indices - set(range(count)):
            raise DataError(f"{folder}: {split} has a file number {max(extra)} of {count}; remove the wrong one")
    return {split: [path for *_, path in shards] for split, shards in found.items()}


def not_readable(path: Path, e: Exception) -> ReproError:
    """The error for a file over which pyarrow raised `e`."""
    is_path = isinstance(e, UnicodeEncodeError) or (isinstance(e, OSError) and e.errno == errno.EMFILE)
    if is_path and (refused := refusal(e)):  # nothing is wrong with what is in the file
        return refused
    return DataError(
        f"{path}: not readable as parquet, cut short or damaged ({' '.join(str(e).split())}); copy it again"
    )


class Rows:
    """The encoded pictures and labels of one split, and where each stands."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.images: list[bytes] = []
        self.labels: list[int] = []
        self.classes: tuple[str, ...] | None = None
        self._starts: list[tuple[int, Path]] = []
        for path in files:
            self._starts.append((len(self.labels), path))
            self._read(path)
        if not self.labels:
            raise DataError(f"{files[0]}: no rows; expected at least one picture")

    def place(self, i: int) -> str:
        """File and row of the i-th sample, for messages."""
        start, path = next(s for s in reversed(self._starts) if s[0] <= i)
        return f"{path}: row {i - start}"

    def _read(self, path: Path) -> None:
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except BROKEN as e:
            raise not_readable(path, e) from e
        check_columns(path, table.schema)
        classes = class_names(path, table.schema)
        if self.classes not in (None, classes):
            raise DataError(f"{path}: its class names differ from those of {self._starts[0][1].name}")
        self.classes = classes
        start = len(self.labels)
        for chunk in table["image"].chunks:
            self.images += pc.struct_field(chunk, "bytes").to_pylist()  # None where the struct itself is null
        self.labels += table["label"].to_pylist()
        for i in range(start, len(self.labels)):
            self._check_row(i, len(classes))

    def _check_row(self, i: int, num_classes: int) -> None:
        label = self.labels[i]
        if label is None or not 0 <= label < num_classes:
            raise DataError(f"{self.place(i)}: label {label} is out of range; expected 0…{num_classes - 1}")
        if not self.images[i]:
            raise DataError(f"{self.place(i)}: the image is empty; expected an encoded image file")


def check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise DataError unless there are an `image` and a `label` of the types they should have."""
    found = ", ".join(schema.names) or "none"
    for column in ("image", "label"):
        if schema.names.count(column) != 1:
            raise DataError(f"{path}: expected one column '{column}' beside the other, found {found}")
    image, label = schema.field("image").type, schema.field("label").type
    has_bytes = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not has_bytes or image.field("bytes").type not in (pa.binary(), pa.large_binary()):
        raise DataError(f"{path}: column 'image' is {image}; expected struct<bytes: binary, path: string>")
    if not pa.types.is_integer(label):
        raise DataError(f"{path}: column 'label' is {label}; expected an integer type")


def class_names(path: Path, schema: pa.Schema) -> tuple[str, ...]:
    """The class names in the schema metadata; raises DataError when they are not there."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"]["label"]["names"]
        if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
            return tuple(names)
    except (KeyError, ValueError, TypeError):
        pass
    raise DataError(f"{path}: no class names in the schema metadata under 'huggingface'")
