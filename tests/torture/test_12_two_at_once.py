"""Row 12: several processes at the same set, one of them killed; two at the same run."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY_TOML, own_set
from processes import EACH_STEP, RUN, TRAIN, Nursery, alive, differences, kill, steps_saved
from tier import Finding, amount

from repro.data import load
from repro.data.sources import prepare
from repro.errors import RecipeError, ResourceError

FILES = ("images.bin", "labels.bin", "meta.json")
START = ("empty", "damaged", "older")  # what the cache holds before
# All start at the same moment.
TOGETHER = """
import os, time
os.environ.update({environment})
print("here", flush=True)
while not os.path.exists({go!r}):
    time.sleep(0.0005)
"""
# Looks at the set as a reader does, and at its files byte by byte, until it is told to stop.
READER = """
import collections, hashlib, json, pathlib, sys
from repro.data import cache
from repro.errors import DataError
folder, digests = pathlib.Path({folder!r}), collections.defaultdict(set)
looks, refused, taken = 0, [], set()
while not os.path.exists({stop!r}):
    for name in {files}:
        try:
            digests[name].add(hashlib.sha256((folder / name).read_bytes()).hexdigest())
        except FileNotFoundError:
            pass
    try:
        found = cache.read("pets", "train", folder)
        if found is not None:
            taken.add(cache.content_digest(found.images, found.labels, found.classes))
    except DataError as e:
        refused.append(str(e))
    looks += 1
seen = {{name: sorted(found) for name, found in digests.items()}}
pathlib.Path("seen.json").write_text(json.dumps([looks, seen, sorted(taken), refused]))
sys.exit(0)
"""


def sha256s(folder: Path) -> dict[str, str]:
    """The digest of each file that lies in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def until(true: Callable[[], bool]) -> None:
    """Return when it is true."""
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.0005)


class Gathering:
    """Processes that wait for each other and then do their work at the same moment, each in a folder of its own."""

    def __init__(self, nursery: Nursery, folder: Path, **environment: str) -> None:
        self.nursery, self.folder, self.go = nursery, folder, folder / "go"
        self.prelude = TOGETHER.format(environment=environment, go=str(self.go))
        self.members: dict[int, Path] = {}

    def add(self, *arguments: str, prelude: str = "") -> int:
        """One more, that will run `repro ARGUMENTS`."""
        own = self.folder / f"process-{len(self.members)}"
        own.mkdir(parents=True)
        (own / "tiny.toml").write_text(TINY_TOML)
        pid = self.nursery.start(own, *arguments, prelude=self.prelude + prelude)
        self.members[pid] = own
        return pid

    def begin(self) -> None:
        """Let them go, once all are there."""
        until(lambda: all((own / "stdout").exists() and (own / "stdout").read_text() for own in self.members.values()))
        self.go.touch()


