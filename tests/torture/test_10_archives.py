"""Row 10: archives that lead out of their folder, links, devices and bombs, in each kind of archive that is read."""

import gzip
import hashlib
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io  # noqa: F401 (imported here, not in each fork)
import torchvision.datasets  # noqa: F401
from forks import in_a_fork
from helpers import encode
from PIL import Image
from tier import Finding, amount

from repro.data import download
from repro.data.imagenet_layouts import DEVKIT_TAR, TRAIN_TAR, VAL_TAR, find
from repro.data.made_imagenet import make_imagenet, wordnet_ids
from repro.data.sources import FLOWER_CLASSES, Spec
from repro.errors import ReproError

BLOCK, TERABYTE = tarfile.BLOCKSIZE, 2**40
ROOM = 2**30  # bytes of memory that reading one archive may ask for
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {"os.link", "os.symlink", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    """One member as it lies in an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % BLOCK)


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def sparse(name: str) -> bytes:
    """A member without content that says it becomes a terabyte of zeros."""
    header = bytearray(member(name, kind=tarfile.GNUTYPE_SPARSE)[:BLOCK])
    header[257:265] = b"ustar  \0"
    size = b"\x80" + TERABYTE.to_bytes(11, "big")
    header[345:495] = bytes(41) + size + b"0" * 11 + b"\0" + bytes(73) + size
    return with_checksum(bytes(header))


def claimed(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that says a terabyte follows."""
    header = bytearray(member(name, kind=kind)[:BLOCK])
    header[124:136] = b"\x80" + TERABYTE.to_bytes(11, "big")
    return with_checksum(bytes(header))


# What is put among the members of a good archive: from a name that its reader expects there, and a folder outside.
HOSTILE: dict[str, Callable[[str, Path], bytes]] = {
    "a way up": lambda name, out: member(f"../../../{name}", b"x"),
    "a way up in the middle": lambda name, out: member(f"a/../../../{name}", b"x"),
    "an absolute name": lambda name, out: member(f"{out}/escaped", b"x"),
    "another name in pax headers": lambda name, out: member(name, b"x", pax_headers={"path": f"{out}/escaped"}),
    "a symbolic link": lambda name, out: member(name, kind=tarfile.SYMTYPE, linkname=f"{out}/victim"),
    "a file through a symbolic link": lambda name, out: (
        member("link", kind=tarfile.SYMTYPE, linkname=str(out)) + member("link/escaped", b"x")
    ),
    "a file over a hard link": lambda name, out: (
        member(name, kind=tarfile.LNKTYPE, linkname=f"{out}/victim") + member(name, b"x")
    ),
    "a character device": lambda name, out: member(name, kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a block device": lambda name, out: member(name, kind=tarfile.BLKTYPE, devmajor=8),
    "a pipe": lambda name, out: member(name, kind=tarfile.FIFOTYPE),
    "a sparse terabyte": lambda name, out: sparse(name),
    "a terabyte stated": lambda name, out: claimed(name),
    "a terabyte of pax headers": lambda name, out: claimed(name, tarfile.XHDTYPE),
    "10 GB of zeros": lambda name, out: b"",  # as `ZEROS`
}
ZEROS = gzip.compress(bytes(2**26)) * 160


def bodies(archive: Path) -> list[bytes]:
    """The members of a good archive as they lie in it, one by one."""
    with tarfile.open(archive) as tar:
        return [member(m.name, file.read() if (file := tar.extractfile(m)) else b"") for m in tar]


def spoilt(parts: list[bytes], hostile: bytes) -> bytes:
    """The first member, what is hostile, the others, the end mark."""
    return parts[0] + hostile + b"".join(parts[1:]) + bytes(2 * BLOCK)


class Copy:
    """A made ImageNet, of which one archive is replaced, or a member of one."""

    def __init__(self, folder: Path, replaced: str, name: str) -> None:
        self.folder, self.replaced, self.name = folder, replaced, name
        make_imagenet(folder, "tar", classes=2, per_class=2, val_per_class=1, side=12, odd=False)
        self.parts, self.inside = bodies(folder / replaced), name.endswith("_9.JPEG")

    def write(self, kind: str, out: Path) -> None:
        hostile = HOSTILE[kind](self.name, out)
        if self.inside:  # an archive of a class, within the archive of training pictures
            wnid, archive = wordnet_ids(2)[1], self.folder.with_suffix(".tar")
            archive.write_bytes(self.parts[1][BLOCK:])
            content = ZEROS if kind == "10 GB of zeros" else spoilt(bodies(archive), hostile)
            content = spoilt([self.parts[0], member(f"{wnid}.tar", content)], b"")
        else:
            content = ZEROS if kind == "10 GB of zeros" else spoilt(self.parts, hostile)
            if self.replaced.endswith(".gz") and kind != "10 GB of zeros":
                content = gzip.compress(content)
        (self.folder / self.replaced).write_bytes(content)

    def read(self) -> Any:
        found = find(self.folder)
        return [(s, e.name, e.label, e.read().hex()) for s, entries in found.entries.items() for e in entries]


class Flowers:
    """The flowers as they were downloaded, one photograph of each kind; what is hostile has the published digest."""

    name = "flower_photos/roses/9.jpg"

    def __init__(self, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.archive, self.patch = cache / "downloads" / "flowers" / download.FLOWERS_ARCHIVE, patch
        photos = [encode(Image.new("RGB", (8, 6), (40 * k, 0, 0)), "JPEG") for k in range(len(FLOWER_CLASSES))]
        self.parts = [member(f"flower_photos/{k}/0.jpg", p) for k, p in zip(FLOWER_CLASSES, photos, strict=True)]
        self.spec = Spec("five", {"train": 5, "val": 0}, FLOWER_CLASSES, 3, size=4)

    def write(self, kind: str, out: Path) -> None:
        content = gzip.compress(spoilt(self.parts, HOSTILE[kind](self.name, out)))
        if kind == "10 GB of zeros":
            content = gzip.compress(claimed(self.name)) + ZEROS
        self.archive.parent.mkdir(parents=True, exist_ok=True)
        self.archive.write_bytes(content)
        self.patch.setattr(download, "FLOWERS_SHA256", hashlib.sha256(content).hexdigest())

    def read(self) -> Any:
        found = download.fetch("flowers", "train", 4, self.spec)
        return [found.labels.tolist(), np.asarray(found.images).tolist()]


def watched(read: Callable[[], Any], own: tuple[Path, ...]) -> dict[str, Any]:
    """What reading says or brings, and what it opened to write or changed outside its own folders; for a process that
    ends with it, as nobody can take the hook off again.
    """
    changed: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        paths = arguments[:2] if event in {"os.link", "os.symlink", "os.rename"} else arguments[:1]
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            # Removing a tree names its files by the folder that is open.
            folder = (
                f"/proc/self/fd/{arguments[1]}" if event in {"os.remove", "os.rmdir"} and arguments[1] != -1 else ""
            )
            places = [os.path.join(folder, os.fsdecode(p)) for p in paths if isinstance(p, str | bytes | os.PathLike)]
            changed.extend(p for p in places if not os.path.realpath(p).startswith(tuple(map(str, own))))

    sys.addaudithook(watch)
    try:
        return {"content": read(), "changed": changed, "refused": None}
    except ReproError as e:
        return {"changed": changed, "refused": [type(e).__name__, str(e)]}


def tree(folder: Path) -> dict[str, Any]:
    """All that lies there: kind, permissions, links, time and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        s = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        found[str(path)] = (s.st_mode, s.st_nlink if content else 0, s.st_mtime_ns if content else 0, content)
    return found


def test_hostile_archives(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, finding: Finding) -> None:
    """Catches a member that is written outside, a link that is followed, a device that is opened, a size that is asked
    of the memory because a header states it, zeros unpacked without end, and a set that is taken with more in it.
    """
    out, scratch = tmp_path / "outside", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    (out / "victim").write_bytes(b"precious")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(download, "MOST_UNPACKED", amount(2**26, download.MOST_UNPACKED))
    wnid = wordnet_ids(2)[1]
    kit = DEVKIT_TAR.removesuffix(".tar.gz")
    readers = {
        "training": Copy(tmp_path / "training", TRAIN_TAR, f"{wnid}.tar"),
        "class": Copy(tmp_path / "class", TRAIN_TAR, f"{wnid}_9.JPEG"),
        "validation": Copy(tmp_path / "validation", VAL_TAR, "ILSVRC2012_val_00000001.JPEG"),
        "devkit": Copy(tmp_path / "devkit", DEVKIT_TAR, f"{kit}/data/meta.mat"),
        "flowers": Flowers(cache, monkeypatch),
    }
    refused = ignored = most = 0
    for where, reader in readers.items():
        HOSTILE["nothing"] = lambda name, out: b""
        reader.write("nothing", out)
        good, _ = in_a_fork(lambda read=reader.read: watched(read, (cache, scratch)), ROOM)
        del HOSTILE["nothing"]
        assert good["refused"] is None, (where, good["refused"])
        for kind in HOSTILE:
            reader.write(kind, out)
            before = tree(tmp_path)
            found, taken = in_a_fork(lambda read=reader.read: watched(read, (cache, scratch)), ROOM)
            after = tree(tmp_path)
            removed = before.keys() - after.keys()
            assert {Path(p).name for p in removed} <= {"flowers", download.FLOWERS_ARCHIVE}, (where, kind)
            assert after == {p: v for p, v in before.items() if p not in removed}, (where, kind)
            assert not found["changed"], (where, kind, found["changed"])
            if found["refused"]:
                assert found["refused"][0] == "DataError", (where, kind, found["refused"])
                assert len(found["refused"][1].splitlines()) == 1
                refused += 1
            else:
                assert found["content"] == good["content"], (where, kind)
                assert where == "flowers", kind
                ignored += 1
            most = max(most, taken)
    count = len(readers) * len(HOSTILE)
    assert refused + ignored == count >= 36
    assert most < ROOM
    finding(
        f"{count} archives: {len(HOSTILE)} hostile contents (ways up, absolute names, links, devices, pipes,"
        f" false sizes, 10 GB of zeros) in {len(readers)} kinds of archive",
        f"0 bytes outside; {refused} refused, {ignored} read without that member; at most {most / 2**20:.0f} MiB taken",
    )
