"""Downloads from a server on this machine: small files in MNIST's format, whole, forged, cut short, or not at all."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import encode
from PIL import Image
from torchvision import datasets

from repro.data import download, load
from repro.data.cache import content_digest
from repro.data.sources import SPECS, Spec
from repro.errors import DataError, ResourceError
from repro.fetch import Published

SIDE = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE), dtype=np.uint8)
LABELS = np.arange(7, dtype=np.uint8) % 10
PARTS = {"train": slice(0, 4), "t10k": slice(4, 7)}


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: two zeros, the type 8, the number of axes, their lengths in big-endian, the bytes."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes(), mtime=0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder behind a loopback server: the folder, its address, and the paths asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a: object) -> None:
            super().__init__(*a, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


@pytest.fixture
def mnist(served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch, cache: Path, data: Path) -> Path:
    """MNIST replaced by seven small pictures behind a loopback server; returns the served folder."""
    folder, address, _ = served
    resources = []
    for part, rows in PARTS.items():
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            content = idx(array[rows])
            name = f"{part}-{kind}-ubyte.gz"
            (folder / name).write_bytes(content)
            resources.append((name, hashlib.md5(content).hexdigest()))
    monkeypatch.delenv("REPRO_OFFLINE")
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    classes = SPECS["mnist"].classes
    digest = content_digest(*map(torch_of, (IMAGES[PARTS["train"]][..., None], LABELS[PARTS["train"]])), classes)
    monkeypatch.setitem(SPECS, "mnist", Spec("tiny", {"train": 4, "test": 3}, classes, 1, digests={"train": digest}))
    return folder


def torch_of(array: np.ndarray):
    import torch

    return torch.from_numpy(array.astype(np.uint8))


def test_a_set_is_downloaded_once_and_decoded(
    mnist: Path, served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches rows for columns, train for test, and a second download for the second split."""
    train = load("mnist")
    asked = len(served[2])
    monkeypatch.setenv("REPRO_OFFLINE", "1")  # what is here already needs no network
    test = load("mnist", "test")
    np.testing.assert_array_equal(train.images[..., 0].numpy(), IMAGES[:4])
    np.testing.assert_array_equal(test.images[..., 0].numpy(), IMAGES[4:])
    assert test.labels.tolist() == LABELS[4:].tolist()
    assert train.source == "torchvision"
    assert load("mnist", size=10).images.shape == (4, 10, 10, 1)
    assert len(served[2]) == asked
    assert not list(cache.rglob("*.half"))


def test_the_next_mirror_is_asked(mnist: Path, served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one dead or lying mirror that ends it all."""
    (mnist / "lies").mkdir()
    for path in mnist.glob("*.gz"):
        (mnist / "lies" / path.name).write_bytes(idx(np.zeros((4, SIDE, SIDE), np.uint8)))
    address = served[1]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{address}gone/", f"{address}lies/", address])
    np.testing.assert_array_equal(load("mnist").images[..., 0].numpy(), IMAGES[:4])


def test_forged_archives_are_refused(mnist: Path, cache: Path) -> None:
    """Catches an archive that is taken although its md5 is another; and the fallback that then says so."""
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(idx(255 - IMAGES[:4]))
    with pytest.raises(DataError, match=r"mnist: not in the cache.*not the published file: the md5 of what came is"):
        load("mnist")
    assert load("mnist", fallback="digits").name == "digits"
    assert not list((cache / "downloads").rglob("*"))


def test_pictures_forged_with_a_matching_md5_are_refused_by_their_digest(
    mnist: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches trust in md5, for which collisions can be made; whatever size is asked for."""
    forged = idx(255 - IMAGES[:4])
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(forged)
    (name, _), *rest = datasets.MNIST.resources
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, hashlib.md5(forged).hexdigest()), *rest])
    for size in (None, 8):
        with pytest.raises(DataError, match="not the published set, by its digest"):
            load("mnist", size=size)
    assert not (cache / "mnist").exists()


