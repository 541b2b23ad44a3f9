"""Where the processes of a run meet, and which addresses they listen on.

Whoever reaches an open port of a run could write into it, so that processes of one machine listen on 127.0.0.1 alone.
The agent of `torchrun` is not ours: its own store listens on every address while the run lasts.
"""

import os
import socket
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = "127.0.0.1"
# What gloo and NCCL read: a network interface by its name. Whoever sets one has chosen.
INTERFACES = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def meet(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store through which the ranks find each other, as `torchrun` and its like describe it in the environment.

    Raises OSError or RuntimeError when there is none within the timeout.
    """
    if not _on_one_machine(world_size):
        return _as_described(timeout)
    for name in INTERFACES:
        os.environ.setdefault(name, _loopback_interface())
    if store_is_of_agent():
        return _as_described(timeout)
    port = int(os.environ["MASTER_PORT"])
    # PyTorch would listen on every address.
    listening = socket.create_server((LOOPBACK, port)).detach() if rank == 0 else None
    return dist.TCPStore(LOOPBACK, port, world_size, rank == 0, timeout, master_listen_fd=listening)


def store_is_of_agent() -> bool:
    """Whether the agent of `torchrun` lends its store; otherwise rank 0 is the host of one."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _as_described(timeout: timedelta) -> dist.Store:
    store: dist.Store = next(dist.rendezvous("env://", timeout=timeout))[0]
    return store


def _on_one_machine(world_size: int) -> bool:
    here = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    return here or os.environ.get("MASTER_ADDR") in ("localhost", LOOPBACK, "::1")


def _loopback_interface() -> str:
    """`lo` on Linux, `lo0` on a Mac."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
