"""Runs that are stopped and resumed: they end with the same bits, or are refused. `tests/torture` kills them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY_TOML, register_tiny, tiny_recipe

from repro.errors import RecipeError
from repro.training import train

# The real command line, with the net of the tests registered.
COMMAND = "from helpers import register_tiny; register_tiny(); from repro.cli import main; main()"


@pytest.mark.usefixtures("_tiny")
def test_without_resume_nothing_is_overwritten(tmp_path: Path) -> None:
    """Catches a second start that erases a week of work."""
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    stopped_at(2, tmp_path / "runs" / "tiny-0")
    before = sorted(p.name for p in (tmp_path / "runs" / "tiny-0").iterdir())
    arguments = [sys.executable, "-c", COMMAND, "train", "tiny.toml", "--threads", "1"]
    again = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "repro: runs/tiny-0: holds a run already; go on with --resume" in again.stderr
    assert sorted(p.name for p in (tmp_path / "runs" / "tiny-0").iterdir()) == before


@pytest.mark.usefixtures("_tiny")
def test_a_complete_run_is_not_trained_again(tmp_path: Path) -> None:
    """Catches a start that got the lock when another one had just ended, and trains the same run anew."""
    train(tiny_recipe(epochs=1), seed=0, run_dir=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RecipeError, match=r"holds a run already; go on with --resume"):
        train(tiny_recipe(epochs=1), seed=0, run_dir=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.fixture
def _tiny() -> None:
    register_tiny()
    torch.set_num_threads(1)


class Stop(Exception):
    """Ends a run from within, like a kill that leaves the process alive for the test."""


def stopped_at(step: int, folder: Path, **changes: Any) -> None:
    """Run until the checkpoint after the `step`-th step is written, then stop."""
    from repro.training import checkpoint

    real = checkpoint.save

    def save(folder: Path, at: int, content: Any) -> None:
        real(folder, at, content)
        if at >= step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Stop):
            train(tiny_recipe(**changes), run_dir=folder, save_every_s=0)


def assert_resumes(step: int, folder: Path, **changes: Any) -> None:
    """Fails unless a run stopped at `step` and resumed ends with the bits and metrics of one that was let through."""
    expected_record, expected = train(tiny_recipe(**changes))
    stopped_at(step, folder, **changes)
    record, model = train(tiny_recipe(**changes), run_dir=folder, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert [e.model_dump(exclude={"seconds"}) for e in record.epochs] == [
        e.model_dump(exclude={"seconds"}) for e in expected_record.epochs
    ]


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("step", [1, 6, 7, 8, 13])
def test_resuming_works_at_every_place_of_an_epoch(step: int, tmp_path: Path) -> None:
    """Catches the last step of an epoch (7 of 7): no step is left, but its metrics are."""
    assert_resumes(step, tmp_path)


OF_2012 = {
    "data": {"name": "digits", "limit": 200, "size": 32, "mean_image": "centre", "std": [0.5]},
    "augmentation": {"crop": 28, "crop_chunk": 8, "flip": True, "color_noise": 0.1, "color_noise_convention": "code"},
    "optimizer": {"name": "sgd2012", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "bias_rate": 2.0,
                  "bias_decay": False, "weight_decay_of": {"8": 0.1}},
    "schedule": {"name": "steps", "at": [1]},
    "test_views": 10,
}  # fmt: skip
OF_KERAS = {
    "augmentation": {"rotation": 15.0, "shear": 0.2, "zoom": 0.2, "shift": 0.2, "flip": True},
    "optimizer": {"name": "sgd2012", "learning_rate": 0.01, "momentum": 0.9},
    # Every epoch after the first is a stall, so each has a rate of its own.
    "schedule": {"name": "plateau", "patience": 1, "min_delta": 100.0, "factor": 0.5, "decay_per_step": 0.01},
    "epochs": 4,
}


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    ("changes", "step"), [(OF_2012, 5), (OF_2012, 7), (OF_2012, 9), (OF_KERAS, 6), (OF_KERAS, 14), (OF_KERAS, 23)]
)
def test_resuming_keeps_rates_groups_and_draws(changes: dict[str, Any], step: int, tmp_path: Path) -> None:
    """Catches a plateau counted in the process and not in the history, steps counted from the resume, velocities given
    to the parameters of another group, and crops that a chunk draws from its place among the steps of this process.
    """
    assert_resumes(step, tmp_path, **changes)


@pytest.mark.usefixtures("_tiny")
def test_a_run_that_stopped_by_its_training_error_stays_stopped(tmp_path: Path) -> None:
    """Catches a resume that trains on because there are epochs left."""
    changes = {"data": {"name": "digits"}, "augmentation": {}, "epochs": 30, "stop_at_train_error": 0.8}
    record, expected = train(tiny_recipe(**changes), run_dir=tmp_path)
    assert len(record.epochs) < 30
    (tmp_path / "record.json").unlink()  # killed between the last checkpoint and the record
    again, model = train(tiny_recipe(**changes), run_dir=tmp_path, resume=True)
    assert (again.epochs, again.status) == (record.epochs, "complete")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.usefixtures("_tiny")
def test_a_run_made_by_two_states_of_the_code_is_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run started with uncommitted changes that counts because it was finished without them."""
    from repro import records

    clean = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(records, "git_state", lambda: {"commit": "a" * 40, "dirty": True})
    stopped_at(3, tmp_path / "dirty")
    monkeypatch.setattr(records, "git_state", lambda: clean)
    stopped_at(3, tmp_path / "same")
    stopped_at(3, tmp_path / "other")
    assert not train(tiny_recipe(), run_dir=tmp_path / "dirty", resume=True)[0].counts
    assert train(tiny_recipe(), run_dir=tmp_path / "same", resume=True)[0].counts
    monkeypatch.setattr(records, "git_state", lambda: {"commit": "b" * 40, "dirty": False})
    other = train(tiny_recipe(), run_dir=tmp_path / "other", resume=True)[0]
    assert not other.counts
    assert other.git == {"commit": "a" * 40, "dirty": True, "resumed_at": "b" * 40}
