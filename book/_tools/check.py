"""Run the project's checks, all of them even if one fails, and end with one summary.

    python -m book._tools.check PART ...       (parts: lint, unit, torture, gates, chapters, book, browser)

The last line reads "N passed, N failed", summed over the parts; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from book._tools import gates, scripts
from book._tools.notebooks import ROOT


@dataclass
class Result:
    """The outcome of one part: tests passed, failed and skipped, and wall seconds."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def command(*arguments: str, **environment: str) -> bool:
    """Print a command of this environment, run it in the repository's root, and say whether it succeeded."""
    print(f"\n$ {shlex.join(arguments)}", flush=True)
    call = [gates.tool(arguments[0]), *arguments[1:]]
    return subprocess.run(call, cwd=ROOT, env=os.environ | environment, check=False).returncode == 0


def pytest(*arguments: str) -> Result:
    """Run pytest with exactly these arguments and count from its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={shlex.quote(str(report))}"
        succeeded = command("pytest", *arguments, PYTEST_ADDOPTS=options)
        result = count(report)
    if not succeeded and not result.failed:
        result.failed = 1  # pytest itself fell over, or collected nothing
    return result


def count(report: Path) -> Result:
    """Count the cases of a JUnit report; a missing one counts as nothing run."""
    if not report.exists():
        return Result()
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Result(len(cases) - failed - skipped, failed, skipped)


def commands(*lines: tuple[str, ...]) -> Result:
    """Run several commands and count each as one check."""
    outcomes = [command(*line) for line in lines]
    return Result(passed=sum(outcomes), failed=len(outcomes) - sum(outcomes))


def lint() -> Result:
    """Style, format and types."""
    sources = "repro", "book", "tests", "benchmarks"
    folders = [folder for folder in sources if (ROOT / folder).is_dir()]
    return commands(("ruff", "check", *folders), ("ruff", "format", "--check", *folders), ("mypy",))


def book() -> Result:
    """Build the pages, look for scripts that are not the book's, and print where the pages are."""
    result = commands(gates.BUILD)
    if not result.failed:
        faults = scripts.in_site((ROOT / gates.INDEX).parent)
        print("\n".join(faults) or gates.INDEX, flush=True)
        result.passed, result.failed = result.passed + (not faults), len(faults)
    return result


PARTS: dict[str, Callable[[], Result]] = {
    "lint": lint,
    "unit": lambda: pytest("tests", *(f"--ignore=tests/{other}" for other in ("browser", "torture", "test_book.py"))),
    "torture": lambda: pytest("tests/torture"),
    "gates": lambda: pytest("tests/test_book.py"),
    "chapters": lambda: pytest("--nbval", "chapters/"),
    "book": book,
    "browser": lambda: pytest("tests/browser"),
}


def summary(results: dict[str, Result]) -> str:
    """The closing table; its last line sums the parts."""
    lines = [f"{'part':10}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    lines += [f"{name:10}{r.passed:8}{r.failed:8}{r.skipped:9}{r.seconds:9.1f}" for name, r in results.items()]
    passed, failed = (sum(getattr(r, key) for r in results.values()) for key in ("passed", "failed"))
    return "\n".join([*lines, f"{passed} passed, {failed} failed"])


def main(arguments: list[str] | None = None) -> int:
    """Run the named parts in the order given and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m book._tools.check", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    results: dict[str, Result] = {}
    for name in parser.parse_args(arguments).parts:
        start = time.monotonic()
        results[name] = PARTS[name]()
        results[name].seconds = time.monotonic() - start
    failed = any(result.failed for result in results.values())
    if list(results) != ["book"] or failed:
        print(f"\n{summary(results)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