def lay_out(start: str, cache: Path, whole: Path, older: Path) -> None:
    """Give the cache what it holds before."""
    if start == "older":
        shutil.copytree(older / "pets", cache / "pets")
    if start == "damaged":
        shutil.copytree(whole / "pets", cache / "pets")
        images = cache / "pets" / "train-native" / "images.bin"
        content = bytearray(images.read_bytes())
        content[len(content) // 2] ^= 1
        images.write_bytes(content)


def kill_one(gathering: Gathering, among: list[int], after_s: float) -> int | None:
    """SIGKILL one of those that still run after some time; None when all have ended."""
    time.sleep(after_s)
    running = [pid for pid in among if alive(pid)]
    if running:
        kill(running[0])
        return running[0]
    return None


@pytest.mark.timeout(300)
def test_four_prepare_one_set(
    tmp_path: Path, data: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, finding: Finding
) -> None:
    """Catches a rename onto another's folder that fails, a good folder removed for one's own, half a folder under the
    final name, a reader that takes a file of the old folder for one of the new, and litter that stays.
    """

    def alone(name: str, n: int) -> tuple[Path, dict[str, str], str]:
        """The set prepared by one process, undisturbed."""
        own_set(data, n=n, side=64)
        monkeypatch.setenv("REPRO_CACHE", str(tmp_path / name))
        digest = prepare("pets", "train").digest
        load("pets", "test")
        return tmp_path / name, sha256s(tmp_path / name / "pets" / "train-native"), digest

    older, files_before, digest_before = alone("older", 200)
    whole, files, digest = alone("whole", 300)
    draw, kills, looks, trials, spread_s = random.Random(0), 0, 0, 0, 0.5
    while kills < amount(3, 21):
        trials += 1
        assert trials < 100
        start, folder = START[kills % len(START)], tmp_path / f"trial-{trials}"
        cache = folder / "cache"
        lay_out(start, cache, whole, older)
        gathering = Gathering(nursery, folder, REPRO_DATA=str(data), REPRO_CACHE=str(cache))
        force = ("--force",) if start == "older" else ()
        four = [gathering.add("data", "prepare", "pets", *force) for _ in range(4)]
        place, stop = cache / "pets" / "train-native", folder / "stop"
        reader = gathering.add(prelude=READER.format(folder=str(place), stop=str(stop), files=FILES))
        gathering.begin()
        began = time.monotonic()
        draw.shuffle(four)
        killed = kill_one(gathering, four, draw.uniform(0, spread_s))
        for pid in four:
            ended = nursery.wait(pid)
            assert ended == (-signal.SIGKILL if pid == killed else 0), (gathering.members[pid] / "stderr").read_text()
        spread_s = (spread_s + time.monotonic() - began) / 2
        stop.touch()
        assert nursery.wait(reader) == 0, (gathering.members[reader] / "stderr").read_text()
        seen_looks, seen, taken, refused = json.loads((gathering.members[reader] / "seen.json").read_text())
        # One good tree.
        assert sha256s(place) == files
        monkeypatch.setenv("REPRO_CACHE", str(cache))
        assert prepare("pets", "test", force=True).name == "pets"  # whoever comes next sweeps
        assert sorted(p.name for p in (cache / "pets").iterdir()) == ["test-native", "train-native"]
        # No reader saw a part of it, or took two halves for a whole.
        laid = {"empty": {}, "damaged": sha256s_damaged(files, whole), "older": files_before}[start]
        for name, digests in seen.items():
            assert set(digests) <= {files[name], laid.get(name)}, (start, name)
        assert set(taken) <= {digest, digest_before if start == "older" else digest}
        assert start == "damaged" or refused == [], refused
        kills += killed is not None
        looks += seen_looks
    finding(
        f"{kills} times four processes prepare one set, into an empty, damaged or older cache, and one is killed",
        f"the files of an undisturbed preparation each time; a reader looked {looks:,} times and never saw a part",
    )


def sha256s_damaged(files: dict[str, str], whole: Path) -> dict[str, str]:
    """The digests of what `lay_out` damages."""
    content = bytearray((whole / "pets" / "train-native" / "images.bin").read_bytes())
    content[len(content) // 2] ^= 1
    return files | {"images.bin": hashlib.sha256(content).hexdigest()}


# So long that the other start, which waits a second for the lock, meets the holder and not only its checkpoints.
LONGER = """
import time
from repro.training.loop import Trainer
step = Trainer.step
def slow(self, indices):
    time.sleep(0.04)
    step(self, indices)
Trainer.step = slow
"""


@pytest.mark.timeout(300)
def test_two_start_one_run(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches two runs that write over each other's checkpoints, a run that is trained twice, a message that names
    nobody, or somebody long dead, and a lock that outlives the one who held it.
    """
    trials, draw, told, after_a_kill, starts = amount(3, 20), random.Random(0), 0, 0, 0
    while told < trials:
        trial, starts = told, starts + 1
        assert starts <= 3 * trials
        folder = tmp_path / str(starts)
        folder.mkdir()
        gathering = Gathering(nursery, folder)
        command = (*TRAIN, "--run-dir", str(folder / "runs"), *EACH_STEP)
        both = [gathering.add(*command, prelude=LONGER) for _ in range(2)]
        gathering.begin()
        until(lambda both=both: not all(map(alive, both)))
        holder, other = sorted(both, key=alive, reverse=True)
        code, line = nursery.wait(other), (gathering.members[other] / "stderr").read_text().splitlines()[-1]
        if code != ResourceError.exit_code:  # on a busy machine one may be through before the other comes
            ends = {other: code, holder: nursery.wait(holder)}
            assert sorted(ends.values()) in ([0, 0], [0, RecipeError.exit_code])
            late = {0: "already complete", RecipeError.exit_code: "holds a run already"}
            assert any(late[ends[pid]] in (own / "stderr").read_text() for pid, own in gathering.members.items())
            assert differences(folder, undisturbed) == []
            continue
        assert re.fullmatch(
            rf"repro: {re.escape(str(folder / 'runs' / RUN))}: process {holder} of {re.escape(os.uname().nodename)} "
            r"\(since .*\) trains in it; wait for its end, or give this run another --run-dir",
            line,
        ), line
        told += 1
        if trial % 2 == 0:
            until(lambda folder=folder: steps_saved(folder) > 0)
            time.sleep(draw.uniform(0, 0.1))
            kill(holder)
            assert nursery.wait(holder) == -signal.SIGKILL
            again = nursery.start(gathering.members[holder], *command, "--resume")
            assert nursery.wait(again) == 0, (gathering.members[holder] / "stderr").read_text()
            after_a_kill += 1
        else:
            assert nursery.wait(holder) == 0, (gathering.members[holder] / "stderr").read_text()
        assert differences(folder, undisturbed) == []
    finding(
        f"{trials} times two processes start one run at the same moment; {after_a_kill} times the holder is killed",
        f"one trains, the other is told who does, {told} of {trials}; the next one goes on at once after a kill; "
        f"0 differences to an undisturbed run",
    )
