"""Archives that nobody vouches for: their regular files are read where they lie, and nothing is ever extracted.

A member that is no regular file, or whose name leads out of the archive, is refused, and so is what unpacks to more
than its kind ever holds. What gzip states of its content is checked to the end before any of it is believed: a reader
that stops at tar's own end mark never comes to the checksum.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from repro.errors import DataError, ReproError

MAT_HEAD, MAT_COMPRESSED = 128, 15  # the level 5 format: bytes before the first element, and the type of packed ones


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever is raised over an archive into a DataError that names it."""
    try:
        yield
    except ReproError:
        raise
    except Exception as e:  # tarfile, gzip and zlib raise a dozen kinds for what is damaged or forged
        why = " ".join(str(e).split()) or type(e).__name__
        raise DataError(f"{path}: not readable as an archive, cut short or damaged ({why}); copy it again") from e


def regular(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Its files; raises DataError for anything but regular files and folders with a name inside, up to an end mark."""
    for member in archive:
        place = PurePosixPath(member.name.replace("\\", "/"))
        outside = place.is_absolute() or ".." in place.parts
        # A sparse file states any size, and what it holds lies otherwise than its offset says.
        if outside or not (member.isreg() or member.isdir()) or member.issparse():
            raise DataError(f"{path}: member {member.name} is no regular file inside the archive; it is not trusted")
        if member.isreg():
            yield member
    # tarfile takes a damaged header for the end, unless it is the first.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{path}: no end mark at byte {archive.offset:,}; cut short or damaged, copy it again")


def unzipped(path: Path, limit: int) -> io.BytesIO:
    """All that a gzip file holds, its checksum verified; DataError for more than `limit` bytes."""
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: unpacks to more than {limit:,} bytes, far from what it should; it is not trusted")
    return io.BytesIO(content)


def require_small_mat(content: bytes, limit: int) -> None:
    """Raise ValueError where the packed elements of a MATLAB file (level 5) unpack to more than `limit` bytes."""
    order = "little" if content[126:128] == b"IM" else "big"
    at, left = MAT_HEAD, limit
    while at + 8 <= len(content):
        kind, size = (int.from_bytes(content[at + k : at + k + 4], order) for k in (0, 4))  # type: ignore[arg-type]
        if kind == MAT_COMPRESSED:
            left -= len(zlib.decompressobj().decompress(content[at + 8 : at + 8 + size], left + 1))
            if left < 0:
                raise ValueError(f"unpacks to more than {limit:,} bytes")
        at += 8 + size