def test_archives_damaged_after_the_download_are_fetched_anew(mnist: Path, cache: Path) -> None:
    """Catches unpacked files that are believed because they are there."""
    load("mnist")
    path = cache / "downloads" / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(idx(255 - IMAGES[4:]))
    with pytest.raises(DataError, match=r"mnist: the download is damaged .*t10k-images.*run the command again"):
        load("mnist", "test")
    np.testing.assert_array_equal(load("mnist", "test").images[..., 0].numpy(), IMAGES[4:])


def test_too_few_pictures_are_refused(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half a set from a mirror that calls it whole."""
    monkeypatch.setitem(SPECS, "mnist", Spec("tiny", {"train": 5, "test": 3}, SPECS["mnist"].classes, 1))
    with pytest.raises(DataError, match="4 pictures downloaded, expected 5"):
        load("mnist")


def test_a_full_disk_is_not_called_a_bad_network(mnist: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the advice to look for a network, digits in the set's place, and what was written so far left behind."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        ResourceError, match=r"mnist: the cache cannot be written \(No space left on device\); free space"
    ):
        load("mnist", fallback="digits")
    assert not list((cache / "downloads").iterdir())


def test_two_processes_may_fetch_at_once(mnist: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the second one's rename onto the first one's folder that fails."""
    fetch = download.fetch_file

    def overtaken(file: Published, folder: Path) -> None:
        fetch(file, folder)
        (cache / "downloads" / "mnist").mkdir(exist_ok=True)
        fetch(file, cache / "downloads" / "mnist")

    monkeypatch.setattr(download, "fetch_file", overtaken)
    assert len(load("mnist")) == 4
    assert sorted(p.name for p in (cache / "downloads").iterdir()) == ["mnist"]


def flowers(extra: tuple[str, bytes] | None = None) -> bytes:
    """An archive of ten photographs of two kinds, and perhaps a member that wants out."""
    files = {
        f"flower_photos/{kind}/{i}.jpg": encode(Image.new("RGB", (8, 6), (25 * i, 0, 0)), "JPEG")
        for kind in SPECS["flowers"].classes
        for i in range(10)
    }
    files |= dict([extra]) if extra else {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("flower_photos/roses/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


Serve = Callable[[bytes], None]


@pytest.fixture
def flower_server(served, monkeypatch: pytest.MonkeyPatch, cache: Path, data: Path) -> Serve:
    """Puts an archive in the place of the published one, its digest with it."""
    monkeypatch.delenv("REPRO_OFFLINE")
    monkeypatch.setattr(download, "FLOWERS_URL", f"{served[1]}flower_photos.tgz")
    spec = Spec("tiny", {"train": 45, "val": 5}, SPECS["flowers"].classes, 3, size=4)
    monkeypatch.setitem(SPECS, "flowers", spec)

    def serve(archive: bytes) -> None:
        (served[0] / "flower_photos.tgz").write_bytes(archive)
        monkeypatch.setattr(download, "FLOWERS_SHA256", hashlib.sha256(archive).hexdigest())

    return serve


def test_flowers_are_split_by_name_and_links_stay_out(flower_server: Serve) -> None:
    """Catches a symlink that is followed, and a picture in both splits."""
    flower_server(flowers())
    train, val = load("flowers"), load("flowers", "val")
    assert train.images.shape == (45, 4, 4, 3)
    assert val.labels.tolist() == [0, 1, 2, 3, 4]
    held_back = min(range(10), key=lambda i: hashlib.sha256(f"{i}.jpg".encode()).digest())
    assert abs(val.images[..., 0].float().mean().item() - 25 * held_back) < 4


@pytest.mark.parametrize("name", ["../escaped.jpg", "/tmp/escaped.jpg", "flower_photos/../../escaped.jpg"])
def test_members_that_want_out_do_not_get_out(name: str, flower_server: Serve, tmp_path: Path) -> None:
    """Catches an archive that writes outside its folder."""
    flower_server(flowers((name, b"x")))
    with contextlib.suppress(DataError):  # refused as a whole, or taken without that member
        load("flowers")
    assert not Path("/tmp/escaped.jpg").exists()
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_a_cut_off_archive_is_removed_and_said(flower_server: Serve, cache: Path) -> None:
    """Catches a bare tarfile error, and a torso that is believed for ever after."""
    whole = flowers()
    flower_server(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="flowers: the download is damaged"):
        load("flowers")
    flower_server(whole)
    assert len(load("flowers")) == 45
