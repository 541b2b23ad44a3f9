"""Faults on purpose, one file for each row of the table on the page `book/trust`.

The fast tier runs in CI. `make torture` runs the full one, and names in REPRO_TORTURE_REPORT the file that keeps what
each test notes by `finding`.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import PATCH
from jobs import Job, Jobs
from processes import EACH_STEP, RUN, STOPPED, Nursery, alive, train_tiny
from tier import Finding


@pytest.fixture
def finding(request: pytest.FixtureRequest) -> Finding:
    """Notes what a test did and found, counted and not typed: `finding("9 kills over 3 runs", "0 differences")`.

    It is called after the assertions, so that a row of the table stands for a test that passed.
    """
    row = re.match(r"test_(\d\d)_", request.path.name)
    assert row, f"{request.path.name}: a file of this folder is called test_NN_fault.py by its row in the table"
    started = time.monotonic()

    def note(did: str, found: str) -> None:
        if report := os.environ.get("REPRO_TORTURE_REPORT"):
            line = {"row": int(row[1]), "did": did, "found": found, "seconds": round(time.monotonic() - started, 1)}
            with Path(report).open("a", encoding="utf-8") as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")

    return note


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where `repro` starts in milliseconds, to be killed."""
    nursery = Nursery.open()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def stopped(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny run was killed, with checkpoints of the two steps before; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    train_tiny(nursery, folder, *EACH_STEP, prelude=f"{PATCH}at({STOPPED}, lambda: os._exit(9))")
    assert nursery.wait() == 9
    assert len(list((folder / "runs" / RUN).glob("step-*"))) == 4
    return folder


@pytest.fixture(scope="session")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe without a fault, and without checkpoints inside an epoch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_tiny(nursery, folder)
    assert nursery.wait() == 0, (folder / "stderr").read_text()
    return folder


@pytest.fixture
def job(nursery: Nursery, tmp_path: Path) -> Iterator[Jobs]:
    """Makes jobs of two ranks in folders of their own; what still runs at the end is killed."""
    jobs: list[Job] = []

    def make(name: str) -> Job:
        jobs.append(Job(nursery, tmp_path / name))
        return jobs[-1]

    yield make
    for made in jobs:
        if made.agent and alive(made.agent):
            os.killpg(made.agent, signal.SIGKILL)
            nursery.wait()
