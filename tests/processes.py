"""Runs as processes of their own, to be killed, stopped and resumed; and what is left of them to compare."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import TINY_TOML
from safetensors.torch import load_file

RUN = "tiny-0"
# Imports everything once; each line on stdin is a folder and arguments, run by a fork of it as the `repro` command. It
# answers with the fork's process id, and to an empty line with how the fork ended. A fork starts in milliseconds.
NURSERY = """
import json, os, signal, sys
from helpers import register_tiny
import sklearn.datasets, torch, torch._dynamo
torch.set_num_threads(1)
import repro.training.command
from repro.cli import main
register_tiny()
for line in sys.stdin:
    if line.strip():
        folder, arguments, prelude = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (number and os.O_TRUNC)), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "rw"[n > 0], buffering=1) for n in (0, 1, 2))
            exec(prelude, {})
            sys.argv = ["repro", *arguments]
            code = 1
            try:
                main()
                code = 0
            except SystemExit as e:
                code = e.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    else:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Nursery:
    """Starts `repro` again and again in little time, one process at a time, each with one thread."""

    process: subprocess.Popen[str]

    @classmethod
    def open(cls) -> "Nursery":
        return cls(
            subprocess.Popen([sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def start(self, folder: Path, *arguments: str, prelude: str = "") -> int:
        """The id of a new process that runs `repro ARGUMENTS` in `folder`, after the code of `prelude`."""
        return self._ask(json.dumps([str(folder), arguments, prelude]))

    def wait(self) -> int:
        """The exit code of the process started last, once it has ended; negative for a signal."""
        return self._ask("")

    def close(self) -> None:
        """End it; no process that it started is left."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _ask(self, line: str) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


TRAIN = ("train", "tiny.toml", "--threads", "1")
EACH_STEP = ("--save-every", "0")


def train_tiny(nursery: Nursery, folder: Path, *options: str, prelude: str = "") -> int:
    """Start the tiny recipe in `folder`; by itself it saves at the end of each epoch alone."""
    (folder / "tiny.toml").write_text(TINY_TOML)
    return nursery.start(folder, *TRAIN, *options, prelude=prelude)


def steps_saved(folder: Path) -> int:
    """How far the newest checkpoint is."""
    return max((int(p.name[5:14]) for p in (folder / "runs" / RUN).glob("step-*.json")), default=0)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_for_steps(pid: int, folder: Path, more: int) -> None:
    """Return when the run has saved `more` steps beyond those that were there, or has ended."""
    first, until = steps_saved(folder), time.monotonic() + 60
    while steps_saved(folder) < first + more and alive(pid):
        assert time.monotonic() < until
        time.sleep(0.001)


def kill(pid: int) -> None:
    """SIGKILL, unless the process has just ended."""
    os.kill(pid, signal.SIGKILL)  # a process that nobody waited for keeps its id


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All tensors of the last checkpoint (weights, momentum, sums), and every metric but the seconds."""
    run = folder / "runs" / RUN
    record = json.loads((run / "record.json").read_bytes())
    assert record["status"] == "complete"
    epochs = [{k: v for k, v in e.items() if k != "seconds"} for e in record["epochs"]]
    return load_file(max(run.glob("*.safetensors"))), epochs


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """The tensors and metrics in which two runs ended with other bytes."""
    (tensors, epochs), (expected, expected_epochs) = outcome(folder), outcome(undisturbed)
    assert any(name.startswith("optimizer/") for name in expected)
    found = sorted(tensors.keys() ^ expected.keys())
    shared = tensors.keys() & expected.keys()
    found += [name for name in shared if tensors[name].numpy().tobytes() != expected[name].numpy().tobytes()]
    return found + (["metrics"] if epochs != expected_epochs else [])
