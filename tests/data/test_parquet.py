"""Parquet in the layout of the hub; what is refused, and in which words, is in `tests/torture/test_08_contents.py`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import CLASSES, encode, own_set, random_images, write_parquet
from PIL import Image

from repro.data import load
from repro.errors import DataError

GOOD = [encode(Image.fromarray(i)) for i in random_images(6)]


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
