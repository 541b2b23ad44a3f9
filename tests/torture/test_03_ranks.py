"""Row 3: ranks that torchrun started are killed or frozen, or the whole job is; then torchrun or the user goes on."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from jobs import Job, Jobs
from processes import EACH_STEP, Nursery, alive, differences, wait_for_steps
from ranks import free_port
from tier import FULL, Finding, amount

from repro.training.parallel.group import OWN_STORE
from repro.training.parallel.meeting import INTERFACES, LOOPBACK, meet

MODES = ("data", "columns")
TIMEOUT_S = 4.0  # of ranks that are to be frozen
WithoutFault = Callable[[str], Path]


@pytest.fixture(scope="module")
def without_fault(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> WithoutFault:
    """The folder of a run in this mode that nothing disturbed."""
    folders: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in folders:
            job = Job(nursery, tmp_path_factory.mktemp(mode))
            job.start("--parallel", mode)
            assert job.end() == 0, job.said()
            folders[mode] = job.folder
        return folders[mode]

    return run


def test_a_rank_killed_or_stopped(job: Jobs, without_fault: WithoutFault, finding: Finding) -> None:
    """Catches a restart that begins anew, refuses the unfinished run, meets the first start's keys or never comes up, a
    batch seen twice or never, a lock that outlives its holder, and a loss that nobody tells, or everybody.
    """
    faults = amount((signal.SIGKILL,), (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL))
    runs, draw, done, longest = amount(2, 10), random.Random(0), Counter[int](), 0.0
    for number in range(runs):
        mode, run = MODES[number % 2], job(str(number))
        run.start("--parallel", mode, *EACH_STEP, agents=2 if number % 4 == 0 else 1, restarts=len(faults))
        ranks = run.ranks()
        for fault in faults:
            wait_for_steps(run.agent, run.folder, draw.randint(3, 20))
            started, told = time.monotonic(), len(run.told())
            os.kill(draw.choice(ranks), fault)
            ranks = run.ranks()
            wait_for_steps(run.agent, run.folder, 1)
            longest, done[fault] = max(longest, time.monotonic() - started), done[fault] + 1
            (line,) = run.told()[told:]
            assert ("stopped by SIGTERM" if fault == signal.SIGTERM else "another rank died") in line
            assert line.startswith(("repro: rank 0: ", "repro: rank 1: "))
        assert run.end() == 0, run.said()
        assert differences(run.folder, without_fault(mode)) == []
        assert run.restarts == len(faults)
    assert longest < 30
    stops = f" and {done[signal.SIGTERM]} times stopped" if done[signal.SIGTERM] else ""
    finding(
        f"{runs} runs in {' and '.join(MODES)}: a rank {done[signal.SIGKILL]} times killed{stops}; torchrun restarts",
        f"trains again after {longest:.1f} s at most; told once each time; 0 differences to undisturbed runs",
    )


def test_the_whole_job_killed(job: Jobs, without_fault: WithoutFault, finding: Finding) -> None:
    """Catches a lock or a port that outlives the processes, and a resumption that takes one rank's part for all."""
    each, draw, kills = amount(1, 5), random.Random(1), 0
    for mode in amount(MODES[1:], MODES):
        run = job(mode)
        run.start("--parallel", mode, *EACH_STEP)
        for _ in range(each):
            run.ranks()
            wait_for_steps(run.agent, run.folder, draw.randint(3, 12))
            os.killpg(run.agent, signal.SIGKILL)
            kills += run.end() == -signal.SIGKILL
            run.start("--parallel", mode, *EACH_STEP, "--resume")
        assert run.end() == 0, run.said()
        assert differences(run.folder, without_fault(mode)) == []
        assert run.restarts == each
    assert kills == each * amount(1, 2)
    finding(f"all processes of a job killed at once, {kills} times; resumed", "0 differences")


