"""Two ranks that torchrun starts, all as forks that are up in milliseconds, to be killed, frozen and listened to."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helpers import TINY_TOML
from processes import RUN, TRAIN, Nursery, alive
from ranks import free_port
from tier import amount

from repro.records import read
from repro.training.parallel.group import OWN_STORE

LIMIT_S = 120.0  # for anything
EPOCHS = amount(3, 6)  # of thirteen steps
# The agent of torchrun as a fork, which forks its ranks in turn: nothing is imported again.
AGENTS = """
import os
os.setsid()
os.environ.update({environment})
import torch.distributed.run
second = {agents} == 2 and os.fork()
try:
    torch.distributed.run.main({arguments})
finally:
    if second:
        os.waitpid(second, 0)
raise SystemExit
"""
RANK = """
import os
from pathlib import Path
import torch
from engine_programs import register_columns
from repro.cli import main
register_columns()
torch.set_num_threads(1)
started = Path(f"started-{os.getpid()}")
started.write_text(os.environ["RANK"])
started.rename(f"rank-{os.getpid()}")
try:
    main()
except SystemExit as e:
    Path(f"exit-{os.environ['RANK']}").write_text(str(e.code))
    raise
"""


@dataclass
class Job:
    """A run of two ranks in a folder, and what is known of its processes."""

    nursery: Nursery
    folder: Path
    agent: int = 0
    known: set[int] = field(default_factory=set)

    def start(
        self, *options: str, agents: int = 1, restarts: int = 0, timeout_s: float = 60.0, fault: str = "", **named: str
    ) -> None:
        """Start torchrun: as on one machine, or two agents as on two machines with a rank each.

        The ranks first run the code of `fault`; `named` is environment.
        """
        self.folder.mkdir(exist_ok=True)
        recipe = TINY_TOML.replace('"tiny"', '"tiny_columns"').replace("epochs = 6", f"epochs = {EPOCHS}")
        (self.folder / "tiny.toml").write_text(recipe)
        script = self.folder / "rank.py"
        script.write_text(fault + RANK)
        where = ["--standalone", "--nproc-per-node", "2"]
        if agents == 2:
            where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
            where += ["--rdzv-endpoint", f"localhost:{free_port()}"]
        where += ["--max-restarts", str(restarts), "--start-method", "fork", "--log-dir", str(self.folder / "logs")]
        where += ["--run-path", str(script)]
        arguments = [*where, *TRAIN, "--timeout", str(timeout_s), *options]
        environment = {"OMP_NUM_THREADS": "1", OWN_STORE: "1"} | named
        code = AGENTS.format(environment=environment, agents=agents, arguments=arguments)
        self.agent = self.nursery.start(self.folder, prelude=code)

    def ranks(self) -> list[int]:
        """The process ids of both ranks once they run, other ones than before; they are known from then on."""
        until = time.monotonic() + LIMIT_S
        while True:
            found = {int(p.name[5:]): p.read_text() for p in self.folder.glob("rank-*")}
            new = sorted((rank, pid) for pid, rank in found.items() if pid not in self.known)
            if [rank for rank, _ in new] == ["0", "1"]:
                self.known |= found.keys()
                return [pid for _, pid in new]
            assert alive(self.agent), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.005)

    def exit_codes(self) -> list[int]:
        """Those of ranks 0 and 1 that ended by themselves."""
        return [int(p.read_text()) for p in sorted(self.folder.glob("exit-*"))]

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def told(self) -> list[str]:
        """The lines of the package's errors."""
        return [line for line in self.said().splitlines() if line.startswith("repro: ")]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < until, self.said()
            time.sleep(0.005)

    def end(self) -> int:
        """The agent's exit code; fails if it leaves a rank behind."""
        self.wait_for(lambda: not alive(self.agent))
        code = self.nursery.wait()
        self.known |= {int(p.name[5:]) for p in self.folder.glob("rank-*")}
        self.wait_for(lambda: not any(alive(pid) for pid in self.known))
        return code

    @property
    def restarts(self) -> int:
        return read(self.folder / "runs" / RUN / "record.json").restarts


Jobs = Callable[[str], Job]
