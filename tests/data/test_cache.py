"""The cache under attack: damage, kills, races, full disks; and its digest against one written out anew."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, own_set

from repro.data import cache as module
from repro.data import load
from repro.data.images import channel_statistics
from repro.data.sources import prepare
from repro.errors import DataError, ResourceError

FILES = ("images.bin", "labels.bin", "meta.json")


def written_out_digest(images: np.ndarray, labels: list[int], classes: tuple[str, ...]) -> str:
    """The digest as its docstring describes it, with Python's own numbers."""
    total = 0
    for image, label in zip(images, labels, strict=True):
        size = ",".join(str(n) for n in image.shape)
        total += int.from_bytes(hashlib.sha256(f"{label};{size};".encode() + image.tobytes()).digest(), "little")
    tail = (total % 2**256).to_bytes(32, "little")
    return hashlib.sha256(json.dumps(list(classes)).encode() + tail).hexdigest()


def digest(images: np.ndarray, labels: list[int], classes: tuple[str, ...] = CLASSES) -> str:
    return module.content_digest(torch.from_numpy(images), torch.tensor(labels), classes)


@pytest.fixture
def drawn() -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, 3, 4, 2), dtype=np.uint8), rng.integers(0, 3, 8).tolist()


def test_digest_is_the_one_described_and_ignores_order(drawn: tuple[np.ndarray, list[int]]) -> None:
    """Catches a digest over bytes in their order, and one that changes from release to release."""
    images, labels = drawn
    assert digest(images, labels) == written_out_digest(images, labels, CLASSES)
    assert digest(images[::-1].copy(), labels[::-1]) == digest(images, labels)


def test_digest_notices_every_small_change(drawn: tuple[np.ndarray, list[int]]) -> None:
    """Catches XOR (a pair of duplicates cancels), labels hashed apart from their pictures, and class names left out."""
    images, labels = drawn
    labels[0], labels[1] = 0, 1
    changed = images.copy()
    changed[3, 1, 2, 0] ^= 1
    twice = np.concatenate([images, images[:1]]), [*labels, labels[0]]
    variants = [
        (images, labels, CLASSES),
        (changed, labels, CLASSES),
        (images, [1, 0, *labels[2:]], CLASSES),
        (images, labels, CLASSES[::-1]),
        (*twice, CLASSES),
        (np.concatenate([twice[0], images[:1]]), [*twice[1], labels[0]], CLASSES),
        (images[1:], labels[1:], CLASSES),
        (images.reshape(8, 4, 3, 2), labels, CLASSES),
    ]
    assert len({digest(*v) for v in variants}) == len(variants)


def test_statistics_are_numpys_over_this_split() -> None:
    """Catches mean and deviation exchanged between channels, n − 1 for n, and sums that overflow."""
    images = np.random.default_rng(1).integers(0, 256, (50, 7, 5, 3), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=1e-12)
    assert channel_statistics(torch.full((9, 1, 1, 1), 51, dtype=torch.uint8)) == ((0.2,), (0.0,))
    with pytest.raises(DataError, match="no pictures"):
        channel_statistics(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))


def test_what_is_written_is_read_without_a_copy(data: Path, cache: Path) -> None:
    """Catches a cache that loses labels, classes or statistics, and one read into memory instead of mapped."""
    images = own_set(data)
    load("pets")
    shutil.rmtree(data)
    (data / "pets").mkdir(parents=True)
    (data / "pets" / "train-00000-of-00001.parquet").touch()  # its name is enough: the cache comes first
    found = load("pets")
    np.testing.assert_array_equal(found.images.numpy(), images)
    assert found.labels.tolist() == [0, 1, 2] * 4
    assert found.classes == CLASSES
    np.testing.assert_allclose(found.mean, (images / 255).mean((0, 1, 2)))
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(cache / "pets" / "train-native" / "images.bin") in maps.read_text()


