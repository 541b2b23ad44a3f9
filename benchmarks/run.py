"""All benchmarks, or those named: one table to stdout, every timing to `benchmarks/results.json`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    alexnet_2012_step,
    alexnet_step,
    augmentation,
    dense,
    imagenet_loader,
    lenet_epoch,
    lrn,
    occlusion,
    preparing,
    readme,
    receptive_field,
    two_processes,
)
from benchmarks.harness import ROUNDS, Comparison, progress, table
from repro import records
from repro.training.device import describe

RESULTS = Path(__file__).with_name("results.json")
SUBJECTS: dict[str, Callable[[int], list[Comparison]]] = {
    "augmentation": augmentation.compare,
    "lenet_epoch": lenet_epoch.compare,
    "alexnet_step": alexnet_step.compare,
    "lrn": lrn.compare,
    "alexnet_2012_step": alexnet_2012_step.compare,
    "dense": dense.compare,
    "occlusion": occlusion.compare,
    "preparing": preparing.compare,
    "imagenet_loader": imagenet_loader.compare,
    "receptive_field": receptive_field.compare,
    "two_processes": two_processes.compare,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subject", nargs="*", help=f"one of {', '.join(SUBJECTS)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"alternations that are kept (default {ROUNDS})")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the timings go (default: beside this file)")
    options = parser.parse_args(arguments)
    if unknown := set(options.subject) - set(SUBJECTS):
        parser.error(f"no subject is called {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    load_before = os.getloadavg()[0]
    comparisons: list[Comparison] = []
    for name in options.subject or SUBJECTS:
        comparisons += SUBJECTS[name](options.rounds)
    machine = describe(torch.device("cpu")) | {"cpus": os.cpu_count(), "load_before": load_before}
    found = report(comparisons, machine)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.output == RESULTS and not options.subject:
        readme.write(found)
    console = Console(width=None if sys.stdout.isatty() else 160)  # a log cannot say how wide it is
    console.print(table(comparisons))
    console.print(f"{machine['name']}, {machine['threads']} threads; timings in {options.output}", soft_wrap=True)
    if load_before > 0.5:
        progress(f"other programs kept {load_before:.1f} processors busy before the start: trust the minima alone\n")


def report(comparisons: list[Comparison], machine: dict[str, Any]) -> dict[str, Any]:
    """What is kept: machine, versions, date and commit, and of each comparison the result and all seconds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": records.git_state(),
        "versions": records.environment(),
        "machine": machine,
        "comparisons": [c.summary() for c in comparisons],
    }
