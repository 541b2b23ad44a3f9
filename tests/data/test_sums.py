"""`SHA256SUMS` beside a set: files that differ from it, are not listed, or are not there."""

import hashlib
from pathlib import Path

import pytest
from helpers import own_set

from repro.data import load, sums
from repro.errors import DataError


@pytest.fixture
def listed(tmp_path: Path) -> list[Path]:
    """A hundred files in a folder, and their digests in the two ways that `sha256sum` prints them."""
    files = [tmp_path / f"part {k % 3}" / f"{k}.bin" for k in range(100)]
    lines = []
    for k, path in enumerate(files):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([k]) * k)
        name = path.relative_to(tmp_path).as_posix()
        lines.append(hashlib.sha256(path.read_bytes()).hexdigest() + (f"  ./{name}" if k % 2 else f" *{name}"))
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return files


def test_what_is_listed_is_compared(listed: list[Path], tmp_path: Path) -> None:
    """Catches a list that is not read, a last part of the files that is left out, and digests of other files."""
    sums.verify(tmp_path, listed)
    for path in (listed[0], listed[70], listed[99]):
        whole = path.read_bytes()
        path.write_bytes(whole + b"x")
        with pytest.raises(DataError, match=rf"{path.name}: sha256 .*, but SHA256SUMS says .*; copy it again"):
            sums.verify(tmp_path, listed)
        path.write_bytes(whole)
    sums.verify(tmp_path, listed)


def test_files_too_many_and_too_few(listed: list[Path], tmp_path: Path) -> None:
    """Catches a file that was added or lost since the list was made."""
    extra = tmp_path / "part 0" / "extra.bin"
    extra.write_bytes(b"")
    with pytest.raises(DataError, match=r"extra\.bin: not listed in SHA256SUMS"):
        sums.verify(tmp_path, [*listed, extra])
    listed[5].unlink()
    with pytest.raises(DataError, match=r"5\.bin: SHA256SUMS lists it, but it is not there"):
        sums.verify(tmp_path, listed[:3])


def test_a_list_that_is_none(listed: list[Path], tmp_path: Path) -> None:
    """Catches a line that is passed over because nobody can read it, and a folder or a picture in the list's place."""
    path = tmp_path / "SHA256SUMS"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][1:], *lines[3:]]))
    with pytest.raises(DataError, match="SHA256SUMS: line 3 is none of sha256sum's"):
        sums.verify(tmp_path, listed)
    path.write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match="SHA256SUMS: cannot be read"):
        sums.verify(tmp_path, listed)
    path.unlink()
    sums.verify(tmp_path, listed)


def test_a_set_of_ones_own_is_held_against_its_list(data: Path, cache: Path) -> None:
    """Catches a list that is looked at for other sets alone, and one that hides the set."""
    own_set(data)
    file = data / "pets" / "train-00000-of-00001.parquet"
    (data / "pets" / "SHA256SUMS").write_text(f"{'0' * 64}  {file.name}\n")
    with pytest.raises(DataError, match=rf"{file.name}: sha256 .*, but SHA256SUMS says 0000"):
        load("pets")
    (data / "pets" / "SHA256SUMS").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    assert len(load("pets")) == 12
