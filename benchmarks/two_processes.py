"""A training step of `alexnet_2012` at batch 128 shared by two processes, as columns and by its pictures.

Held against one process with as many threads as the two have together. What crosses between them goes over the
machine's own network. A process that computes its part faster than the other waits for it inside an exchange; the
smaller of the two times spent there is what the exchange itself takes.
"""

import multiprocessing as mp
import os
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.harness import OURS, Comparison, Side, alternate
from repro.training.bench import drawn_pictures
from repro.training.loop import Trainer
from repro.training.parallel import MODES, OneProcess, joined
from repro.training.recipe import load_recipe

GOAL = 0.85  # of a step's time is left when its exchange is taken out, at least
RECIPE = "alexnet-2012"
RANKS = 2


def compare(rounds: int) -> list[Comparison]:
    """Seconds of a step in one process and in two, and of a step without its exchange."""
    threads = max(RANKS, torch.get_num_threads())
    one = Team(OneProcess.mode, 1, threads)
    found = []
    for mode in ("columns", "data"):
        team, without = Team(mode, RANKS, threads // RANKS), list[float]()

        def step(team: "Team" = team, without: list[float] = without) -> float:
            seconds, exchanging = team.step()
            without.append(seconds - exchanging)
            return seconds

        sides: dict[str, Side] = {OURS: step, "one process": lambda: one.step()[0]}
        seconds = alternate(f"AlexNet of 2012, {mode}", sides, rounds)
        team.close()
        data = f"batch {load_recipe(RECIPE).batch_size}, {RANKS} × {threads // RANKS} against {threads} threads"
        found.append(Comparison(f"AlexNet of 2012, step by {RANKS} processes: {mode}", data, seconds))
        if mode == "columns":  # the other mode's exchange runs beside its backward pass
            apart = {OURS: seconds[OURS], "the step without it": without[-rounds:]}
            found.append(Comparison("its exchange", data, apart, GOAL))
    one.close()
    return found


class Team:
    """Processes that wait for a word, make one step together, and say how long it took."""

    def __init__(self, mode: str, ranks: int, threads: int) -> None:
        context, port = mp.get_context("spawn"), _free_port()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self.processes.append(
                context.Process(target=work, args=(theirs, mode, rank, ranks, threads, port), daemon=True)
            )
            self.processes[-1].start()

    def step(self) -> tuple[float, float]:
        """Seconds of a step, the slowest rank's, and of its exchange, the rank's that waited least."""
        for pipe in self.pipes:
            pipe.send(True)
        seconds, exchanging = zip(*(pipe.recv() for pipe in self.pipes), strict=True)
        return max(seconds), min(exchanging)

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(False)
            process.join()


def work(pipe: Connection, mode: str, rank: int, ranks: int, threads: int, port: int) -> None:
    """What a process of a team does."""
    place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="localhost")
    torch.set_num_threads(threads)
    recipe = load_recipe(RECIPE, ["augmentation.color_noise=0"])  # drawn pixels have no principal colours
    with joined("cpu") as group:
        parallel = MODES[mode](group)
        trainer = Trainer(recipe, 0, group.device, False, parallel, pictures=drawn_pictures(recipe, group.device))
        trainer.forward.train()
        batch = torch.arange(recipe.batch_size)
        while pipe.recv():
            parallel.wire.trace = []
            start = time.perf_counter()
            trainer.step(batch)
            seconds = time.perf_counter() - start
            exchanged = [e for e in parallel.wire.trace if e.phase != "step"]
            pipe.send((seconds, sum(e.stop - e.start for e in exchanged)))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])
