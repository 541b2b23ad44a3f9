"""Faults of a machine: small disks, things that happen in the middle of a run, and the line that a command leaves."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# `before("package.module:Class.function", act)` calls `act` with the arguments, each time, before the function;
# `at(20, act)` calls it between the 20th step of the tiny run and the look whether to save.
PATCH = """
import fcntl, importlib, os, resource, shutil
def before(name, act):
    module, _, path = name.partition(":")
    holder = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    function = getattr(holder, last)
    def call(*arguments, **named):
        act(*arguments)
        return function(*arguments, **named)
    setattr(holder, last, call)
def at(step, act):
    def look(keeper, stop):
        place = keeper.trainer.place
        if place.epoch * 13 + place.step == step:
            act()
    before("repro.training.keeper:Keeper.after_step", look)
"""
# The superuser may write anywhere, as long as it has its capabilities.
NO_PRIVILEGE = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""
# The superuser needs a mount namespace, anybody else one of users too, where the system lets them.
WAYS = (["--mount"], ["--mount", "--user", "--map-root-user"])
MOUNT = 'mount -t tmpfs -o "$0" tmpfs "$1" && echo there && exec cat'
ENTER = """
import ctypes, os
here, system = os.getcwd(), ctypes.CDLL(None)
for kind in {kinds}:
    assert system.setns(os.open(f"/proc/{pid}/ns/{{kind}}", os.O_RDONLY), 0) == 0
os.chdir(here)
"""


@dataclass
class Mount:
    """A file system that a process sees after the code of `enter`."""

    holder: int
    enter: str

    def seen(self, path: Path) -> Path:
        """The path by which a process outside gets at it."""
        return Path(f"/proc/{self.holder}/root") / path.relative_to("/")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Mount | None]:
    """A tmpfs over a folder; None where this machine lets nobody mount."""
    for way in WAYS:
        try:
            holder = subprocess.Popen(
                ["unshare", *way, "sh", "-c", MOUNT, options, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except FileNotFoundError:
            break
        with holder:  # closing its input ends it
            assert holder.stdout
            if holder.stdout.readline():
                kinds = ["user", "mnt"] if "--user" in way else ["mnt"]
                yield Mount(holder.pid, ENTER.format(kinds=kinds, pid=holder.pid))
                return
    yield None


def told(folder: Path, begun: bool = False) -> str:
    """The one line of a command that failed, without its prefix: the last on stderr, and the only one of its kind.

    Unless it has `begun`, no epoch may be finished.
    """
    error = (folder / "stderr").read_text(errors="surrogateescape")
    lines = [line for line in error.splitlines() if line.startswith("repro: ")]
    assert lines == error.splitlines()[-1:], error
    assert begun or not re.search(r"^epoch ", error, re.MULTILINE)
    return lines[0].removeprefix("repro: ")
