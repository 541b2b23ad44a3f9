"""Parquet files with every fault we could think of: each is named with its file and row, and the cache stays clean."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import CLASSES, IMAGE, encode, own_set, random_images, write_parquet
from PIL import Image

from repro.data import load
from repro.errors import DataError

GOOD = [encode(Image.fromarray(i)) for i in random_images(6)]
WIDE = encode(Image.fromarray(np.full((6, 6), 70_000 // 2, np.uint16)))
TRAIN = "train-00000-of-00001.parquet"


def images(*replaced: bytes | None) -> list[bytes | None]:
    """Six images, the fifth replaced."""
    return [*GOOD[:4], *replaced, *GOOD[5:]]


def written(folder: Path, **changes: object) -> None:
    write_parquet(folder / TRAIN, **({"images": GOOD, "labels": [0, 1, 2, 0, 1, 2]} | changes))  # type: ignore[arg-type]


def truncated(folder: Path) -> None:
    written(folder)
    path = folder / TRAIN
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_nothing(folder: Path) -> None:
    (folder / TRAIN).write_bytes(b"")


def struct_array(**fields: list[object]) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(v) for v in fields.values()], names=list(fields))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, rf"{TRAIN}: not readable as parquet, cut short or damaged"),
    "empty file": (cut_to_nothing, rf"{TRAIN}: not readable as parquet"),
    "other columns": (
        lambda f: (
            write_parquet(f / TRAIN, GOOD, [0] * 6).unlink()
            or pa.parquet.write_table(pa.table({"img": GOOD, "target": [0] * 6}), f / TRAIN)
        ),
        rf"{TRAIN}: expected one column 'image' .* found img, target",
    ),
    "images as plain bytes": (
        lambda f: written(f, image=pa.array(GOOD)),
        rf"{TRAIN}: column 'image' is binary; expected struct<bytes: binary, path: string>",
    ),
    "images as text": (
        lambda f: written(f, image=struct_array(bytes=["a"] * 6, path=["b"] * 6)),
        rf"{TRAIN}: column 'image' is struct<bytes: string.*expected struct<bytes: binary",
    ),
    "labels as text": (lambda f: written(f, label=pa.array(["cat"] * 6)), rf"{TRAIN}: column 'label' is string"),
    "undecodable image": (
        lambda f: written(f, images=images(b"no picture")),
        rf"{TRAIN}: row 4: the image cannot be decoded",
    ),
    "image cut short": (
        lambda f: written(f, images=images(GOOD[4][:-30])),
        rf"{TRAIN}: row 4: the image cannot be decoded",
    ),
    "empty image": (lambda f: written(f, images=images(b"")), rf"{TRAIN}: row 4: the image is empty"),
    "null image": (lambda f: written(f, images=images(None)), rf"{TRAIN}: row 4: the image is empty"),
    "null struct over bytes": (
        lambda f: written(
            f,
            image=pa.StructArray.from_arrays(
                [pa.array(GOOD), pa.array([None] * 6, pa.string())],
                fields=list(IMAGE),
                mask=pa.array([False] * 5 + [True]),
            ),
        ),
        rf"{TRAIN}: row 5: the image is empty",
    ),
    "label −1": (lambda f: written(f, labels=[0, 1, -1, 0, 1, 2]), rf"{TRAIN}: row 2: label -1 is out of range.*0…2"),
    "label −100": (lambda f: written(f, labels=[-100] * 6), rf"{TRAIN}: row 0: label -100 is out of range"),
    "label n": (lambda f: written(f, labels=[0, 1, 2, 3, 1, 2]), rf"{TRAIN}: row 3: label 3 is out of range.*0…2"),
    "label null": (lambda f: written(f, labels=[0, 1, 2, 0, None, 2]), rf"{TRAIN}: row 4: label None is out of range"),
    "16 bits": (lambda f: written(f, images=images(WIDE)), rf"{TRAIN}: row 4: .*more than 8 bits"),
    "mixed sizes": (
        lambda f: written(f, images=images(encode(Image.new("RGB", (7, 6))))),
        rf"{TRAIN}: row 4: 6×7 pixels, but the first picture has 6×6; give `size`",
    ),
    "no class names": (lambda f: written(f, classes=None), rf"{TRAIN}: no class names in the schema metadata"),
    "no rows": (lambda f: written(f, images=[], labels=[]), rf"{TRAIN}: no rows"),
    "a shard is missing": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00003.parquet", GOOD, [0] * 6) for i in (0, 2)] and None,
        r"train is not whole: missing train-00001-of-00003\.parquet",
    ),
    "the last shard is missing": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00003.parquet", GOOD, [0] * 6) for i in (0, 1)] and None,
        r"train is not whole: missing train-00002-of-00003\.parquet",
    ),
    "two numberings": (
        lambda f: [write_parquet(f / f"train-00000-of-0000{n}.parquet", GOOD, [0] * 6) for n in (1, 2)] and None,
        r"train has files of two numberings, of-00001 and of-00002",
    ),
    "a shard too many": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00001.parquet", GOOD, [0] * 6) for i in (0, 4)] and None,
        r"train has a file number 4 of 1",
    ),
    "classes differ between shards": (
        lambda f: (
            [
                write_parquet(f / f"train-0000{i}-of-00002.parquet", GOOD, [0] * 6, c)
                for i, c in enumerate((CLASSES, CLASSES[::-1]))
            ]
            and None
        ),
        r"train-00001-of-00002\.parquet: its class names differ from those of train-00000",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_with_its_place_and_leaves_nothing(fault: str, data: Path, cache: Path) -> None:
    """Catches a fault that passes in silence, a message without file or row, and a half-made folder in the cache."""
    make, message = FAULTS[fault]
    (data / "pets").mkdir()
    make(data / "pets")
    with pytest.raises(DataError, match=message) as failure:
        load("pets", "train")
    assert str(data) in str(failure.value)
    assert not [p for p in cache.rglob("*") if p.is_file()]
    assert not list(cache.rglob("*.half"))


def test_a_row_is_counted_from_the_start_of_its_own_file(data: Path, cache: Path) -> None:
    """Catches row numbers that run on over the shards, and labels checked in the first shard alone."""
    for i, labels in enumerate(([0, 1, 2, 0, 1, 2], [0, 1, 7, 0, 1, 2])):
        write_parquet(data / "pets" / f"train-0000{i}-of-00002.parquet", GOOD, labels)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: row 2: label 7"):
        load("pets")


def test_shards_come_in_the_order_of_their_numbers_and_columns_may_be_more(data: Path, cache: Path) -> None:
    """Catches shards in the order of the folder, and sets refused for a column that nobody asks for."""
    for i in (2, 0, 1):
        part = slice(2 * i, 2 * i + 2)
        write_parquet(data / "pets" / f"train-0000{i}-of-00003.parquet", GOOD[part], [i, i], extra=pa.array([1, 2]))
    found = load("pets")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.images.numpy(), random_images(6))
    assert found.classes == CLASSES


def test_mixed_sizes_are_brought_to_one(data: Path, cache: Path) -> None:
    """Catches `size` ignored for a set of one's own."""
    own_set(data, side=9)
    assert load("pets", size=4).images.shape == (12, 4, 4, 3)
