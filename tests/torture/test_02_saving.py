"""Row 2: the process exits at each step of a save, one after the other."""

import os
from pathlib import Path

import pytest
import torch
from tier import Finding

from repro.training.checkpoint import Checkpoint, load_latest, save


def example(value: float) -> Checkpoint:
    """A checkpoint of a few hundred bytes that can be told from others by `value`."""
    return Checkpoint({"w": torch.full((3, 5), value), "m": torch.full((3, 5), -value)}, {"value": value})


def latest(folder: Path) -> float:
    """The value of the checkpoint that a resume would take."""
    found = load_latest(folder)
    assert found is not None
    assert torch.equal(found.tensors["w"], torch.full((3, 5), found.state["value"]))
    return float(found.state["value"])


def die_in_save(folder: Path, step: int, calls: int) -> None:
    """In a forked child: save, and leave without a word at call number `calls` of those that touch the disk."""
    left = calls

    def counted(function):
        def call(*arguments, **named):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return function(*arguments, **named)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    Path.open, Path.unlink = counted(Path.open), counted(Path.unlink)
    save(folder, step, example(6.5))
    os._exit(0)


@pytest.mark.parametrize("step", [6, 9])
def test_exit_at_each_step(step: int, tmp_path: Path, finding: Finding) -> None:
    """Catches tensors and manifest written in the wrong order, a rename before the sync, an old checkpoint removed
    before the new one is whole, and a save of the same step that damages the one it replaces.
    """
    save(tmp_path, 3, example(3))
    save(tmp_path, 6, example(6))
    points = 0
    for points in range(40):
        pid = os.fork()
        if pid == 0:
            die_in_save(tmp_path, step, points)
        _, status = os.waitpid(pid, 0)
        assert latest(tmp_path) in (6.0, 6.5)  # the one before, or the new one: never an older one, never a part
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert 6 < points < 40
    assert latest(tmp_path) == 6.5
    save(tmp_path, 12, example(12))
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.iterdir())) == 4
    kind = "over the checkpoint of the same step" if step == 6 else "of a later step"
    found = "the one before or the new one loads every time; no litter"
    finding(f"a save {kind}: exit at each of {points} points", found)
