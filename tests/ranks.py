"""Run a function in several processes that form a group, as torchrun would start them, and collect what they return.

The processes come from a server that has imported torch once, so that a group of two is up in a second. A function has
to stand in a module that can be imported by name.
"""

import multiprocessing as mp
import os
import pickle
import random
import socket
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from repro.training.parallel import joined

LIMIT_S = 120.0
_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["ranks"])


def in_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """What `function(group, *args)` returns on each rank; raises AssertionError with a rank's own traceback."""
    with tempfile.TemporaryDirectory() as folder:
        # The server's own environment is that of the moment in which it was started.
        place = os.environ | {
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(free_port()),
        }
        shared = (dict(place), timeout_s, Path(folder), function, args)
        processes = [_context.Process(target=_rank, args=(rank, *shared)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT_S)
            process.kill()
        found = {p.stem: pickle.loads(p.read_bytes()) for p in sorted(Path(folder).glob("*.pickle"))}
    for rank, (_, fault) in found.items():
        assert fault is None, f"rank {rank}:\n{fault}"
    assert len(found) == world_size, f"only ranks {list(found)} of {world_size} came to an end within {LIMIT_S} s"
    return [value for value, _ in found.values()]


def free_port() -> int:
    """A port of this machine that nobody listens on, below those that systems lend to connections, any moment."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.socket() as s:
            s.bind(("localhost", port))
            return port


def _rank(
    rank: int, place: dict[str, str], timeout_s: float, folder: Path, function: Callable[..., Any], args: Any
) -> None:
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        with joined("cpu", timeout_s) as group:
            outcome = function(group, *args), None
    except BaseException:
        outcome = None, traceback.format_exc()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
