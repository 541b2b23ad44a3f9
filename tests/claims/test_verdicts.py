"""Verdicts on made claims, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from repro import records
from repro.claims import command, verdicts
from repro.claims.ledger import Claim
from repro.claims.verdicts import derive, equal, show
from repro.errors import CheckpointError, UnknownName


def made(**changes: Any) -> Claim:
    given = {"id": "made-one", "where": "1", "statement": "…", "value": 61_100_840, "kind": "arithmetic"}
    given["check"] = {"call": "parameters", "arguments": {"model": "alexnet"}}
    return Claim.model_validate(given | changes)


def test_arithmetic_holds_or_does_not() -> None:
    """torchvision's AlexNet has 61,100,840 parameters. Catches a verdict that does not depend on what is found."""
    assert derive(made()).verdict == "holds"
    wrong = derive(made(value=60_000_000))
    assert wrong.verdict == "does not hold"
    assert wrong.found == 61_100_840
    assert "60,000,000 is said, we find 61,100,840" in wrong.detail
    assert derive(made(value=60_000_000, tolerance=2e6, why="about")).verdict == "holds"


def test_expressions_and_several_numbers() -> None:
    """Catches lists compared as a whole or of other lengths, and true taken for 1."""
    assert (
        derive(made(value=0.55, tolerance=0.005, why="two digits", check={"expression": "27 / 49"})).verdict == "holds"
    )
    assert equal([1, 2.0], [1.0, 2])
    assert not equal([1, 2], [1, 2, 3])
    assert equal([1, 2], [1.4, 2.4], 0.5)
    assert not equal(True, 1)
    assert equal("relu", "relu")


def test_history_is_confirmed_or_corrected() -> None:
    """Catches a correction that is shown as agreement."""
    check = {"citation": "simonyan2015", "place": "table 7", "value": 6.8}
    same, other = (derive(made(kind="historical", value=v, check=check)) for v in (6.8, 6.7))
    assert same.verdict == other.verdict == "historical"
    assert "says the same" in same.detail
    assert "says 6.8" in other.detail


def test_what_was_not_tested_says_what_it_takes() -> None:
    """Catches a claim without a check that passes for one that holds."""
    found = derive(made(check=None, needs="ImageNet and six days"))
    assert (found.verdict, found.found, found.detail) == ("not tested", None, "ImageNet and six days")


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    """Records of a made recipe with these test errors, copied from a real one."""
    real = json.loads((records.records_dir() / "lenet5-0.json").read_text())

    def write(*errors: float, data: str = "mnist") -> Path:
        for seed, error in enumerate(errors):
            last = real["epochs"][-1] | {"test_error": error}
            made = (
                real
                | {"data": real["data"] | {"name": data}}
                | {"seed": seed, "epochs": [last], "git": {"commit": "0" * 40, "dirty": False}}
            )
            (tmp_path / records.file_of("lenet5", seed)).write_text(json.dumps(made))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("errors", "said", "scale", "verdict"),
    [
        ((0.010, 0.011, 0.012), 0.011, "same", "holds within the spread"),
        ((0.010, 0.011, 0.012), 0.030, "same", "does not hold"),
        ((0.010, 0.011, 0.012), 0.011, "smaller", "not tested"),
        ((0.011,), 0.011, "same", "not tested"),
        ((), 0.011, "same", "not tested"),
    ],
)
def test_measurements(runs: Any, errors: tuple[float, ...], said: float, scale: str, verdict: str) -> None:
    """Catches one run that decides, a run at a smaller scale that reproduces, and a claim that holds without a run."""
    check = {"record": "lenet5", "field": "test_error", "scale": scale, "samples": 10_000}
    found = derive(made(kind="measured", value=said, check=check), runs(*errors))
    assert found.verdict == verdict
    accuracy = {"record": "lenet5", "field": "test_accuracy", "scale": scale, "samples": 10_000}
    assert derive(made(kind="measured", value=1 - said, check=accuracy), runs(*errors)).verdict == verdict


def test_imagenet_is_close_within_a_whole_point(runs: Any) -> None:
    """0.8 points off, more than three deviations of 0.1. Catches the half point of other sets asked of ImageNet."""
    check = {"record": "lenet5", "field": "test_error", "samples": 50_000}
    claim = made(kind="measured", value=0.407, check=check)
    for data, verdict in (("imagenet", "holds within the spread"), ("mnist", "does not hold")):
        assert derive(claim, runs(0.414, 0.415, 0.416, data=data)).verdict == verdict


@pytest.mark.parametrize(
    ("found", "scale", "verdict"),
    [
        ((6.1, 7.0, 6.4), "same", "holds within the spread"),
        ((7.1, 7.0, 7.2), "same", "does not hold"),
        ((6.1, 7.0, 6.4), "smaller", "not tested"),
        ((6.1,), "same", "not tested"),
    ],
)
def test_a_check_over_seeds_is_judged_by_its_spread(
    monkeypatch: pytest.MonkeyPatch, found: tuple[float, ...], scale: str, verdict: str
) -> None:
    """6 is said; 6.1, 7.0 and 6.4 have a mean of 6.5, whose interval at n = 3 is ± 1.1.

    Catches one value in place of the spread, the interval forgotten (0.5 is past the rounding), one run that decides.
    """
    monkeypatch.setattr(verdicts, "find", lambda name: lambda: records.spread(found))
    check = {"call": "made_ratio", "scale": scale}
    judged = derive(made(kind="measured", value=6.0, tolerance=0.45, why="a whole number", check=check))
    assert judged.verdict == verdict
    assert judged.found == pytest.approx(sum(found) / len(found))


def test_values_in_words() -> None:
    """Catches thousands without commas, and `True`."""
    assert [show(v) for v in (60_000, 0.1 + 0.2, True, [96, 55, 55], "tanh")] == [
        "60,000",
        "0.3",
        "true",
        "96, 55, 55",
        "tanh",
    ]


def test_stored_verdicts_are_held_against_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that always passes: a changed number, a changed verdict, a claim that came or went."""
    first, second = made(), made(id="made-two", value=27 / 49, check={"expression": "27 / 49"})
    monkeypatch.setattr(command, "claims", lambda *_: [first, second])
    monkeypatch.setenv("REPRO_RECORDS", str(tmp_path))
    path = command.update()
    assert command.counts(command.check()) == "2 claims: 2 holds"
    good = json.loads(path.read_text())
    for change, message in (
        (
            {"made-one": {"verdict": "holds", "found": 7, "detail": ""}},
            "made-one: holds .61100840., stored is holds .7.",
        ),
        ({"made-two": {"verdict": "does not hold", "found": 27 / 49, "detail": ""}}, "made-two: holds"),
        ({"made-three": {"verdict": "holds", "found": 1, "detail": ""}}, "made-three: .*not in both"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(command.StaleVerdicts, match=message):
            command.check()
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="not verdicts"):
        command.check()


def test_unknown_words_get_the_nearest() -> None:
    """Catches an empty table for a misspelt verdict."""
    with pytest.raises(UnknownName, match="does not hold"):
        command.verdicts(verdict="do not hold")
