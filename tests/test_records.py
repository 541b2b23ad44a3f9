"""Records: what a number needs, which of them count, and verdicts worked out by hand."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import register_tiny, tiny_recipe

from repro import records
from repro.data import load as load_digits
from repro.errors import CheckpointError, DataError, ResourceError
from repro.records import (
    IMAGENET_MARGIN,
    Record,
    Spread,
    file_of,
    git_state,
    judge,
    load,
    load_all,
    read,
    spread,
    write,
)
from repro.training import setup, train

CLEAN = {"commit": "a" * 40, "dirty": False}


def record(**changes: Any) -> Record:
    """A finished run of three epochs, the second of which was the best."""
    epochs = [
        {"epoch": i, "seconds": 2.0, "learning_rate": 0.1, "train_loss": 0.1, "train_error": 0.02}
        | {"test_loss": 0.1, "test_error": error}
        for i, error in enumerate((0.05, 0.01, 0.02), start=1)
    ]
    content: dict[str, Any] = {
        "recipe": "r", "seed": 0, "status": "complete", "recipe_digest": "d", "recipe_content": {}, "command": "",
        "started": "", "git": CLEAN, "versions": {}, "device": {"name": "cpu"}, "data": {}, "parameters": 1,
        "selection": "the last epoch", "epochs": epochs,
    }  # fmt: skip
    return Record.model_validate(content | changes)


def put(folder: Path, *found: Record) -> Path:
    for r in found:
        write(r, folder / file_of(r.recipe, r.seed))
    return folder


@pytest.mark.parametrize(
    ("changes", "selection"),
    [
        ({}, "the last epoch of a fixed schedule; the test set chose nothing"),
        ({"schedule": {"name": "plateau"}}, "the last epoch; the learning rate followed the test loss"),
        (
            {"stop_at_train_error": 0.25},
            "the first epoch with a training error of at most 25.00%, or the last; the test set chose nothing",
        ),
    ],
)
def test_a_record_says_what_part_the_test_set_had(changes: dict[str, Any], selection: str) -> None:
    """Catches a record that says of a plateau that the test set chose nothing."""
    register_tiny()
    assert train(tiny_recipe(**changes, epochs=1))[0].selection == selection


def test_a_record_says_all_that_a_number_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a record that cannot be judged later: no digest, no versions, no count of what was evaluated."""
    register_tiny()
    torch.set_num_threads(1)
    monkeypatch.setattr("sys.argv", ["/anywhere/repro/__main__.py", "train", "tiny", "--set", "epochs=2"])
    monkeypatch.setattr(records, "git_state", lambda: CLEAN)
    found, model = train(tiny_recipe(), 7, run_dir=tmp_path)
    assert read(tmp_path / "record.json") == found
    assert (found.recipe, found.seed, found.status, found.restarts) == ("tiny", 7, "complete", 0)
    assert found.recipe_digest == tiny_recipe().digest()
    assert found.recipe_content["optimizer"]["momentum"] == 0.9
    assert found.command == "repro train tiny --set epochs=2"
    assert found.git == CLEAN
    assert {"python", "platform", "torch", "torchvision", "numpy", "pillow"} <= found.versions.keys()
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__
    assert {
        "type",
        "name",
        "threads",
        "cuda",
        "world_size",
        "deterministic_algorithms",
        "precision",
    } <= found.device.keys()
    assert (found.device["type"], found.device["threads"], found.device["precision"]) == ("cpu", 1, "float32")
    assert (found.data["train"]["count"], found.data["test"]["count"]) == (200, 297)
    for split in ("train", "test"):
        assert len(found.data[split]["digest"]) == 64
        assert found.data[split]["conversions"] == {}
    digits = load_digits("digits").subset(torch.arange(200))
    assert found.data["train"]["digest"] == digits.digest
    assert found.data["mean"] == pytest.approx(digits.mean)
    assert found.data["std"] == pytest.approx(digits.std)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert [e.epoch for e in found.epochs] == [1, 2]
    assert "the last epoch" in found.selection
    assert all(e.seconds > 0 for e in found.epochs)


