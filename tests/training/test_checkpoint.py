"""Checkpoints under attack: every byte region, every moment of a save, foreign and forged files."""

from pathlib import Path

import pytest
import torch

from repro.errors import CheckpointError
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


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"tensors": 1, "state": {}, "digest": "x"}', "\udcff"])
def test_manifests_of_another_shape_are_checkpoint_errors(content: str, tmp_path: Path) -> None:
    """Catches a KeyError or TypeError that ends as a stack trace."""
    path = tmp_path / "step-000000001.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_a_later_step_is_not_kept(two: Path) -> None:
    """Catches a damaged newest checkpoint that pushes the whole ones out as the run goes on from an older one."""
    part(two, 6, "json").write_bytes(b"")
    save(two, 4, example(4))
    save(two, 5, example(5))
    assert sorted(p.name[:14] for p in two.glob("*.json")) == ["step-000000004", "step-000000005"]
