"""What has to be on the disk before what, for a file that is whole whatever happens."""

import errno
import os
import stat
from pathlib import Path

import pytest

from repro import files


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a sync left out, one of a file whose last bytes are still in the program, a rename before the sync, and
    a folder that is not synced after it: a power cut would leave an empty file under the final name, or the old one.
    """
    seen: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def fsync(fd: int) -> None:
        about = os.fstat(fd)
        seen.append(("folder", 0) if stat.S_ISDIR(about.st_mode) else ("file", about.st_size))
        sync(fd)

    def replace(half: Path, path: Path) -> None:
        seen.append(("rename", half.stat().st_size))
        rename(half, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_atomic(tmp_path / "record.json", b"new")
    assert seen == [("file", 3), ("rename", 3), ("folder", 0)]
    assert (tmp_path / "record.json").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file opened for writing before the new content is safe, and a part of it left behind."""
    path = tmp_path / "record.json"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(OSError, match="Read-only"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
