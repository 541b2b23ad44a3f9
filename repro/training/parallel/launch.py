"""Several processes from inside another program, a notebook say: torchrun as a module, and its errors raised."""

import os
import subprocess
import sys
from collections.abc import Sequence

from repro.training.parallel.group import ParallelError


def launch(world_size: int, arguments: Sequence[str], timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run `repro ARGUMENTS` in `world_size` processes of this machine, each with one thread, on a free port.

    Returns what they printed; raises ParallelError with the end of it when a process failed, or after `timeout_s`.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "-m", "repro"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            [sys.executable, "-m", *torchrun, *arguments],
            env=one_thread,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as e:
        said = [line for line in e.stderr.splitlines() if line.startswith("repro: ")] or e.stderr.splitlines()[-5:]
        raise ParallelError("\n".join(dict.fromkeys(said))) from e
    except subprocess.TimeoutExpired as e:
        raise ParallelError(f"{world_size} processes did not end within {timeout_s:.0f} s") from e
