"""Tensors from a file: byte for byte what was written, or an error that names the file."""

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from repro.errors import CheckpointError
from repro.files import MOST_TEXT
from repro.tensors import read_tensors

TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "none": torch.zeros(0, 4, dtype=torch.bfloat16)}


def read_as(path: Path, data: bytes, **stated: int | str) -> dict[str, torch.Tensor]:
    """Write a file and read it as what its digest says, or as what is stated."""
    path.write_bytes(data)
    about = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "stated_in": "the manifest"}
    return read_tensors(path, **(about | stated))  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Catches a type or a shape that changes, that of an empty tensor too."""
    found = read_as(tmp_path / "t", save(TENSORS))
    assert {k: (t.dtype, t.shape, t.tolist()) for k, t in found.items()} == {
        k: (t.dtype, t.shape, t.tolist()) for k, t in TENSORS.items()
    }


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Catches a digest that is not compared: safetensors takes a flipped bit of the data without a word."""
    data = save(TENSORS)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CheckpointError, match=r"t: damaged: its sha256 is not the one in the manifest; copy it$"):
        read_as(tmp_path / "t", flipped, sha256=hashlib.sha256(data).hexdigest(), remedy="copy it")


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_another_size_is_noticed_before_the_content(size: int, tmp_path: Path) -> None:
    """Catches a file that is read whole, however large, before its size is compared."""
    with pytest.raises(CheckpointError, match=f"t: damaged: .* bytes, expected {size:,}"):
        read_as(tmp_path / "t", save(TENSORS), size=size)


def test_a_header_is_no_larger_than_it_may_be(tmp_path: Path) -> None:
    """Catches a header of a hundred megabytes that is parsed, which takes many times that."""
    data = struct.pack("<Q", MOST_TEXT + 1) + b" " * (MOST_TEXT + 1)
    with pytest.raises(CheckpointError, match=r"t: damaged: a header of 8,388,609 bytes, expected 8,388,608 at most"):
        read_as(tmp_path / "t", data)