def test_a_record_names_the_files_that_were_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a number from fewer pictures than the set has, of which no reader can tell."""
    register_tiny()
    monkeypatch.setattr(
        setup, "open_set", lambda name, split, **how: replace(load_digits(name, split), skipped=(f"{split}/a.jpg",))
    )
    found = train(tiny_recipe(epochs=1))[0]
    assert [found.data[split]["skipped"] for split in ("train", "test")] == [["train/a.jpg"], ["test/a.jpg"]]


def test_a_run_without_an_epoch_has_no_result() -> None:
    """Catches an IndexError from a run that crashed early, and seconds of the last epoch alone."""
    assert record().seconds == 6.0
    for what in ("last", "best_peeked"):
        with pytest.raises(DataError, match=r"r seed 0: no epoch was finished \(status crashed\)"):
            getattr(record(epochs=[], status="crashed"), what)


def test_only_complete_runs_of_a_clean_commit_count(tmp_path: Path) -> None:
    """Catches a table fed from a crashed run, from changed code, or from an installed package without a commit."""
    dirty, unknown = {"commit": "a" * 40, "dirty": True}, {"commit": None, "dirty": None}
    runs = [
        record(seed=3),
        record(seed=1),
        *[record(seed=10 + i, status=s) for i, s in enumerate(("crashed", "preempted", "running"))],
        record(seed=20, git=dirty),
        record(seed=21, git=unknown),
        record(recipe="other", seed=1),
    ]
    put(tmp_path, *runs)
    assert [r.seed for r in load("r", tmp_path)] == [1, 3]
    assert len(load_all(tmp_path)) == len(runs)
    assert load("nothing", tmp_path) == load("r", tmp_path / "nowhere") == []


def test_copies_and_mixtures_are_refused(tmp_path: Path) -> None:
    """Catches a copied file that makes one run two, and a mean over two versions of a recipe."""
    put(tmp_path, record(seed=0), record(seed=1, recipe_digest="other"))
    with pytest.raises(CheckpointError, match=r"r: its records are of different recipes \(seed 0 d, seed 1 other\)"):
        load("r", tmp_path)
    (tmp_path / "r-2.json").write_bytes((tmp_path / "r-0.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"r-2\.json: is the record of r seed 0"):
        load_all(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a record: content"), (b'{"recipe": 3}', "not a record: recipe"), (b"\x80\x04K\x03.", "not a record")],
)
def test_damaged_records_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    """Catches pydantic's ten lines, and a pickle that is loaded."""
    (tmp_path / "r-0.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"r-0\.json: {message}"):
        load_all(tmp_path)
    whole = json.loads(record().model_dump_json())
    for change in ({"status": "done"}, {"surprise": 1}, {"epochs": [{"epoch": 1}]}):
        (tmp_path / "r-0.json").write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match="not a record"):
            load_all(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone\.json: the record cannot be read"):
        read(tmp_path / "gone.json")


def test_a_record_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    """Catches a bare OSError at the end of a week's run."""
    (tmp_path / "taken").touch()
    with pytest.raises(ResourceError, match="the record cannot be written"):
        write(record(), tmp_path / "taken" / "r-0.json")


def test_names_of_files_hold_what_a_file_name_can(tmp_path: Path) -> None:
    """Catches an override with a slash that writes into another folder, and two seeds in one file."""
    assert file_of("lenet5", 3) == "lenet5-3.json"
    assert file_of("r+data.name=../../x+a='b c'", 0) == "r+data.name=.._.._x+a=_b_c_-0.json"
    put(tmp_path, record(recipe="a/b"))
    assert [p.name for p in tmp_path.iterdir()] == ["a_b-0.json"]
    assert load_all(tmp_path)[0].recipe == "a/b"


def test_where_records_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches records read from the folder that a notebook happens to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPRO_RECORDS", raising=False)
    assert records.records_dir() == Path(records.__file__).parents[1] / "records"
    monkeypatch.setenv("REPRO_RECORDS", str(tmp_path))
    assert records.records_dir() == tmp_path


def test_spread_is_that_of_a_sample() -> None:
    """Catches the population's deviation (n for n − 1), and a deviation made up for a single run."""
    found = spread([0.01, 0.02, 0.06])
    assert (found.mean, found.n, found.min, found.max) == (pytest.approx(0.03), 3, 0.01, 0.06)
    assert found.std == pytest.approx(math.sqrt((0.02**2 + 0.01**2 + 0.03**2) / 2))
    assert str(found) == "3.00% ± 2.65% (n = 3, 1.00% to 6.00%)"
    assert spread([0.5]) == Spread(0.5, 0.0, 1, 0.5, 0.5)
    assert str(spread([0.5])) == "50.00% (one run)"  # a deviation of 0.00 % would be read as one
    with pytest.raises(DataError, match="no values"):
        spread([])


# t for 95 % with two degrees of freedom is 4.3027; for a published 1 % on 10,000 samples the binomial error is
# 1.96 · √(0.01 · 0.99 / 10,000) = 0.001950.
@pytest.mark.parametrize(
    ("mean", "std", "n", "verdict"),
    [
        (0.01, 0.0, 1, "single run"),
        (0.01, 0.0, 2, "reproduced"),
        (0.0119, 0.0, 3, "reproduced"),  # 0.0019 < 0.001950 + 0.00005
        (0.0121, 0.0, 3, "close"),  # 0.0021 > 0.0020, < 0.005
        # interval: 4.3027 · 0.001 / √3 = 0.002484; together √(0.002484² + 0.00195²) + 0.00005 = 0.003208
        (0.0132, 0.001, 3, "reproduced"),
        (0.0133, 0.001, 3, "close"),
        (0.0149, 0.001, 3, "close"),  # 0.0049 < 0.005
        (0.0151, 0.001, 3, "not reproduced"),
        (0.0049, 0.001, 3, "not reproduced, better than published"),  # 0.0051 below
        (0.0051, 0.001, 3, "close, better than published"),
        (0.0069, 0.001, 3, "reproduced, better than published"),  # 0.0031 < 0.003208, > 3 · 0.001
        (0.0071, 0.001, 3, "reproduced"),  # 0.0029 < 3 · 0.001
        (0.0151, 0.002, 3, "reproduced"),  # interval 0.004968: together 0.005387
        (0.0159, 0.002, 3, "close"),  # 0.0059 < 3 · 0.002
        (0.0161, 0.002, 3, "not reproduced"),
    ],
)
def test_verdicts_worked_out_by_hand(mean: float, std: float, n: int, verdict: str) -> None:
    """Catches z for t, the deviation for its error of the mean, a one-sided interval, and a verdict on one run."""
    assert judge(Spread(mean, std, n, mean - std, mean + std), 0.01, 0.00005, 10_000) == verdict


def test_imagenet_gets_a_full_point() -> None:
    """Catches a margin that is not passed on, and one that is half of what the preface promises."""
    ours = Spread(0.3999, 0.001, 3, 0.3989, 0.4009)
    assert judge(ours, 0.407, 0.0005, 50_000) == "not reproduced, better than published"
    assert judge(ours, 0.407, 0.0005, 50_000, margin=IMAGENET_MARGIN) == "close, better than published"
    assert judge(ours, 0.4105, 0.0005, 50_000, margin=IMAGENET_MARGIN) == "not reproduced, better than published"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of a pyproject.toml and a record."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "pyproject.toml").touch()
    put(tmp_path / "records", record())
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_git_state_tells_clean_from_changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches untracked files that go unnoticed, and records that another run has just written called a change."""
    state = git_state(checkout)
    assert state["dirty"] is False
    assert len(state["commit"]) == 40
    put(checkout / "records", record(seed=1))
    assert git_state(checkout) == state
    (checkout / "new.py").touch()
    assert git_state(checkout) == state | {"dirty": True}
    (checkout / "new.py").unlink()
    (checkout / "pyproject.toml").write_text("changed")
    assert git_state(checkout)["dirty"] is True


def test_outside_a_checkout_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the commit of a repository around an installed package taken for the package's own."""
    inner = checkout / "site-packages"
    inner.mkdir()
    assert git_state(inner) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(inner))  # no git at all
    assert git_state(checkout) == {"commit": None, "dirty": None}


def test_a_quantity_that_is_no_error_rate_is_judged_by_its_interval_alone() -> None:
    """Catches a binomial error or half a point of an error rate applied to a ratio, and a large ratio called better.

    By hand: 5.0, 6.0 and 7.0 have mean 6 and deviation 1, so half the 95 % interval is 4.303 · 1 / √3 = 2.484.
    """
    runs = records.spread([5.0, 6.0, 7.0])
    assert records.judge(runs, 8.98, rounding=0.5, samples=None) == "reproduced"
    assert records.judge(runs, 8.99, rounding=0.5, samples=None) == "close"
    assert records.judge(runs, 9.01, rounding=0.5, samples=None) == "not reproduced"
    assert records.judge(records.spread([6.0, 6.0]), 6.004, rounding=0.001, samples=None) == "not reproduced"
    assert records.judge(records.spread([6.1]), 6.0, rounding=0.5, samples=None) == "single run"
