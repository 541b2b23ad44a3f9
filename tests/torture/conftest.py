"""Faults on purpose, one file for each row of the table on the page `book/trust`.

The fast tier runs in CI. `make torture` runs the full one, and names in REPRO_TORTURE_REPORT the file that keeps what
each test notes by `finding`.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Nursery
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
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe without a fault, and without checkpoints inside an epoch."""
    from processes import train_tiny

    folder = tmp_path_factory.mktemp("undisturbed")
    train_tiny(nursery, folder)
    assert nursery.wait() == 0, (folder / "stderr").read_text()
    return folder
