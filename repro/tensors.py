"""Tensors from a file whose size and sha256 are known beforehand: no code in it is run, and no byte of it believed.

Neither `torch.load` nor safetensors notices a flipped bit, and the header of a hostile file may claim any size.
"""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from repro.errors import CheckpointError
from repro.files import MOST_TEXT, read_regular


def read_tensors(path: Path, size: int, sha256: str, stated_in: str, remedy: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name; raises CheckpointError where it is not what `stated_in` says."""
    advice = f"; {remedy}" if remedy else ""
    try:
        data = read_regular(path, size)
    except OSError as e:
        raise CheckpointError(f"{path}: damaged: cannot be read ({e.strerror}){advice}") from e
    if len(data) != size:
        raise CheckpointError(f"{path}: damaged: {len(data):,} bytes, expected {size:,}{advice}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path}: damaged: its sha256 is not the one in {stated_in}{advice}")
    header = int.from_bytes(data[:8], "little")
    if header > MOST_TEXT:
        raise CheckpointError(f"{path}: damaged: a header of {header:,} bytes, expected {MOST_TEXT:,} at most{advice}")
    try:
        return load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as e:
        raise CheckpointError(f"{path}: damaged: not readable ({e}){advice}") from e
