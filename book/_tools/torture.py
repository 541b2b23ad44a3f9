"""Torture the package, and write down what came of it.

    python -m book._tools.torture [ROW ...]

Runs the full tier of `tests/torture` (all rows, or some), keeps what it did and found in `records/torture/`, and writes
the table for the page `book/trust` and between its marks in the README. Rows that were not run keep what was found
before; a row of which a test failed loses it. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from book._tools import gates
from book._tools.notebooks import ROOT
from repro import records
from repro.training.device import describe

RESULTS = ROOT / "records" / "torture" / "results.json"
TABLE = RESULTS.with_name("table.md")  # what the page includes
README = ROOT / "README.md"
START, END = "<!-- faults: written by `make torture` -->\n", "<!-- end of faults -->\n"
FAULTS = {
    1: "SIGKILL at random moments of training, preparing data and saving; resumed",
    2: "exit at each step of a save",
    3: "a rank killed or stopped under torchrun, the whole job killed, a column's peer frozen",
    4: "SIGTERM and Ctrl-C, twice in a row",
    5: "disk full, read-only or vanished folder, out of memory, few open files, no shared memory, odd paths",
    6: "damaged, swapped, foreign or hostile checkpoints",
    7: "NaN or infinity at the first, a middle and the last step, on one rank of two",
    8: "truncated or flipped data files, wrong labels, wrong structure",
    9: "odd images",
    10: "archives that lead out of their folder, and bombs",
    11: "no network, or a bad server",
    12: "four processes prepare one set, one of them killed; two start one run",
    13: "recipes with a slip",
    14: "HTML in names, errors, metrics and outputs",
    15: "order and resumption of the stream of pictures",
    16: "faults planted in our own code",
}


def table(results: dict[str, Any]) -> str:
    """The findings as a Markdown table, with what they were made on."""
    lines = ["| | fault | what was done | what was found |", "|---|---|---|---|"]
    for row, fault in FAULTS.items():
        found = [(f["did"], f["found"]) for f in results["findings"] if f["row"] == row]
        first, *others = found or [("not run", "")]
        lines.append(f"| {row} | {fault} | {first[0]} | {first[1]} |")
        lines += [f"| | | {did} | {seen} |" for did, seen in others]
    if results["findings"]:
        runs = "; ".join(dict.fromkeys(f"{f['device']}, torch {f['torch']}, {f['date']}" for f in results["findings"]))
        lines += ["", f"Full tier, {sum(f['seconds'] for f in results['findings']) / 60:.0f} minutes in all: {runs}."]
    return "\n".join([*lines, ""])


def read() -> dict[str, Any]:
    """What was found last; nothing where it never ran."""
    return json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {"findings": []}


def run(rows: list[int]) -> tuple[int, set[int], list[dict[str, Any]]]:
    """Torture these rows in full: pytest's exit status, the rows of which a test failed, and what was found."""
    files = [str(path) for row in rows for path in sorted((ROOT / "tests" / "torture").glob(f"test_{row:02d}_*.py"))]
    with tempfile.TemporaryDirectory() as folder:
        report, found = Path(folder, "report.xml"), Path(folder, "findings.jsonl")
        environment = os.environ | {"REPRO_TORTURE": "full", "REPRO_TORTURE_REPORT": str(found)}
        call = [gates.tool("pytest"), "-q", "--durations=16", f"--junitxml={report}", *files]
        status = subprocess.run(call, cwd=ROOT, env=environment, check=False).returncode
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        failed = {
            int(case.get("classname", "").split("test_")[1][:2])
            for case in cases
            if case.find("failure") is not None or case.find("error") is not None
        }
        lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    device = describe(torch.device("cpu"))
    about = {
        "device": f"{device['name']}, threads: {device['threads']}",
        "torch": records.environment()["torch"],
        "date": datetime.now(UTC).date().isoformat(),
    }
    return status, failed, [json.loads(line) | about for line in lines]


def write(results: dict[str, Any]) -> None:
    """Keep the findings, and put the table between its marks in the README."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLE.write_text(table(results), encoding="utf-8")
    before, _, rest = README.read_text("utf-8").partition(START)
    README.write_text(before + START + table(results) + END + rest.partition(END)[2], "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the rows that are named, or all of them; print the table; return the exit status."""
    rows = [int(a) for a in (sys.argv[1:] if arguments is None else arguments)] or list(FAULTS)
    status, failed, found = run(rows)
    others = [f for f in read()["findings"] if f["row"] not in rows]
    results = {"findings": sorted([*others, *(f for f in found if f["row"] not in failed)], key=lambda f: f["row"])}
    write(results)
    print(table(results))
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