def test_writing_into_the_pictures_does_not_reach_the_cache(data: Path, cache: Path) -> None:
    """Catches a shared map, through which a slip in a notebook would damage the file for everybody."""
    images = own_set(data)
    load("pets").images.zero_()
    assert (cache / "pets" / "train-native" / "images.bin").read_bytes() == images.tobytes()
    np.testing.assert_array_equal(load("pets").images.numpy(), images)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_noticed_and_made_again(file: str, data: Path, cache: Path, capfd) -> None:
    """Catches what neither file systems, memory maps nor JSON notice: one bit, wherever it lies."""
    images = own_set(data)
    load("pets")
    path = cache / "pets" / "train-native" / file
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), size=60, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        capfd.readouterr()
        found = load("pets")
        np.testing.assert_array_equal(found.images.numpy(), images)
        assert found.labels.tolist() == [0, 1, 2] * 4
        assert path.read_bytes() == whole, f"bit {bit} was taken as it is"
        error = capfd.readouterr().err
        # The number of the format is the one place where another value is no damage but another version.
        assert (error.count("\n") == 1 and str(path) in error) or (not error and b'"format"' in whole[: bit // 8])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0, 10, -1])
def test_truncated_or_missing_files_are_made_again(file: str, kept: int, data: Path, cache: Path, capfd) -> None:
    """Catches a short file that is mapped and read past its end (SIGBUS)."""
    images = own_set(data)
    load("pets")
    path = cache / "pets" / "train-native" / file
    path.write_bytes(path.read_bytes()[:kept])
    np.testing.assert_array_equal(load("pets").images.numpy(), images)
    assert "damaged cache file" in capfd.readouterr().err
    path.unlink()
    np.testing.assert_array_equal(load("pets").images.numpy(), images)
    assert sorted(p.name for p in path.parent.parent.iterdir()) == ["train-native"]


def test_damage_without_a_source_is_an_error(data: Path, cache: Path) -> None:
    """Catches damaged pictures used because there are no others."""
    own_set(data)
    load("pets")
    path = cache / "pets" / "train-native" / "images.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    (data / "pets" / "train-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="not readable as parquet"):
        load("pets")
    with pytest.raises(DataError, match=r"images\.bin: damaged cache file: its sha256"):
        module.read("pets", "train", path.parent)


def test_force_takes_the_source_as_it_is_now(data: Path, cache: Path) -> None:
    """Catches `--force` that decodes everything anew and then keeps the old folder because it is whole."""
    own_set(data)
    load("pets")
    changed = own_set(data, n=15)
    assert len(load("pets")) == 12
    assert len(prepare("pets", "train", force=True)) == 15
    np.testing.assert_array_equal(load("pets").images.numpy(), changed)
    assert not list(cache.rglob(".*"))


PREPARE = "from repro.data import load; print(load('pets').digest)"


def start(cache: Path, data: Path, code: str = PREPARE) -> subprocess.Popen[str]:
    environment = os.environ | {"REPRO_CACHE": str(cache), "REPRO_DATA": str(data)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# Both wait until the other has decoded too, so that both publish at the same moment.
MEET = f"""
import time, pathlib
from repro.data import cache
publish, here = cache._publish, pathlib.Path(cache.cache_dir())
def together(half, folder, digest):
    half.with_suffix(".ready").touch()
    while len(list(folder.parent.glob(".*.ready"))) < 2:
        time.sleep(0.001)
    publish(half, folder, digest)
cache._publish = together
{PREPARE}
"""


def test_two_processes_preparing_at_once_both_succeed(data: Path, cache: Path) -> None:
    """Catches a rename onto the other's folder that fails, and one that deletes it under a reader."""
    own_set(data)
    both = [start(cache, data, MEET) for _ in range(2)]
    results = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], results
    assert {out.strip() for out, _ in results} == {load("pets").digest}
    assert not list(cache.rglob("*.half"))


# Killed in the middle of the first file.
KILLED = f"""
import os
from repro.data import cache
def half_a_file(path, tensor):
    path.write_bytes(b"half")
    os.kill(os.getpid(), 9)
cache._write_file = half_a_file
{PREPARE}
"""


def test_a_kill_while_preparing_leaves_nothing_a_reader_takes(data: Path, cache: Path) -> None:
    """Catches a half-made folder under the final name, and litter that stays for ever."""
    own_set(data)
    killed = start(cache, data, KILLED)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (litter,) = (cache / "pets").iterdir()
    assert litter.name.endswith(".half")
    assert (litter / "images.bin").read_bytes() == b"half"
    assert module.read("pets", "train", cache / "pets" / "train-native") is None
    assert len(load("pets")) == 12
    assert [p.name for p in (cache / "pets").iterdir()] == ["train-native"]


def test_a_living_process_is_not_swept(data: Path, cache: Path) -> None:
    """Catches a sweep that removes what another process is just writing, or what is not of ours."""
    own_set(data)
    (cache / "pets").mkdir(parents=True)
    alive = cache / "pets" / f".train-native-{os.getpid()}-abc.half"
    foreign = cache / "pets" / ".mine.half"
    gone = cache / "pets" / ".train-native-999999999-abc.half"
    for folder in (alive, foreign, gone):
        folder.mkdir()
    load("pets")
    assert alive.exists()
    assert foreign.exists()
    assert not gone.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_is_one_clear_line(call: str, code: int, data: Path, cache: Path, monkeypatch) -> None:
    """Catches a bare OSError, and what was written before it left behind."""
    own_set(data)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ResourceError, match=rf"train-native: the cache cannot be written \({os.strerror(code)}.*REPRO"):
        load("pets")
    assert list((cache / "pets").iterdir()) == []


def test_a_full_disk_leaves_the_good_folder_in_place(data: Path, cache: Path, monkeypatch) -> None:
    """Catches the old folder removed before the new one is whole."""
    images = own_set(data)
    load("pets")
    own_set(data, n=15)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(ResourceError):
            prepare("pets", "train", force=True)
    np.testing.assert_array_equal(load("pets").images.numpy(), images)


def test_a_file_where_the_cache_should_be(data: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """Catches the wrong advice: nothing is damaged, the place is."""
    own_set(data)
    (tmp_path / "taken").touch()
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ResourceError, match="the cache cannot be written"):
        load("pets")
    assert capfd.readouterr().err == ""


def test_another_format_is_made_anew_in_silence(data: Path, cache: Path, capfd) -> None:
    """Catches a cache of an older version called damaged, or taken as it is."""
    own_set(data)
    load("pets")
    path = cache / "pets" / "train-native" / "meta.json"
    path.write_text(json.dumps({"format": module.FORMAT - 1, "shape": [1]}))
    assert len(load("pets")) == 12
    assert json.loads(path.read_text())["format"] == module.FORMAT
    assert capfd.readouterr().err == ""


def test_caches_of_before_stay_valid(data: Path, cache: Path) -> None:
    """Catches a field that came later and makes every set be decoded again, or its absence taken for damage."""
    own_set(data)
    load("pets")
    path = cache / "pets" / "train-native" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["sha256"], meta["skipped"]
    old = json.dumps(meta | {"sha256": hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()})
    path.write_text(old)
    assert load("pets").skipped == ()
    assert path.read_text() == old
