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
from safetensors.torch import load

RUN = "tiny-0"
# Imports everything once; each line on stdin is a folder and arguments, run by a fork of it as the `repro` command. It
# answers with the fork's process id, and to an id, or an empty line for the last one, with how the fork ended. A fork
# starts in milliseconds.
NURSERY = """
import json, os, signal, sys, traceback
from helpers import register_tiny
import sklearn.datasets, torch, torch._dynamo
torch.set_num_threads(1)
import repro.training.command
from repro.cli import main
register_tiny()
for line in map(str.strip, sys.stdin):
    if line.startswith("["):
        folder, arguments, prelude = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (number and os.O_TRUNC)), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "rw"[n > 0], buffering=1) for n in (0, 1, 2))
            sys.argv = ["repro", *arguments]
            code = 1
            try:
                exec(prelude, {})
                main()
                code = 0
            except SystemExit as e:
                code = e.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    else:
        print(os.waitstatus_to_exitcode(os.waitpid(int(line or pid), 0)[1]), flush=True)
"""


@dataclass
class Nursery:
    """Starts `repro` again and again in little time, each process with one thread."""

    process: subprocess.Popen[str]

    @classmethod
    def open(cls) -> "Nursery":
        return cls(
            subprocess.Popen([sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def start(self, folder: Path, *arguments: str, prelude: str = "") -> int:
        """The id of a new process that runs `repro ARGUMENTS` in `folder`, after the code of `prelude`.

        A prelude that exits is all that runs.
        """
        return self._ask(json.dumps([str(folder), arguments, prelude]))

    def wait(self, pid: int | None = None) -> int:
        """The exit code of a process, or of the one started last, once it has ended; negative for a signal."""
        return self._ask("" if pid is None else str(pid))

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
STEPS = 13  # of its epochs
STOPPED = 20  # the step at which a run was killed that other tests go on from


def train_tiny(nursery: Nursery, folder: Path, *options: str, prelude: str = "") -> int:
    """Start the tiny recipe in `folder`; by itself it saves at the end of each epoch alone."""
    (folder / "tiny.toml").write_text(TINY_TOML)
    return nursery.start(folder, *TRAIN, *options, prelude=prelude)


def resume_tiny(nursery: Nursery, folder: Path, prelude: str = "") -> None:
    """Go on with it to its end."""
    train_tiny(nursery, folder, "--resume", prelude=prelude)
    assert nursery.wait() == 0, (folder / "stderr").read_text()


def steps_saved(folder: Path) -> int:
    """How far the newest checkpoint is."""
    return max((int(p.name[5:14]) for p in (folder / "runs" / RUN).glob("step-*.json")), default=0)


def part(run: Path, kind: str, steps: int = STOPPED - 1) -> Path:
    """A file of the run: the json or safetensors of a checkpoint, or the record."""
    (path,) = [run / "record.json"] if kind == "record" else run.glob(f"step-{steps:09d}*.{kind}")
    return path


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
    return load(max(run.glob("*.safetensors")).read_bytes()), epochs  # the path need not be UTF-8


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """The tensors and metrics in which two runs ended with other bytes."""
    (tensors, epochs), (expected, expected_epochs) = outcome(folder), outcome(undisturbed)
    assert any(name.startswith("optimizer/") for name in expected)
    found = sorted(tensors.keys() ^ expected.keys())
    shared = tensors.keys() & expected.keys()
    found += [name for name in shared if tensors[name].numpy().tobytes() != expected[name].numpy().tobytes()]
    return found + (["metrics"] if epochs != expected_epochs else [])
