"""What is pending, in which order, and a budget that ends."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from repro import records
from repro.claims import pending as module
from repro.claims.ledger import Claim
from repro.claims.pending import Pending, pending, run_pending, seconds_of
from repro.errors import DataError, Preempted, RecipeError, ReproError


def waits(name: str, recipe: str, scale: str = "same") -> Claim:
    check = {"record": recipe, "field": "test_error", "scale": scale}
    return Claim.model_validate(
        {"id": name, "where": "1", "statement": "…", "value": 0.1, "kind": "measured", "check": check}
    )


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two claims wait for `lenet5`, one for `lenet5-modern`, one for `cifar10-relu` at a smaller scale."""
    claims = [waits("made-a", "lenet5"), waits("made-b", "lenet5"), waits("made-c", "lenet5-modern")]
    claims.append(waits("made-d", "cifar10-relu", "smaller"))
    monkeypatch.setattr(module, "claims", lambda: claims)


def record(folder: Path, recipe: str, seed: int, seconds: float = 10.0, **changes: Any) -> None:
    """A record in `folder`, made of a real one."""
    real = json.loads((records.records_dir() / "lenet5-0.json").read_text())
    last = real["epochs"][-1] | {"seconds": seconds}
    made = real | {"recipe": recipe, "seed": seed, "epochs": [last], "git": {"commit": "0" * 40, "dirty": False}}
    (folder / records.file_of(recipe, seed)).write_text(json.dumps(made | changes))


@pytest.mark.usefixtures("ledger")
def test_what_decides_comes_first(tmp_path: Path) -> None:
    """Catches an order by name, a run that is recorded already, and a small run taken for one that decides."""
    record(tmp_path, "lenet5-modern", 1, seconds=30)
    record(tmp_path, "cifar10-relu", 0)
    found = pending(tmp_path)
    names = [(p.recipe, p.seed, p.decides, p.seconds) for p in found]
    assert names == [
        ("lenet5-modern", 0, True, 30),
        ("lenet5-modern", 2, True, 30),
        ("lenet5", 0, False, None),
        ("lenet5", 1, False, None),
        ("lenet5", 2, False, None),
        ("cifar10-relu", 1, False, 10),
        ("cifar10-relu", 2, False, 10),
    ]
    assert found[2].claims == ("made-a", "made-b")


@pytest.mark.usefixtures("ledger")
def test_all_are_run_and_what_cannot_be_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches one missing set that ends everything, and a run that is started anew though it was begun."""
    begun = tmp_path / "runs" / "lenet5-1"
    begun.mkdir(parents=True)
    (begun / "record.json").write_text("{}")
    resumed = {}

    def train(run: Pending, resume: bool) -> None:
        if run.recipe == "cifar10-relu":
            raise DataError("cifar10: not here")
        resumed[run.name] = resume
        record(tmp_path, run.recipe, run.seed)

    run_pending(train, tmp_path / "runs", tmp_path, None)
    assert {p.recipe for p in pending(tmp_path)} == {"cifar10-relu"}
    assert resumed["lenet5-1"]
    assert sum(resumed.values()) == 1
    assert "cifar10-relu-0: left out: cifar10: not here" in capsys.readouterr().err


@pytest.mark.usefixtures("ledger")
def test_the_budget_stops_the_run_under_way(tmp_path: Path) -> None:
    """Catches a budget that is looked at between runs alone, and a timer that fires after its run has ended."""
    caught = []

    def train(run: Pending, resume: bool) -> None:
        before = signal.signal(signal.SIGTERM, lambda *_: caught.append(run.name))
        try:
            while not caught:
                time.sleep(0.01)
        finally:
            signal.signal(signal.SIGTERM, before)
        raise Preempted("saved")

    with pytest.raises(Preempted, match="saved"):
        run_pending(train, tmp_path, tmp_path, 0.1)
    assert len(caught) == 1
    with pytest.raises(Preempted, match="lenet5-0 next; the budget is used up"):
        run_pending(lambda run, _: None, tmp_path, tmp_path, 0.0)


@pytest.mark.usefixtures("ledger")
def test_a_record_that_does_not_count_is_no_progress(tmp_path: Path) -> None:
    """Catches the same run made for ever from a changed checkout."""
    dirty = {"git": {"commit": "0" * 40, "dirty": True}}
    with pytest.raises(ReproError, match="does not count; commit"):
        run_pending(lambda run, _: record(tmp_path, run.recipe, run.seed, **dirty), tmp_path, tmp_path, None)


def test_times() -> None:
    """Catches minutes taken for milliseconds, and a number without a unit."""
    assert [seconds_of(text) for text in ("90s", "25m", "1.5h")] == [90, 1500, 5400]
    for text in ("25", "0m", "m", "-1h", "2d"):
        with pytest.raises(RecipeError, match="expected a time"):
            seconds_of(text)


def test_the_ledgers_own_list_can_be_made() -> None:
    """Catches a claim that waits for a recipe that cannot be read."""
    assert all(p.claims for p in pending())
