"""The processes that train one net together: who they are, whether they agree, and how long one waits for another.

`torchrun` starts them and tells each its place in environment variables; torch.distributed carries the bytes, NCCL
between GPUs and gloo between CPUs. Without `torchrun` there is a group of one. Chapter 10 teaches it.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from repro.ending import tell
from repro.errors import ReproError, ResourceError
from repro.refusals import refusals_named
from repro.training.device import choose_device
from repro.training.parallel.meeting import meet, store_is_of_agent

CPU = torch.device("cpu")
TELLING, LEAVING = "telling", "leaving"  # in the store: how many ranks would tell an error, and how many have one
TIMEOUT_S = 300.0  # without a word from another rank, before this one gives up
ANSWER_S = 0.5  # for the store to say whether an error is told, and for survivors of a loss to ask
LEAVE_S = 5.0  # for the other ranks to ask whether an error is told, which all of them hear of
# With its default, a restart by torchrun meets the first start's keys in the store that agents and workers share, and
# with gloo some runs never come up again.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class ParallelError(ReproError):
    """The ranks do not fit the mode or each other, or one of them was lost."""

    exit_code = 7


class RankLost(ParallelError):
    """Another rank is gone, or silent for too long."""


@dataclass(frozen=True)
class Group:
    """This process among `world_size`, at `rank` (0 is the first), computing on `device`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    timeout_s: float = TIMEOUT_S

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and the lines of the log."""
        return self.rank == 0

    @property
    def others(self) -> list[int]:
        return [r for r in range(self.world_size) if r != self.rank]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raise ParallelError, on every rank alike, at the first of `facts` that is not the same on all of them."""
        first, *others = self.from_all(dict(facts))
        for rank, found in enumerate(others, 1):
            for key, value in first.items():
                if found[key] != value:
                    raise self.alike(
                        ParallelError(
                            f"rank {rank} has {key} {found[key]}, rank 0 has {value}: all ranks need the same code, "
                            "recipe and options; start every machine with the same command from the same commit"
                        )
                    )

    def alike(self, error: ReproError) -> ReproError:
        """An error that every rank is about to raise, so that the first one tells it alone."""
        error.told = not self.is_first
        return error

    def from_first(self, value: Any) -> Any:
        """What rank 0 passes, on every rank; the others' values are ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def first_decides(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on rank 0, on every rank; an error of this package that it raises there, too."""
        outcome: Any = None
        if self.is_first:
            try:
                outcome = decide()
            except ReproError as e:
                outcome = e
        outcome = self.from_first(outcome)
        if isinstance(outcome, ReproError):
            raise self.alike(outcome)
        return outcome

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """For each wish whether any rank has it: so that all of them stop, or save, after the same step."""
        if self.world_size == 1:
            return wishes
        found = torch.tensor(wishes, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(bool(x) for x in found)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on each of them."""
        values = values.clone()
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def from_all(self, value: Any) -> list[Any]:
        """What each rank passes, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found


@contextmanager
def joined(device: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Group]:
    """The group that `torchrun` started this process for, or a group of one; raises ParallelError if it cannot form.

    On a machine with GPUs each of its ranks takes the one of its own number. An error of this package that comes out of
    the `with` block of several ranks is told by one of them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        yield Group(device=choose_device(device))
        return
    rank, timeout = int(os.environ["RANK"]), timedelta(seconds=timeout_s)
    _check_restarts(rank)
    with _forming(world_size, timeout_s):
        store = meet(rank, world_size, timeout)
    with _last_to_leave(store, world_size, is_host=rank == 0 and not store_is_of_agent()):
        with _told_once(store):
            own = _own_device(device)
            backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
            with _forming(world_size, timeout_s):
                dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        group = Group(rank, world_size, own, timeout_s)
        try:
            with _told_once(store), refusals_named(), loss_of_a_rank_named(group):
                yield group
        finally:
            dist.destroy_process_group()


@contextmanager
def _forming(world_size: int, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ParallelError(
            f"no group of {world_size} processes at {where} within {timeout_s:.0f} s ({_first_line(e)}); "
            "on one machine use `torchrun --standalone`, which takes a free port"
        ) from e


@contextmanager
def loss_of_a_rank_named(group: Group) -> Iterator[None]:
    """Turn what torch.distributed raises when another rank is gone or silent into RankLost, which says so."""
    try:
        yield
    except (dist.DistError, RuntimeError) as e:
        if group.world_size == 1 or not _comes_from_the_wire(e):
            raise
        raise RankLost(
            f"another rank died, or was silent for {group.timeout_s:.0f} s ({_first_line(e)}); its own message, if it "
            "could leave one, says why; start again with --resume"
        ) from e


@contextmanager
def _told_once(store: dist.Store) -> Iterator[None]:
    """Tell an error of this package unless another rank tells one; where the store does not answer, all tell.

    At once: after the group's end the other ranks hear that this one is gone, and torchrun stops whoever is left.
    """
    try:
        yield
    except ReproError as e:
        answers: list[int] = []

        def ask(would_tell: bool = not e.told) -> None:
            with suppress(RuntimeError):  # the store's host is gone
                answers.append(store.add(TELLING, int(would_tell)))
                store.add(LEAVING, 1)

        asking = threading.Thread(target=ask, daemon=True)  # a host that is frozen would keep this rank for ever
        asking.start()
        asking.join(ANSWER_S)
        e.told = e.told or answers > [1]
        tell(e)
        raise


@contextmanager
def _last_to_leave(store: dist.Store, world_size: int, is_host: bool) -> Iterator[None]:
    """After an error the host of the store stays a moment, until the other ranks have asked whether it is told."""
    try:
        yield
    except ReproError as e:
        until = time.monotonic() + (ANSWER_S if isinstance(e, RankLost) else LEAVE_S)
        while is_host and store.add(LEAVING, 0) < world_size and time.monotonic() < until:
            time.sleep(0.01)
        raise


def code_digest() -> str:
    """sha256 over the package's own files, to notice two ranks that run different code."""
    package = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for path in sorted(p for kind in ("*.py", "*.toml") for p in package.rglob(kind)):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def restarted() -> bool:
    """Whether this may be a start after a rank was lost: torchrun has leave to start all of them again.

    It counts restarts for each machine apart, and only those after a loss on that machine: a rank whose own count is 0
    may find a run that has begun.
    """
    return _max_restarts() > 0


def _max_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))


def _check_restarts(rank: int) -> None:
    if _max_restarts() > 0 and os.environ.get(OWN_STORE) != "1":
        error = ParallelError(
            f"torchrun --max-restarts needs {OWN_STORE}=1 in its environment: otherwise some restarts never come up"
        )
        error.told = rank > 0  # all find the same
        raise error


def _own_device(wanted: str | None) -> torch.device:
    device = choose_device(wanted)
    if device.type != "cuda":
        return device
    local, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= found:
        raise ResourceError(
            f"rank {local} of this machine has no GPU, there are {found}: start at most {found} processes "
            "(--nproc-per-node), or give --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _comes_from_the_wire(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or any(w in str(error) for w in ("gloo", "NCCL", "Connection", "Broken"))


def _first_line(error: Exception) -> str:
    """What happened, without the places in gloo's sources and the advice after it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^.*\[/\S+:\d+\] | This is typically caused by .*$", "", line)
