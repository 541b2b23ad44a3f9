"""Runs that are killed, stopped and resumed, as processes of their own: they end with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY_TOML, register_tiny, tiny_recipe
from safetensors.torch import load_file

from repro.errors import CheckpointError, ResourceError
from repro.records import read
from repro.training import train
from repro.training.checkpoint import load_latest

# The real command line, with the net of the tests registered.
COMMAND = "from helpers import register_tiny; register_tiny(); from repro.cli import main; main()"
# Its steps slowed down, so that a kill finds them.
SLOWED = f"""
import time
from repro.training.loop import Trainer
step = Trainer.step
def slow(self, indices):
    time.sleep(0.02)
    step(self, indices)
Trainer.step = slow
{COMMAND}
"""
RUN = "tiny-0"


def start(folder: Path, *options: str, code: str = SLOWED) -> subprocess.Popen[str]:
    """`repro train tiny.toml` in `folder`, with a checkpoint after each step."""
    (folder / "tiny.toml").write_text(TINY_TOML)
    arguments = [sys.executable, "-c", code, "train", "tiny.toml", "--threads", "1", "--save-every", "0", *options]
    return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process: subprocess.Popen[str], folder: Path, more: int) -> None:
    """Return when the run has saved `more` steps beyond those that were there."""

    def saved() -> int:
        steps = [int(p.name[5:14]) for p in (folder / "runs" / RUN).glob("step-*.json")]
        return max(steps, default=0)

    first, until = saved(), time.monotonic() + 60
    while saved() < first + more and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All tensors of the last checkpoint (weights, momentum, sums), and every metric but the seconds."""
    run = folder / "runs" / RUN
    newest = max(run.glob("*.safetensors"))
    record = json.loads((run / "record.json").read_bytes())
    assert record["status"] == "complete"
    return load_file(newest), [{k: v for k, v in e.items() if k != "seconds"} for e in record["epochs"]]


def assert_same(folder: Path, undisturbed: Path) -> None:
    (tensors, epochs), (expected, expected_epochs) = outcome(folder), outcome(undisturbed)
    assert epochs == expected_epochs
    assert tensors.keys() == expected.keys()
    assert any(name.startswith("optimizer/") for name in tensors)
    for name, tensor in tensors.items():
        assert tensor.numpy().tobytes() == expected[name].numpy().tobytes(), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a kill, and without checkpoints inside an epoch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder, "--save-every", "1000", code=COMMAND)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return folder


def test_kills_at_random_moments_leave_the_same_bits(tmp_path: Path, undisturbed: Path) -> None:
    """Catches a generator that is not saved, dropout or augmentation drawn anew, momentum lost, a batch seen twice or
    never, sums of an epoch that start again, batch norm's averages left out, and a rate shifted by the resume.
    """
    generator, kills = random.Random(0), 0
    process = start(tmp_path)
    for _ in range(7):
        wait_for_steps(process, tmp_path, generator.randint(1, 14))
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        process = start(tmp_path, "--resume")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert kills >= 5
    assert_same(tmp_path, undisturbed)
    assert read(tmp_path / "runs" / RUN / "record.json").restarts >= 5


def test_sigterm_and_ctrl_c_save_and_end_with_75(tmp_path: Path, undisturbed: Path) -> None:
    """Catches a stop that loses the epoch, an exit code that a scheduler takes for failure, and a stack trace."""
    process = start(tmp_path)
    for name in ("SIGTERM", "SIGINT"):
        wait_for_steps(process, tmp_path, 5)
        process.send_signal(signal.Signals[name])
        _, error = process.communicate(timeout=60)
        assert process.returncode == 75, error
        last = error.strip().splitlines()[-1]
        assert last.startswith(f"repro: tiny seed 0: stopped by {name} at epoch ")
        assert last.endswith(f"saved in runs/{RUN}, continue with --resume")
        record = read(tmp_path / "runs" / RUN / "record.json")
        assert (record.status, record.message) == ("preempted", last.removeprefix("repro: "))
        process = start(tmp_path, "--resume")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert_same(tmp_path, undisturbed)


def test_without_resume_nothing_is_overwritten(tmp_path: Path, undisturbed: Path) -> None:
    """Catches a second start that erases a week of work."""
    process = start(tmp_path)
    wait_for_steps(process, tmp_path, 2)
    process.kill()
    process.communicate()
    before = sorted(p.name for p in (tmp_path / "runs" / RUN).iterdir())
    process = start(tmp_path)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "repro: runs/tiny-0: holds an unfinished run; go on with --resume" in error
    assert sorted(p.name for p in (tmp_path / "runs" / RUN).iterdir()) == before


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
@pytest.mark.parametrize(
    ("seed", "changes", "field"),
    [
        (1, {}, "seed is 0, this run's is 1"),
        (0, {"name": "other"}, "recipe is tiny, this run's is other"),
        (0, {"batch_size": 16}, "recipe_digest is"),
        (0, {"optimizer": {"learning_rate": 0.06, "momentum": 0.9}}, "recipe_digest is"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_its_first_difference(seed, changes, field, tmp_path: Path) -> None:
    """Catches a resume that goes on with another learning rate under the old name."""
    stopped_at(3, tmp_path)
    with pytest.raises(CheckpointError, match=f"checkpoint of tiny seed 0: {field}.*--run-dir"):
        train(tiny_recipe(**changes), seed, run_dir=tmp_path, resume=True)


@pytest.mark.usefixtures("_tiny")
def test_other_data_threads_or_net_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run of which one half saw other pictures, or summed in another order."""
    from repro.training import setup

    stopped_at(3, tmp_path)
    real = setup.open_set
    other = {"train": "test", "test": "train"}
    for split, field in (("train", "train_digest"), ("test", "test_digest")):
        with monkeypatch.context() as patch:
            patch.setattr(setup, "open_set", lambda n, s, split=split, **how: real(n, other[s] if s == split else s))
            with pytest.raises(CheckpointError, match=f"{field} is"):
                train(tiny_recipe(), run_dir=tmp_path, resume=True)
    torch.set_num_threads(2)
    with pytest.raises(CheckpointError, match="threads is 1, this run's is 2"):
        train(tiny_recipe(), run_dir=tmp_path, resume=True)
    torch.set_num_threads(1)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    monkeypatch.setattr(setup, "get_model", lambda name: linear)
    with pytest.raises(CheckpointError, match="does not fit this version of the net"):
        train(tiny_recipe(), run_dir=tmp_path, resume=True)


@pytest.mark.usefixtures("_tiny")
def test_a_damaged_newest_checkpoint_costs_a_few_steps_and_no_bit(tmp_path: Path, capfd) -> None:
    """Catches a resume from damaged weights, and one that starts from the beginning without a word."""
    expected = train(tiny_recipe())[1]
    stopped_at(9, tmp_path)
    newest = max(tmp_path.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    capfd.readouterr()
    model = train(tiny_recipe(), run_dir=tmp_path, resume=True)[1]
    assert "using step-000000008 instead" in capfd.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.usefixtures("_tiny")
def test_a_full_disk_stops_with_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bare OSError from the record that is to tell of the first one."""
    stopped_at(3, tmp_path)
    saved = load_latest(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ResourceError, match=r"the checkpoint cannot be written.*No space left on device"):
            train(tiny_recipe(), run_dir=tmp_path, resume=True, save_every_s=0)
    kept = load_latest(tmp_path)
    assert saved is not None
    assert kept is not None
    assert saved.state == kept.state
    train(tiny_recipe(), run_dir=tmp_path, resume=True)


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
