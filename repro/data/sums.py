"""`SHA256SUMS` beside a set's files, as `sha256sum` writes it: where it lies there, nothing else is believed.

JPEG files, tar archives and parquet files without page checksums do not notice a flipped bit, and of a set of one's own
nobody published a digest. Who made the set can state one, in the folder of the set:

    find . -type f ! -name SHA256SUMS -exec sha256sum {} + > SHA256SUMS
"""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from repro.errors import DataError
from repro.progress import track

SUMS = "SHA256SUMS"
LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?:\./)?(?P<name>.+)")
CHUNK = 64  # files a thread reads before it reports


def verify(folder: Path, files: Sequence[Path]) -> None:
    """Hold files under `folder` against the list that lies there, if one does.

    Raises DataError for a file that differs from it or is not listed, and for one that is listed and not there.
    """
    if (stated := _read(folder / SUMS)) is None:
        return
    for name in stated:
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: {SUMS} lists it, but it is not there; copy it again")

    def work(start: int) -> None:
        for path in files[start : start + CHUNK]:
            _require(path, stated.get(path.relative_to(folder).as_posix()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(work, range(0, len(files), CHUNK))
        for _ in track(done, len(files), f"verifying {folder.name}", weight=CHUNK):
            pass


def _read(path: Path) -> dict[str, str] | None:
    """Name and digest of each file that is listed; None where there is no list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); write it again with sha256sum") from e
    stated = {}
    for number, line in enumerate(lines, start=1):
        if not (found := LINE.fullmatch(line)):
            raise DataError(f"{path}: line {number} is none of sha256sum's; write the list again")
        stated[found["name"]] = found["digest"]
    return stated


def _require(path: Path, expected: str | None) -> None:
    if expected is None:
        raise DataError(f"{path}: not listed in {SUMS}; remove the file, or write the list again")
    try:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e}); copy it again") from e
    if found != expected:
        raise DataError(f"{path}: sha256 {found}, but {SUMS} says {expected}; copy it again")
