"""Progress in a log, in a terminal and in a notebook."""

import sys
import time

import pytest

from repro import progress


@pytest.fixture(autouse=True)
def _no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's notebook plugin loads ipykernel too."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which everything takes a second."""
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def test_a_log_gets_a_line_now_and_then(clock: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches a line per item, counts beyond the total, and progress on stdout."""
    assert list(progress.track(range(25), 97, "decoding", weight=4)) == list(range(25))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "decoding: 12 of 97 after 3 s",
        "decoding: 56 of 97 after 14 s",
        "decoding: 97 of 97 after 25 s",
    ]


def test_short_work_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Catches noise around what is over before one could read it."""
    assert list(progress.track("abc", 3, "work")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_a_notebook_gets_nothing(clock: None, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Catches output in a cell whose text is compared to the letter."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert list(progress.track(range(50), 50, "work")) == list(range(50))
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Catches items lost or doubled by the bar, and one that stays on the screen."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.track(range(5), 5, "work")) == list(range(5))
    assert "work" not in capfd.readouterr().out
