"""Runs that torchrun starts: on two agents as on two machines, stopped, handed to another mode, refused.

`tests/torture` kills and freezes their ranks.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_programs import failure_of, register_columns
from helpers import TINY_TOML
from ranks import free_port, in_ranks
from safetensors.torch import load_file

from repro.errors import RecipeError
from repro.training import load_recipe, train
from repro.training.command import Sharing
from repro.training.parallel import Group, ParallelError, joined
from repro.training.parallel.group import OWN_STORE

# The real command line, with the net of the tests registered.
COMMAND = "from engine_programs import register_columns; register_columns(); from repro.cli import main; main()"
# Each step of a rank begins with something else.
PATCHED = """
import os, signal, time
from pathlib import Path
from repro.training.loop import Trainer
step = Trainer.step
def patched(self, indices):
    {}
    step(self, indices)
Trainer.step = patched
"""
# Slow enough for a signal to find it, and known by its number.
SLOWED = PATCHED.format("Path(f'pid-{os.environ.get(\"RANK\", 0)}').write_text(str(os.getpid())); time.sleep(0.05)")
SLOWED += COMMAND
TOML = TINY_TOML.replace('"tiny"', '"tiny_columns"')
RUN = "tiny-0"
LIMIT_S = 180


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    register_columns()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


Starter = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts Python with arguments in a folder that has the tiny recipe; what is left at the end is stopped."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        (folder / "tiny.toml").write_text(TOML)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *arguments]
        started.append(subprocess.Popen(command, cwd=folder, env=os.environ | environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.terminate()


def training(code: str, *options: str) -> list[str]:
    """The arguments of a process that trains."""
    return ["-c", code, "train", "tiny.toml", "--threads", "1", "--timeout", "30", *options]


def torchrun(code: str, *options: str, agent: Sequence[str]) -> list[str]:
    """The arguments of an agent whose processes train."""
    return ["-m", "torch.distributed.run", *agent, "--no-python", sys.executable, *training(code, *options)]


def agent_of_two(port: int) -> list[str]:
    """The options of each of two agents, as on two machines with a process each."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    return ["--nnodes", "2", "--nproc-per-node", "1", *meeting]


ONE_MACHINE = ["--standalone", "--nproc-per-node", "2"]


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Exit code and stderr of each, in time."""
    errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def wait_for_more_steps(process: subprocess.Popen[str], run: Path, more: int) -> None:
    """Return when the run has saved `more` steps than at first."""

    def saved() -> int:
        return max((int(p.name[5:14]) for p in run.glob("step-*.json")), default=0)

    first, until = saved(), time.monotonic() + LIMIT_S
    while saved() < first + more:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of the last checkpoint, and the record, of which there is one."""
    run = folder / "runs" / RUN
    assert [p.name for p in (folder / "records").iterdir()] == [f"{RUN}.json"]
    record = json.loads((folder / "records" / f"{RUN}.json").read_bytes())
    assert record["status"] == "complete"
    return load_file(max(run.glob("*.safetensors"))), record


def measured(record: dict[str, Any]) -> list[float]:
    kinds = ("train_loss", "train_error", "test_loss", "test_error", "test_top5_error")
    return [epoch[kind] for epoch in record["epochs"] for kind in kinds]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The run without torchrun."""
    register_columns()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.toml").write_text(TOML)
    record, _ = train(load_recipe(str(folder / "tiny.toml")), run_dir=folder)
    return load_file(max(folder.glob("*.safetensors"))), record.model_dump()


def assert_close(found: Any, expected: Any) -> None:
    """Fails unless all losses and errors, and all weights to a share of the largest of their tensor, agree to 1e-5.

    Momentum is left out: a picture that is on the other side of a ReLU's kink by rounding changes it at once.
    """
    (tensors, record), (expected_tensors, expected_record) = found, expected
    assert measured(record) == pytest.approx(measured(expected_record), rel=1e-5)
    assert tensors.keys() == expected_tensors.keys()
    weights = {name: tensor for name, tensor in expected_tensors.items() if name.startswith("model/")}
    assert len(weights) == 10
    for name, tensor in weights.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-5 * tensor.abs().max().item())


def test_two_agents_train_one_net(start: Starter, tmp_path: Path, in_one_process: Any) -> None:
    """Catches two runs side by side that both write, and a gradient that lacks a rank's part."""
    command = torchrun(COMMAND, "--parallel", "data", agent=agent_of_two(free_port()))
    for code, error in ended(*(start(tmp_path, *command) for _ in range(2))):
        assert code == 0, error
    assert_close(outcome(tmp_path), in_one_process)