def test_a_peer_frozen(job: Jobs, without_fault: WithoutFault, finding: Finding) -> None:
    """Catches a wait without end, also for the store of a rank that is frozen, and a frozen rank that wakes and goes on
    by itself. In the full tier the last one of each run is left to torchrun, which kills it after half a minute.
    """
    runs, each, draw, freezes, longest = amount(1, 2), amount(1, 5), random.Random(2), 0, 0.0
    for number in range(runs):
        run = job(str(number))
        run.start("--parallel", "columns", *EACH_STEP, restarts=each, timeout_s=TIMEOUT_S)
        ranks = run.ranks()
        for freeze in range(each):
            wait_for_steps(run.agent, run.folder, draw.randint(3, 12))
            frozen = draw.randrange(2)
            told, started = len(run.told()), time.monotonic()
            os.kill(ranks[frozen], signal.SIGSTOP)
            run.wait_for(lambda pid=ranks[1 - frozen]: not alive(pid))
            longest, freezes = max(longest, time.monotonic() - started), freezes + 1
            (line,) = run.told()[told:]
            assert line.startswith(f"repro: rank {1 - frozen}: another rank died, or was silent for 4 s (")
            if freeze < each - 1 or not FULL:
                os.kill(ranks[frozen], signal.SIGKILL if number else signal.SIGCONT)
            ranks = run.ranks()
        assert run.end() == 0, run.said()
        assert differences(run.folder, without_fault("columns")) == []
        assert run.restarts == each
    assert longest < TIMEOUT_S + 4
    finding(
        f"the other column frozen {freezes} times, with `--timeout {TIMEOUT_S:.0f}`; torchrun restarts",
        f"its peer gives up after {longest:.1f} s at most; 0 differences",
    )


DAMAGED_ON_RANK_1 = """
import os
from repro.errors import DataError
from repro.training.loop import Trainer
step = Trainer.step
def damaged(self, indices):
    if (self.place.step, os.environ["RANK"]) == (3, "1"):
        raise DataError("digits: damaged; fetch it again")
    step(self, indices)
Trainer.step = damaged
"""


def test_an_error_is_told_once(job: Jobs, finding: Finding) -> None:
    """Catches the same line from every rank, and ranks that tell of the loss of one that has said why it ended."""
    cases = 0
    for own_store in amount("1", "01"):
        for fault, options, expected in (
            (DAMAGED_ON_RANK_1, (), "rank 1: digits: damaged; fetch it again"),
            ("", ("--set", "epochs=0"), "tiny.toml: epochs = 0: "),
            ("", ("--device", "nowhere"), "device 'nowhere' is not there"),
        ):
            run = job(str(cases))
            run.start("--parallel", "data", *options, fault=fault, **{OWN_STORE: own_store})
            assert run.end() != 0
            (line,) = run.told()
            assert line.startswith("repro: rank ")
            assert expected in line
            cases += 1
    finding(f"{cases} jobs of two ranks with an error on one or on both", "one line each, with its rank")


def listened_on(*pids: int) -> set[tuple[str, int]]:
    """The addresses and ports at which processes wait for others."""
    sockets = [s for pid in pids for s in psutil.Process(pid).net_connections("tcp")]
    return {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}


def test_addresses_listened_on(job: Jobs, finding: Finding) -> None:
    """Catches a store, or gloo, that whoever is on the same network can write to."""
    found: set[tuple[str, int]] = set()
    for mode, own_store in zip(MODES, "01", strict=True):
        run = job(mode)
        run.start("--parallel", mode, *EACH_STEP, **{OWN_STORE: own_store})
        ranks = run.ranks()
        wait_for_steps(run.agent, run.folder, 2)
        found |= listened_on(*ranks) - listened_on(run.agent)  # a fork has what its agent opened
        os.killpg(run.agent, signal.SIGKILL)
        run.end()
    assert len(found) >= 3, found  # of gloo on the ranks, and of the one store that is ours
    assert {address for address, _ in found} == {LOOPBACK}
    finding(f"{len(found)} sockets on which ranks of one machine listen", f"all on {LOOPBACK}")


def test_an_interface_that_was_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a choice of the user that the default overrides, and a default that is not set."""
    place = {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "elsewhere.invalid", "MASTER_PORT": str(free_port())}
    for key, value in (place | {INTERFACES[0]: "chosen"}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(INTERFACES[1], "")  # so that it is put back
    monkeypatch.delenv(INTERFACES[1])
    store = meet(0, 1, timedelta(seconds=20))
    store.set("key", "value")
    assert os.environ[INTERFACES[0]] == "chosen"
    assert os.environ[INTERFACES[1]].startswith("lo")
    assert (LOOPBACK, int(place["MASTER_PORT"])) in listened_on(os.getpid())
