"""Row 5, disks: too small, full, refusing, read-only, gone."""

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import NO_PRIVILEGE, PATCH, Mount, mounted, told
from processes import (
    EACH_STEP,
    RUN,
    STEPS,
    Nursery,
    alive,
    differences,
    resume_tiny,
    steps_saved,
    train_tiny,
    wait_for_steps,
)
from test_02_saving import example, latest
from tier import Finding, amount

from repro.errors import ResourceError
from repro.records import read
from repro.training.checkpoint import load_latest, save


def needed(undisturbed: Path) -> int:
    """The bytes that three checkpoints of the tiny run take."""
    run = undisturbed / "runs" / RUN
    return 3 * max(m.stat().st_size + next(run.glob(f"{m.stem}-*")).stat().st_size for m in run.glob("step-*.json"))


def test_too_little_room(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a run that trains for an hour and then finds no room for its first checkpoint, or for its third, and one
    that is refused although there is room.
    """
    sizes, asked = amount([32, 128], [16, 24, 32, 48, 64, 96, 128, 192]), 0
    for size in sizes:
        folder = tmp_path / str(size)
        (folder / "runs").mkdir(parents=True)
        with mounted(folder / "runs", f"size={size}k") as disk:
            pretended = f"{PATCH}shutil.disk_usage = lambda path: type('Disk', (), {{'free': {size << 10}}})"
            train_tiny(nursery, folder, prelude=disk.enter if disk else pretended)
            assert nursery.wait() == 6, (folder / "stderr").read_text()
            inside = (disk.seen(folder) if disk else folder) / "runs" / RUN
            assert {path.name for path in inside.iterdir()} <= {".lock"}
        pattern = rf"runs/{RUN}: ([\d,]+) bytes are free on its disk, ([\d,]+) are needed for 3 check.* by --run-dir$"
        found = re.match(pattern, told(folder))
        assert found, told(folder)
        free, asked = (int(number.replace(",", "")) for number in found.groups())
        assert free <= size << 10 < asked
    assert needed(undisturbed) <= asked <= needed(undisturbed) + 2**18
    folder = tmp_path / "enough"
    (folder / "runs").mkdir(parents=True)
    with mounted(folder / "runs", f"size={asked // 1024 + 20}k") as disk:  # a page for each folder and small file
        train_tiny(nursery, folder, *EACH_STEP, prelude=disk.enter if disk else "")
        assert nursery.wait() == 0, (folder / "stderr").read_text()
        assert differences(disk.seen(folder) if disk else folder, undisturbed) == []
    finding(
        f"{len(sizes)} disks too small for three checkpoints, and one just large enough",
        f"{len(sizes)} runs refused before the first step, with the bytes free and needed; the other is undisturbed",
    )


def fill(folder: Path, pid: int) -> Path:
    """Keep a disk full until a process has ended, what that gives up included; returns the file that fills it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as f:
        while alive(pid):
            try:
                f.write(bytes(1024))
            except OSError:
                time.sleep(0.001)
    return filler


# Where nothing can be mounted: files that the system lets grow no further, after some saves.
STUNTED = """
saves = iter(range(1000))
def stunt(*_):
    if next(saves) == {saves}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
before("repro.training.checkpoint:save", stunt)
"""


def fills_up(folder: Path, nursery: Nursery, times: int, disk: Mount | None) -> None:
    """Fill the disk under a run again and again, and let the run go on to its end."""
    run = (disk.seen(folder) if disk else folder) / "runs" / RUN
    for number in range(times):
        prelude = disk.enter if disk else PATCH + STUNTED.format(saves=number + 3)
        pid = train_tiny(nursery, folder, *EACH_STEP, "--resume", prelude=prelude)
        wait_for_steps(pid, run.parents[1], 1 + number % 3)
        saved = steps_saved(run.parents[1])
        filler = fill(run.parent, pid) if disk else None
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        pattern = r"the (checkpoint|record) cannot be written.*(No space left|too large).*; free space and resume$"
        assert re.search(pattern, told(folder, begun=True))
        found = load_latest(run)
        assert found
        assert found.state["epoch"] * STEPS + found.state["step"] >= saved
        assert not list(run.glob(".*.half"))
        if filler:
            filler.unlink()
    resume_tiny(nursery, folder, disk.enter if disk else "")


def test_a_disk_that_fills_up(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches `unexpected pos 704 vs 598`, a checkpoint in pieces, an old one pruned before the new one is there,
    litter on a disk that is full, and a run that cannot go on once there is room.
    """
    runs, times = amount((1, 2), (5, 4))
    for number in range(runs):
        (tmp_path / str(number) / "runs").mkdir(parents=True)
        with mounted(tmp_path / str(number) / "runs", "size=1m") as disk:
            folder = disk.seen(tmp_path / str(number)) if disk else tmp_path / str(number)
            fills_up(tmp_path / str(number), nursery, times, disk)
            assert differences(folder, undisturbed) == []
            assert read(folder / "runs" / RUN / "record.json").restarts == times
    finding(
        f"a disk that fills up under a run, {runs * times} times, each time resumed when there was room",
        "one line with the bytes that were needed; the checkpoint before loads every time; 0 differences",
    )


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_is_refused(call: str, tmp_path: Path, finding: Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a half-written file that stays, and an error without the bytes that were needed, at each call."""
    for step in (3, 6):
        save(tmp_path, step, example(step))
    real, refused = getattr(os, call), 0
    while True:
        left = iter([True] * refused)

        def refuse(*arguments: object, left: Iterator[bool] = left) -> object:
            if not next(left, False):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            try:
                save(tmp_path, 9, example(9))
            except ResourceError as e:
                message = str(e)
            else:
                break
        assert re.search(r"written, [\d,]+ bytes needed \(No space left on device\); step-0+6 stays; free", message)
        assert latest(tmp_path) in (6.0, 9.0)  # a manifest may have its name although its folder could not be synced
        assert not list(tmp_path.glob(".*"))
        refused += 1
    assert refused == {"fsync": 4, "replace": 2}[call]
    finding(
        f"{call} refused at each of its {refused} places in a save", "the one before or the new one loads; no litter"
    )


READ_ONLY = {"runs": "--run-dir", f"runs/{RUN}": "resume", "records": "--records-dir", "traces": "--trace"}


def test_read_only(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a folder that is found to be read-only after the first epoch, or, for the record, after the last."""
    for number, (name, remedy) in enumerate(READ_ONLY.items()):
        folder = tmp_path / str(number)
        (folder / name).mkdir(parents=True)
        (folder / name / ".lock").touch()  # that of a run may be there, and free to be taken
        (folder / name).chmod(0o555)
        train_tiny(nursery, folder, "--trace", "traces", prelude=NO_PRIVILEGE)
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        assert re.match(rf"{name}.*\(Permission denied\); .*{remedy}$", told(folder))
        assert not list(folder.rglob("step-*"))
    folder, times = tmp_path / "later", amount(1, 5)
    folder.mkdir()
    run = folder / "runs" / RUN
    for number in range(times):
        pid = train_tiny(nursery, folder, *EACH_STEP, "--resume", prelude=NO_PRIVILEGE)
        wait_for_steps(pid, folder, 2 + number % 3)
        run.chmod(0o555)
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        run.chmod(0o755)
        assert re.search(r"cannot be written.*\(Permission denied\)", told(folder, begun=True))
        assert load_latest(run)
    resume_tiny(nursery, folder, NO_PRIVILEGE)
    assert differences(folder, undisturbed) == []
    finding(
        f"{len(READ_ONLY)} folders that cannot be written, and one that turns so under a run, {times} times",
        f"{len(READ_ONLY)} refused before the first step; {times} stopped with a line and resumed, 0 differences",
    )


VANISHING = """
def moved():
    os.rename("runs/tiny-0", "runs/moved")
def taken():
    moved()
    os.mkdir("runs/tiny-0")
    fcntl.flock(os.open("runs/tiny-0/.lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
def blocked():
    shutil.rmtree("runs")
    open("runs", "w").close()
"""


def test_vanished(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a removed folder made anew without a word, a run that goes on in it beside another that has taken it
    since, and a stack trace where it cannot be made.
    """
    steps = amount([14], [1, 13, 14, 27, 40, 77])
    for step in steps:
        folder = tmp_path / str(step)
        folder.mkdir()
        train_tiny(nursery, folder, prelude=f"{PATCH}{VANISHING}at({step}, moved)")
        assert nursery.wait() == 0, (folder / "stderr").read_text()
        (line,) = re.findall("^repro: .*$", (folder / "stderr").read_text(), re.MULTILINE)
        assert line.startswith(f"repro: runs/{RUN}: was removed under the run, which has made it anew and goes on; ")
        assert differences(folder, undisturbed) == []
        assert bool(load_latest(folder / "runs" / "moved")) == (step > STEPS)
    ends = {"taken": "another process trains in it; .*--run-dir", "blocked": r"no run can be kept there \(.*--run-dir"}
    for act, message in ends.items():
        folder = tmp_path / act
        folder.mkdir()
        train_tiny(nursery, folder, prelude=f"{PATCH}{VANISHING}at(20, {act})")
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        assert re.match(rf"runs/{RUN}: {message}$", told(folder, begun=True))
    finding(
        f"a run's folder moved away under it, {len(steps)} times; taken by another run since; not to be made again",
        f"{len(steps)} made anew with a line, 0 differences; {len(ends)} stopped with a line",
    )
