"""One process at a time trains in a run's folder: two would write over each other's checkpoints.

The operating system keeps the lock and gives it back when its holder ends, however that comes about: a run that was
killed blocks nobody. Chapter 10 has runs of several processes, of which the first one holds it for all.
"""

import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from repro.errors import ResourceError
from repro.files import is_alive, read_regular, write_atomic

LOCK, HOLDER = ".lock", ".holder"
PATIENCE_S = 1.0  # for another process that only looks whether the folder is free
MOST_HOLDER = 1000  # bytes
NAME = re.compile(r"process (?P<pid>\d+) of (?P<node>.*) \(since ")


@dataclass
class Hold:
    """The lock of a run's folder, taken by this process."""

    folder: Path
    lock: FileLock
    known: os.stat_result = field(init=False)
    """The lock's file as it was when it was taken."""

    def __post_init__(self) -> None:
        self.take()

    def take(self) -> None:
        """Make the folder and take its lock; raises ResourceError where that cannot be or another process has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=PATIENCE_S)
            self.known = (self.folder / LOCK).stat()
        except Timeout as e:
            raise _held(self.folder) from e
        except OSError as e:
            raise ResourceError(
                f"{self.folder}: no run can be kept there ({e.strerror or e}); name a folder that can be written by "
                "--run-dir"
            ) from e
        with suppress(OSError):  # on a full disk the lock holds without a name on it
            now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            text = f"process {os.getpid()} of {platform.node()} (since {now})"
            write_atomic(self.folder / HOLDER, text.encode("utf-8", "replace"))

    def renew(self) -> None:
        """Take the lock anew, and say so, where the folder was removed or replaced under the run."""
        if self._is_there():
            return
        self.lock.release()
        self.take()
        print(
            f"repro: {self.folder}: was removed under the run, which has made it anew and goes on; the checkpoints "
            "that were in it are not there",
            file=sys.stderr,
        )

    def give_back(self) -> None:
        """Let others have the folder."""
        if self._is_there():
            with suppress(OSError):
                (self.folder / HOLDER).unlink()
        self.lock.release()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat((self.folder / LOCK).stat(), self.known)
        except OSError:
            return False


@contextmanager
def locked(folder: Path) -> Iterator[Hold]:
    """Hold the lock of a run's folder; raises ResourceError naming the process that holds it already.

    Also raises ResourceError when the folder cannot be made or written.
    """
    hold = Hold(folder, FileLock(folder / LOCK))
    try:
        yield hold
    finally:
        hold.give_back()


def check_free(folder: Path) -> None:
    """Raise ResourceError where another process trains in the folder; what cannot be locked is not judged here."""
    if not (folder / LOCK).exists():
        return
    try:
        with FileLock(folder / LOCK, timeout=PATIENCE_S):
            pass
    except Timeout as e:
        raise _held(folder) from e
    except OSError:
        pass


def _held(folder: Path) -> ResourceError:
    until = time.monotonic() + PATIENCE_S
    while not (holder := _holder(folder)) and time.monotonic() < until:
        time.sleep(0.01)  # it has the lock, and is about to write its name
    return ResourceError(
        f"{folder}: {holder or 'another process'} trains in it; wait for its end, or give this run another --run-dir"
    )


def _holder(folder: Path) -> str:
    """What the holder wrote of itself; nothing where that is the word of a process that is gone."""
    try:
        text = read_regular(folder / HOLDER, MOST_HOLDER).decode(errors="replace")
    except OSError:
        return ""
    named = NAME.match(text)
    gone = named and named["node"] == platform.node() and not is_alive(int(named["pid"]))
    return "" if gone else text
