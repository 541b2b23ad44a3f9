"""Row 16: faults planted in a copy of the package, one at a time; the test named for each has to fail by an assertion.

The faults and the tests that catch them are data: `planted_faults.toml`.
"""

import json
import os
import py_compile
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tier import Finding, amount

ROOT = Path(__file__).resolve().parents[2]
FAULTS = tomllib.loads(Path(__file__).with_name("planted_faults.toml").read_text(encoding="utf-8"))["fault"]
EVERY = amount(8, 1)
# Imports once all but the package. Each line on stdin is a tree and the names of its tests; a fork runs them in the
# tree, and writes how each ended: "passed", or for a failure whether it is an assertion's, and in which file.
SERVER = """
import json, os, signal, sys
import hypothesis, numpy, PIL.Image, pyarrow.parquet, pydantic, pytest, safetensors.torch, scipy.stats, sklearn.datasets
import torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor.parallel, torchvision

class Outcomes:
    def __init__(self):
        self.found = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.excinfo is not None:
            kind = "assertion" if call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)) else "error"
            self.found[item.nodeid] = f"{report.when}: {kind}", str(call.excinfo.traceback[-1].path)
        elif report.when == "call":
            self.found[item.nodeid] = report.outcome, sys.modules["repro"].__file__
        return report

for line in sys.stdin:
    tree, tests = json.loads(line)
    if os.fork() == 0:
        signal.alarm(120 * len(tests))  # a fault may make one wait for ever
        os.chdir(tree)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.path[:0] = [tree]
        outcomes = Outcomes()
        pytest.main(["-q", "-p", "no:cacheprovider", f"--basetemp={tree}/tmp", *tests], [outcomes])
        with open("found", "w") as f:
            json.dump(outcomes.found, f)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print("done", flush=True)
"""


class Copy:
    """A copy of package and tests, in which faults are planted and tests run."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        for name in ("repro", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        # Compiled once, and known by content: a fault may come within a second of what it changes, and be as long.
        for path in (tree / "repro").rglob("*.py"):
            py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REPRO_TORTURE")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ""}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, tests: Sequence[str]) -> dict[str, tuple[str, Path]]:
        """How each test ended, and in which file: that of the package, or where it failed, or what pytest said."""
        found = self.tree / "found"
        found.unlink(missing_ok=True)
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps([str(self.tree), tests]) + "\n")
        self.server.stdin.flush()
        self.server.stdout.readline()
        outcomes = dict.fromkeys(tests, ("not run", str(self.tree / "log")))
        if found.exists():
            outcomes |= json.loads(found.read_bytes())
        return {name: (outcome, Path(file)) for name, (outcome, file) in outcomes.items()}

    @contextmanager
    def planted(self, fault: dict[str, str]) -> Iterator[None]:
        """With one fault, which is gone afterwards."""
        path = self.tree / fault["file"]
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(fault["old"], fault["new"]), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(timeout=60)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    copy = Copy(tmp_path / "copy")
    yield copy
    copy.close()


def test_the_list_is_that_of_this_package() -> None:
    """Catches a list that the code has left behind: a fault that would be planted nowhere, or in two places."""
    assert len(FAULTS) >= 20
    assert len({fault["what"] for fault in FAULTS}) == len(FAULTS)
    stale = [f["what"] for f in FAULTS if (ROOT / f["file"]).read_text(encoding="utf-8").count(f["old"]) != 1]
    assert not stale, "the old piece of code is not there exactly once"
    assert not [fault["what"] for fault in FAULTS if fault["test"].startswith("tests/browser/")]


def test_each_fault_is_caught(copy: Copy, finding: Finding) -> None:
    """Catches a test that passes whatever the code does: with its fault planted it has to fail, by an assertion of its
    own and not because something cannot be imported, and without it to pass.
    """
    chosen = FAULTS[::EVERY]
    tests = sorted({fault["test"] for fault in chosen})
    package = copy.tree / "repro"
    assert copy.run(tests) == dict.fromkeys(tests, ("passed", package / "__init__.py"))
    missed = []
    for fault in chosen:
        with copy.planted(fault):
            outcome, file = copy.run([fault["test"]])[fault["test"]]
        if outcome != "call: assertion" or file.is_relative_to(package):
            missed.append(f"{fault['what']}: {outcome} in {file}")
    assert not missed, "\n".join(missed)
    finding(
        f"{len(chosen)} faults planted in {len({fault['file'] for fault in chosen})} modules, one at a time",
        f"{len(chosen) - len(missed)} caught by an assertion of the test that is named for it; all {len(tests)} tests "
        "pass without them",
    )
