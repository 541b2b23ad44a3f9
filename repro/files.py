"""Files that a reader, or a crash at any moment, finds whole: checkpoints, records and what is measured of them."""

import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from repro.errors import CheckpointError, ResourceError

Model = TypeVar("Model", bound=BaseModel)

MOST_TEXT = 2**23  # bytes of JSON, a history of 30,000 epochs; as objects they may take thirty times the room
SEAL = "content_sha256"


def read_model(kind: type[Model], path: Path, noun: str, remedy: str = "") -> Model:
    """A JSON file as a model, checked; raises CheckpointError naming the file, the field and what to do.

    A file that states the sha256 of its content, as `write_model` has it, is held against it.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        content = json.loads(read_regular(path, MOST_TEXT))
        stated = content.pop(SEAL, None) if isinstance(content, dict) else None
        if stated is not None and stated != digest(content):
            raise CheckpointError(f"{path}: damaged: its content's sha256 is not the one it states{advice}")
        return kind.model_validate(content)
    except OSError as e:
        raise CheckpointError(f"{path}: the {noun} cannot be read ({e.strerror}){advice}") from e
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{path}: not {_a(noun)}: content: no JSON ({e}){advice}") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(f"{path}: not {_a(noun)}: {where}: {first['msg']}{advice}") from e


def write_model(model: BaseModel, path: Path, noun: str, remedy: str = "free space") -> None:
    """Write a model as JSON with the sha256 of it, whole or not at all; raises ResourceError when the disk refuses."""
    content = model.model_dump(mode="json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content | {SEAL: digest(content)}, indent=1, ensure_ascii=False).encode())
    except OSError as e:
        raise ResourceError(f"{path}: the {noun} cannot be written ({e.strerror or e}); {remedy}") from e


def digest(content: Any) -> str:
    """The sha256 of what JSON can hold, however it is laid out in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_regular(path: Path, most: int) -> bytes:
    """What is in a file of at most `most` bytes; OSError where it is larger, or a pipe, a device or a folder.

    Nothing is waited for, and nothing allocated before the size is known.
    """
    # To open a device may do something, and to open a pipe waits for its other end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(path, "rb", opener=_open_at_once) as f:
        size = os.fstat(f.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, expected {most:,} at most", str(path))
        return f.read(size)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_writable(folder: Path, room: int, remedy: str) -> None:
    """Raise ResourceError unless so many bytes can be written in a folder, which may have to be made; nothing stays."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(bytes(room))
            f.flush()
    except OSError as e:
        raise ResourceError(f"{folder}: nothing can be written there ({e.strerror or e}); {remedy}") from e
    finally:
        with suppress(OSError):  # another process may have put something there by now
            for place in made:
                place.rmdir()


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


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


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still is: what a dead one left half written can go."""
    if sys.platform == "win32":
        return True  # there os.kill ends the process instead of asking
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there; the rename is durable by itself
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
