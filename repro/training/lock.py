"""One process at a time trains in a run's folder: two would write over each other's checkpoints.

The operating system keeps the lock and gives it back when its holder ends, however that comes about: a run that was
killed blocks nobody. Chapter 10 has runs of several processes, of which the first one holds it for all.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from repro.errors import ResourceError

LOCK, HOLDER = ".lock", ".holder"
PATIENCE_S = 1.0  # for another process that only looks whether the folder is free


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; raises ResourceError naming the process that holds it already.

    Also raises ResourceError when the folder cannot be made or written.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE_S)
    except Timeout as e:
        raise _held(folder) from e
    except OSError as e:
        raise ResourceError(
            f"{folder}: no run can be kept there ({e.strerror or e}); name a folder that can be written by --run-dir"
        ) from e
    try:
        with suppress(OSError):  # on a full disk the lock holds without a name on it
            now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            (folder / HOLDER).write_text(f"process {os.getpid()} of {platform.node()} (since {now})", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def check_free(folder: Path) -> None:
    """Raise ResourceError where another process trains in the folder; what cannot be locked is not judged here."""
    if not (folder / LOCK).exists():
        return
    try:
        with FileLock(folder / LOCK, timeout=0):
            pass
    except Timeout as e:
        raise _held(folder) from e
    except OSError:
        pass


def _held(folder: Path) -> ResourceError:
    holder = ""
    with suppress(OSError):
        holder = (folder / HOLDER).read_text(encoding="utf-8")
    return ResourceError(
        f"{folder}: {holder or 'another process'} trains in it; wait for its end, or give this run another --run-dir"
    )
