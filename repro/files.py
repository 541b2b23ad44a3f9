"""Files that a reader, or a crash at any moment, finds whole: checkpoints, records and what is measured of them."""

import os
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from repro.errors import CheckpointError, ResourceError

Model = TypeVar("Model", bound=BaseModel)


def read_model(kind: type[Model], path: Path, noun: str, remedy: str = "") -> Model:
    """A JSON file as a model, checked; raises CheckpointError naming the file, the field and what to do."""
    advice = f"; {remedy}" if remedy else ""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as e:
        raise CheckpointError(f"{path}: the {noun} cannot be read ({e.strerror}){advice}") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        article = "an" if noun[0] in "aeiou" else "a"
        raise CheckpointError(f"{path}: not {article} {noun}: {where}: {first['msg']}") from e


def write_model(model: BaseModel, path: Path, noun: str, remedy: str = "free space") -> None:
    """Write a model as JSON, whole or not at all; raises ResourceError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, model.model_dump_json(indent=1).encode())
    except OSError as e:
        raise ResourceError(f"{path}: the {noun} cannot be written ({e.strerror or e}); {remedy}") from e


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new, never a part."""
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there; the rename is durable by itself
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
