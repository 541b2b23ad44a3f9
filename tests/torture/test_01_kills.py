"""Row 1: SIGKILL at random moments of training, of saving and of preparing data; then the run is resumed."""

import random
import signal
import time
from pathlib import Path

import pytest
from helpers import own_set
from processes import EACH_STEP, RUN, Nursery, differences, kill, train_tiny, wait_for_steps
from tier import Finding, amount

from repro.data import load
from repro.records import read


def test_training_and_saving(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a generator that is not saved, dropout or augmentation drawn anew, momentum lost, a batch seen twice or
    never, sums of an epoch that start again, batch norm's averages left out, a rate shifted by the resume, and
    checkpoints that a kill in the middle of a save leaves in pieces.
    """
    runs, kills_each = amount((3, 3), (25, 12))
    draw, kills, in_a_save = random.Random(0), 0, 0
    for run in range(runs):
        folder = tmp_path / str(run)
        folder.mkdir()
        pid = train_tiny(nursery, folder, *EACH_STEP)
        for _ in range(kills_each):
            wait_for_steps(pid, folder, draw.randint(1, 8 if kills_each > 3 else 20))
            time.sleep(draw.uniform(0, 0.02))
            kill(pid)
            kills += nursery.wait() == -signal.SIGKILL
            in_a_save += bool(list((folder / "runs" / RUN).glob(".*.half")))
            pid = train_tiny(nursery, folder, *EACH_STEP, "--resume")
        assert nursery.wait() == 0, (folder / "stderr").read_text()
        assert differences(folder, undisturbed) == []
        assert read(folder / "runs" / RUN / "record.json").restarts == kills_each
        assert not list((folder / "runs" / RUN).glob(".*.half"))
    assert kills == runs * kills_each
    finding(
        f"training: {kills} kills over {runs} runs, {in_a_save} of them in the middle of a save",
        f"weights, momentum, sums and metrics byte for byte those of an undisturbed run; 0 differences in {runs} runs",
    )


# Each round replaces the folder, as if its contents had changed.
REPLACING = """
from repro.data import cache
from repro.data.sources import prepare
publish = cache._publish
cache._publish = lambda half, folder, digest: publish(half, folder, "another")
while True:
    prepare("pets", "train", force=True)
"""


def test_preparing_data(
    tmp_path: Path, data: Path, cache: Path, nursery: Nursery, finding: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches half a folder under the final name, a reader that takes it, and litter that stays."""
    own_set(data, n=300, side=64)
    expected = load("pets").digest
    draw, kills = random.Random(0), amount(3, 40)
    environment = f"import os; os.environ.update(REPRO_DATA={str(data)!r}, REPRO_CACHE={str(cache)!r})\n"
    for _ in range(kills):
        pid = nursery.start(tmp_path, prelude=environment + REPLACING)
        time.sleep(draw.uniform(0.02, 0.6))
        kill(pid)
        assert nursery.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text()
        assert load("pets").digest == expected
    load("pets", "test")  # anything prepared sweeps the set's folder
    assert not list(cache.rglob("*.half"))
    finding(f"preparing data: {kills} kills", "the next reader finds the same digest each time; no litter")