def test_a_run_is_handed_from_one_process_to_two_columns_to_shares_and_back(
    start: Starter, tmp_path: Path, in_one_process: Any
) -> None:
    """Catches a checkpoint of one column for the whole net, a stop that only the rank that got the signal hears of, and
    a record that keeps silent on how the run was shared.
    """
    run = tmp_path / "runs" / RUN
    saving = ["--save-every", "0", "--resume"]
    alone = start(tmp_path, *training(SLOWED, *saving))
    wait_for_more_steps(alone, run, 20)
    alone.send_signal(signal.SIGTERM)
    assert ended(alone)[0][0] == 75

    columns = start(tmp_path, *torchrun(SLOWED, "--parallel", "columns", *saving, agent=ONE_MACHINE))
    wait_for_more_steps(columns, run, 20)
    columns.send_signal(signal.SIGTERM)  # to the agent, who passes it on
    code, error = ended(columns)[0]
    assert code != 0
    assert error.count("repro: rank 0: tiny seed 0: stopped by SIGTERM at epoch") == error.count("repro: ") == 1, error
    assert json.loads((run / "record.json").read_bytes())["status"] == "preempted"

    shares = start(tmp_path, *torchrun(SLOWED, "--parallel", "data", *saving, agent=ONE_MACHINE))
    wait_for_more_steps(shares, run, 20)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
    code, error = ended(shares)[0]
    assert code != 0
    stopped = "repro: rank 0: tiny seed 0: stopped by SIGTERM to rank 1 at epoch"
    assert error.count(stopped) == error.count("repro: ") == 1, error

    assert ended(start(tmp_path, *training(COMMAND, "--resume")))[0][0] == 0
    assert_close(outcome(tmp_path), in_one_process)
    ways = outcome(tmp_path)[1]["device"]["parallel"]
    assert [way["mode"] for way in ways] == ["none", "columns", "data", "none"]
    assert outcome(tmp_path)[1]["restarts"] == 3


def test_another_recipe_on_the_other_machine_is_named_on_both(tmp_path: Path) -> None:
    """Catches two halves of different nets, and a deadlock at the first batch of another size."""
    (tmp_path / "tiny.toml").write_text(TOML)
    overrides = [["batch_size=16"], ["batch_size=32"]]
    found = in_ranks(2, failure_of, "commanded", tmp_path, overrides)
    for message in found:
        assert message.startswith("rank 1 has recipe "), message
        assert "all ranks need the same code, recipe and options" in message
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.toml"]


def test_ranks_compare_every_fact() -> None:
    """Catches a comparison of the first fact only, and ranks that wait for one that has left."""
    same = {"recipe": "a", "--parallel": ["data", 1, "a"]}
    found = in_ranks(3, failure_of, "agreeing", [same, same, same | {"--parallel": ["data", 2, "a"]}])
    expected = "rank 2 has --parallel ['data', 2, 'a'], rank 0 has ['data', 1, 'a']: "
    assert all(message.startswith(expected) for message in found), found
    assert in_ranks(2, failure_of, "agreeing", [same, same]) == ["", ""]


def test_a_group_that_cannot_form_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a wait of half an hour for a rank that never comes, and a port's number that has to be guessed."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        for port, why in ((taken.getsockname()[1], "address already in use"), (free_port(), "")):
            for key, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
                monkeypatch.setenv(key, str(value))
            expected = rf"(?i)no group of 2 processes at localhost:{port} within 2 s \(.*{why}.*--standalone"
            with pytest.raises(ParallelError, match=expected), joined("cpu", 2.0):
                pass


def test_restarts_without_a_store_of_their_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a restart that meets the first start's keys and never comes up."""
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(OWN_STORE, raising=False)
    with pytest.raises(ParallelError, match=f"torchrun --max-restarts needs {OWN_STORE}=1"), joined("cpu", 2.0):
        pass


def test_numbers_of_processes_that_fit_no_mode_are_refused(start: Starter, tmp_path: Path) -> None:
    """Catches two processes that write over each other's checkpoints, and half of a net trained."""
    with pytest.raises(RecipeError, match="2 processes would each train the same net alone; say with --parallel"):
        Sharing().among(Group(rank=1, world_size=2))
    with pytest.raises(ParallelError, match="needs 2 processes, one for each column, and found 3"):
        Sharing("columns").among(Group(rank=1, world_size=3))
    ((code, error),) = ended(start(tmp_path, *training(COMMAND, "--parallel", "columns")))
    assert code == ParallelError.exit_code
    assert error.splitlines()[-1].startswith("repro: --parallel columns needs 2 processes, one for each column, and")
