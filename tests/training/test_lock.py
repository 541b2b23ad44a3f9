"""The lock of a run's folder, between processes."""

import os
import signal
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from repro.errors import ResourceError
from repro.training.lock import check_free, locked


def held_by_a_child(folder: Path) -> int:
    """A forked process that holds the lock until it is killed; returns its id when it does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(folder):
            os.write(writer, b"held")
            signal.pause()
        os._exit(0)
    assert os.read(reader, 4) == b"held"
    return pid


def test_the_second_is_told_who_holds_it_and_a_dead_holder_does_not(tmp_path: Path) -> None:
    """Catches two runs in one folder, a message that names nobody, and a lock that outlives the one who held it."""
    folder = tmp_path / "runs" / "tiny-0"
    check_free(folder)
    assert not folder.exists()
    pid = held_by_a_child(folder)
    try:
        for attempt in (lambda: check_free(folder), lambda: locked(folder).__enter__()):
            with pytest.raises(ResourceError, match=rf"tiny-0: process {pid} of .* trains in it; .*--run-dir"):
                attempt()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    check_free(folder)
    with locked(folder):
        assert str(os.getpid()) in (folder / ".holder").read_text()
    assert not (folder / ".holder").exists()


def test_one_that_only_looks_is_waited_for(tmp_path: Path) -> None:
    """Catches two starts at the same moment of which both look whether the folder is free, and one meets the other's
    look."""
    with locked(tmp_path):
        pass
    looking = FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.2, looking.release).start()
    check_free(tmp_path)


def test_the_name_is_that_of_who_holds_it_now(tmp_path: Path) -> None:
    """Catches the name of a process long dead, read before its successor has written its own."""
    pid = held_by_a_child(tmp_path)
    holder = (tmp_path / ".holder").read_text()
    (tmp_path / ".holder").write_text(holder.replace(f"process {pid} ", "process 999999999 "))
    threading.Timer(0.2, (tmp_path / ".holder").write_text, [holder]).start()
    try:
        with pytest.raises(ResourceError, match=rf"process {pid} of .* trains in it"):
            check_free(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """Catches a bare OSError, hours later at the first checkpoint, where a file stands in the folder's place."""
    (tmp_path / "runs").write_text("a file")
    with (
        pytest.raises(ResourceError, match=r"no run can be kept there \(.*\); name a folder"),
        locked(tmp_path / "runs" / "x"),
    ):
        pass
