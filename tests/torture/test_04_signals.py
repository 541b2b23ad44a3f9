"""Row 4: SIGTERM and Ctrl-C, again after each resumption, and twice within one step."""

import os
import random
import signal
import time
from pathlib import Path

from processes import EACH_STEP, RUN, Nursery, differences, train_tiny, wait_for_steps
from tier import Finding, amount

from repro.records import read

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Saving takes a second, so that what comes while it is under way can be seen to do no harm.
SLOW_SAVE = """
import time
from repro.training import checkpoint
save = checkpoint.save
def slow(*arguments):
    time.sleep(1)
    save(*arguments)
checkpoint.save = slow
"""


def stop(nursery: Nursery, pid: int, folder: Path, signals: list[signal.Signals]) -> float:
    """Send these, wait for the end, and return the seconds it took; the run has to say that it can go on."""
    started = time.monotonic()
    for number in signals:
        os.kill(pid, number)
        time.sleep(0.05)
    code, error = nursery.wait(), (folder / "stderr").read_text()
    took = time.monotonic() - started
    assert code == 75, error
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"repro: tiny seed 0: stopped by {signals[0].name} at epoch ")
    assert last.endswith(f"saved in runs/{RUN}, continue with --resume")
    record = read(folder / "runs" / RUN / "record.json")
    assert (record.status, record.message) == ("preempted", last.removeprefix("repro: "))
    return took


def test_signals(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a stop that loses the epoch, an exit code that a scheduler takes for failure, and a stack trace."""
    draw, runs, stops, longest = random.Random(0), amount(1, 10), 0, 0.0
    for run in range(runs):
        folder = tmp_path / str(run)
        folder.mkdir()
        pid = train_tiny(nursery, folder, *EACH_STEP)
        for number in SIGNALS:
            wait_for_steps(pid, folder, draw.randint(3, 25))
            longest, stops = max(longest, stop(nursery, pid, folder, [number])), stops + 1
            pid = train_tiny(nursery, folder, *EACH_STEP, "--resume")
        assert nursery.wait() == 0, (folder / "stderr").read_text()
        assert differences(folder, undisturbed) == []
    assert longest < 20
    finding(
        f"{stops} stops, half by SIGTERM and half by Ctrl-C, each resumed",
        f"all exit 75 with the run saved, after {longest:.1f} s at most; 0 differences",
    )


def test_two_signals_at_once(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """A scheduler signals a job and its launcher, which signals it again. Catches a second one that ends the save."""
    stops, longest = amount(2, 10), 0.0
    for number in range(stops):
        folder = tmp_path / str(number)
        folder.mkdir()
        pid = train_tiny(nursery, folder, *EACH_STEP)
        wait_for_steps(pid, folder, 5 + number)
        os.kill(pid, signal.SIGKILL)
        nursery.wait()
        pid = train_tiny(nursery, folder, "--save-every", "1000", "--resume", prelude=SLOW_SAVE)
        while "epoch   3" not in (folder / "stderr").read_text():
            time.sleep(0.01)
        both = [SIGNALS[number % 2], SIGNALS[number // 2 % 2]]
        longest = max(longest, stop(nursery, pid, folder, both))
        assert "saving already" in (folder / "stderr").read_text()
        train_tiny(nursery, folder, "--resume")
        assert nursery.wait() == 0, (folder / "stderr").read_text()
        assert differences(folder, undisturbed) == []
    assert longest < 20
    finding(
        f"{stops} times two signals within a save of a second", f"exit 75 after {longest:.1f} s at most; 0 differences"
    )
