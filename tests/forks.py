"""Work in a child of this process, with little memory to take."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_a_fork(work: Callable[[], Any], room: int) -> tuple[Any, int]:
    """What `work` returns, through JSON, where no more than `room` bytes of memory can be had; how many were taken."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + room, in_use + room))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = work()
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            os.write(send, json.dumps([result, taken]).encode())
        except BaseException as e:
            os.write(2, repr(e).encode())
            os._exit(1)
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    result, taken = json.loads(told)
    return result, taken
