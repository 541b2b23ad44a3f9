"""Checkpoints under attack: every byte region, every moment of a save, foreign and forged files."""

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from repro import files
from repro.errors import CheckpointError, ResourceError
from repro.training import checkpoint
from repro.training.checkpoint import Checkpoint, load, load_latest, save


def example(value: float) -> Checkpoint:
    """A checkpoint of a few hundred bytes that can be told from others by `value`."""
    tensors = {"model/w": torch.full((3, 5), value), "sums/wrong": torch.tensor(7), "bf16": torch.ones(2).bfloat16()}
    return Checkpoint(tensors, {"epoch": 1, "seconds": 1 / 3, "history": [{"test_error": value}]})


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with checkpoints at steps 3 (value 3) and 6 (value 6)."""
    for step in (3, 6):
        save(tmp_path / "run", step, example(step))
    return tmp_path / "run"


def value(found: Checkpoint | None) -> float:
    assert found is not None
    assert found.state["history"][0]["test_error"] == found.tensors["model/w"][0, 0].item()
    return found.state["history"][0]["test_error"]


def part(folder: Path, step: int, kind: str) -> Path:
    (path,) = folder.glob(f"step-{step:09d}*.{kind}")
    return path


def test_what_is_saved_comes_back_to_the_bit(two: Path) -> None:
    """Catches a type widened on the way, a number rounded in JSON, and the older of two taken."""
    found = load_latest(two)
    assert value(found) == 6
    expected = example(6)
    assert found.state == expected.state
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_only_two_stay(two: Path) -> None:
    """Catches a disk filled by a long run, and tensors without a manifest left behind."""
    for step in range(7, 12):
        save(two, step, example(step))
    assert sorted(p.suffix for p in two.iterdir()) == [".json"] * 2 + [".safetensors"] * 2
    assert value(load_latest(two)) == 11
    part(two, 11, "json").write_bytes(b"")
    assert value(load_latest(two)) == 10


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_every_flipped_bit_is_noticed(kind: str, two: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches what torch.load and safetensors take without a word in 195 and 200 of 200 trials."""
    path = part(two, 6, kind)
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), size=200, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert value(load_latest(two)) == 3, f"bit {bit} of {len(whole)} bytes was taken as it is"
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert "damaged" in error
        assert error.endswith("using step-000000003 instead\n")
    path.write_bytes(whole)
    assert value(load_latest(two)) == 6


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_truncated_and_missing_files_are_noticed(kind: str, two: Path) -> None:
    """Catches a short file, and a manifest that outlived its tensors."""
    path = part(two, 6, kind)
    whole = path.read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert value(load_latest(two)) == 3
    path.unlink()
    assert value(load_latest(two)) == 3


def test_parts_of_another_step_are_noticed(two: Path) -> None:
    """Catches tensors and places in training that are each whole but do not belong together."""
    for kind in ("json", "safetensors"):
        newer, older = part(two, 6, kind), part(two, 3, kind)
        whole = newer.read_bytes()
        newer.write_bytes(older.read_bytes())
        with pytest.raises(CheckpointError, match="damaged"):
            load(part(two, 6, "json"))
        newer.write_bytes(whole)


def test_when_all_are_damaged_nothing_starts_from_zero(two: Path) -> None:
    """Catches a silent start from the beginning, which looks like a resumed run."""
    for path in two.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"no older checkpoint is whole either: remove {two} to start anew"):
        load_latest(two)
    assert load_latest(two / "nothing here") is None


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_loading_never_runs_code(kind: str, two: Path, tmp_path: Path) -> None:
    """Catches torch.load as a second attempt: a pickle in place of either file, digests and all."""
    forged = pickle.dumps(Trap(tmp_path / "executed"))
    for step in (3, 6):
        if kind == "safetensors":
            manifest = part(two, step, "json")
            content = json.loads(manifest.read_bytes())
            content["tensors"] = {"bytes": len(forged), "sha256": hashlib.sha256(forged).hexdigest()}
            content.pop("digest")
            content["digest"] = checkpoint._digest(content)
            manifest.write_text(json.dumps(content))
            checkpoint._tensors_of(manifest, content).write_bytes(forged)
        else:
            part(two, step, kind).write_bytes(forged)
    with pytest.raises(CheckpointError, match="not readable"):
        load_latest(two)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"tensors": 1, "state": {}, "digest": "x"}', "\udcff"])
def test_manifests_of_another_shape_are_checkpoint_errors(content: str, tmp_path: Path) -> None:
    """Catches a KeyError or TypeError that ends as a stack trace."""
    path = tmp_path / "step-000000001.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


@pytest.mark.parametrize(("call", "nth"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("replace", 0), ("replace", 1)])
def test_a_full_disk_is_one_line_and_the_one_before_loads(call: str, nth: int, two: Path, monkeypatch) -> None:
    """Catches `unexpected pos 704 vs 598`, and a half-written file left on a disk that is full already."""
    real, count = getattr(os, call), iter(range(100))

    def refuse(*arguments: object) -> object:
        if next(count) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(ResourceError, match=r"cannot be written, \d+ bytes needed \(No space left.*free space"):
            save(two, 9, example(9))
    assert value(load_latest(two)) == 6
    assert not list(two.glob(".*"))


def test_a_later_step_is_not_kept(two: Path) -> None:
    """Catches a damaged newest checkpoint that pushes the whole ones out as the run goes on from an older one."""
    part(two, 6, "json").write_bytes(b"")
    save(two, 4, example(4))
    save(two, 5, example(5))
    assert sorted(p.name[:14] for p in two.glob("*.json")) == ["step-000000004", "step-000000005"]


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch) -> None:
    """Catches a file opened for writing before the new content is safe."""
    path = tmp_path / "record.json"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(OSError, match="Read-only"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
