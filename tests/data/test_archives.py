"""Archives by hand: what is refused, what is bounded, and checksums that are read to their end."""

import gzip
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from repro.data import archives
from repro.errors import DataError, RecipeError


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def names(content: bytes) -> list[str]:
    with archives.reading(Path("a.tar")), tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        return [m.name for m in archives.regular(archive, Path("a.tar"))]


def test_a_damaged_header_is_not_the_end() -> None:
    """Catches the members behind a flipped bit that are lost without a word, as tarfile loses them."""
    content = tar_of(*((f"{k}", b"x" * 600) for k in range(4)))
    assert names(content) == ["0", "1", "2", "3"]
    for at in (0, 2 * 1536 + 5, 4 * 1536):  # in the first header, in the third, in the end mark
        damaged = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        with pytest.raises(DataError, match=r"^a\.tar: .*cut short or damaged"):
            names(damaged)
    for length in (700, 4 * 1536):
        with pytest.raises(DataError, match=r"^a\.tar: .*cut short or damaged"):
            names(content[:length])


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "..\\x", "..", "a/.."])
def test_names_that_lead_out(name: str) -> None:
    """Catches a way up in the middle of a name, and the other system's separator."""
    with pytest.raises(DataError, match=re.escape(f"member {name} is no regular file inside the archive")):
        names(tar_of((name, b"")))
    assert names(tar_of(("a/..b/c", b""))) == ["a/..b/c"]


def test_gzip_is_checked_to_its_end_and_bounded(tmp_path: Path) -> None:
    """Catches a checksum behind tar's own end mark that nobody comes to, and a file that fills the memory."""
    path, content = tmp_path / "a.gz", tar_of(("a", b"a" * 100))
    packed = gzip.compress(content)
    path.write_bytes(packed)
    assert archives.unzipped(path, len(content)).getvalue() == content
    with pytest.raises(DataError, match=rf"a\.gz: unpacks to more than {len(content) - 1:,} bytes"):
        archives.unzipped(path, len(content) - 1)
    path.write_bytes(packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:])
    with pytest.raises(DataError, match=r"a\.gz: not readable as an archive.*CRC"), archives.reading(path):
        archives.unzipped(path, len(content))


def test_a_table_that_is_a_bomb() -> None:
    """Catches a packed table of classes that fills the memory, and one that is refused although it is small."""
    buffer = io.BytesIO()
    savemat(buffer, dict.fromkeys(("synsets", "more"), np.zeros(2_000_000, np.uint8)), do_compression=True)
    assert len(buffer.getvalue()) < 20_000
    archives.require_small_mat(buffer.getvalue(), 20_000_000)
    for limit in (1_000_000, 3_000_000):
        with pytest.raises(ValueError, match=f"unpacks to more than {limit:,} bytes"):
            archives.require_small_mat(buffer.getvalue(), limit)


def test_errors_of_our_own_pass_through(tmp_path: Path) -> None:
    """Catches a refusal that is wrapped and loses its exit code."""
    with pytest.raises(RecipeError, match=r"^mine$"), archives.reading(tmp_path / "a"):
        raise RecipeError("mine")
