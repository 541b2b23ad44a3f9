"""What the machine refuses, memory, room on a disk, a file, in the words of this package.

Libraries say it each in their own way, numpy by MemoryError, PyTorch by RuntimeError, the system by OSError; a command
ends with one line whichever it was.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from repro.errors import ReproError, ResourceError

# How libraries say that there is no memory, where they do not raise MemoryError.
_NO_MEMORY = re.compile(
    r"out of memory|[Cc]an(?:'t|not) allocate memory|not enough memory|bad_alloc|_ALLOC_FAILED|array is too big"
    r"|Maximum allowed dimension exceeded|Storage size calculation overflowed|Overflow when unpacking long"
    r"|could not create a (?:primitive|memory)"  # of oneDNN, whatever it lacks
)
_AMOUNT = re.compile(r"(?P<count>[\d.]+) ?(?P<unit>bytes|[KMGTPE]iB)|of size (?P<bytes>\d+)")
_SURROGATES = re.compile("[\ud800-\udfff]")  # what Python makes of a byte in a path that is not UTF-8
_NOT_UTF8 = "error unpacking string as utf-8"  # the same in PyTorch
_ADVICE = {
    errno.ENOSPC: "free space, or name a place with more",
    errno.EDQUOT: "free space, or ask for a larger quota",
    errno.EFBIG: "raise the limit for the size of files (`ulimit -f`)",
    errno.EMFILE: "raise the limit for open files (`ulimit -n`)",
    errno.ENFILE: "close other programs: the whole machine has too many files open",
    errno.ENAMETOOLONG: "give it a shorter name",
}


@contextmanager
def refusals_named() -> Iterator[None]:
    """Turn what a library raises when the machine refuses something into ResourceError."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ReproError) or (named := refusal(e)) is None:
            raise
        raise named from e


def refusal(error: Exception) -> ResourceError | None:
    """What the machine refused, with what was asked for; None for every other error."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        error = MemoryError(str(error))
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):  # a reader that has enough is no fault
        name = error.filename if isinstance(error.filename, str | bytes) else "this process"
        advice = _ADVICE.get(error.errno, "see that it is there and may be used; --debug shows where it was needed")
        return ResourceError(f"{os.fsdecode(name)}: {error.strerror}; {advice}")
    if (isinstance(error, UnicodeEncodeError) and _SURROGATES.search(error.object)) or _NOT_UTF8 in str(error):
        return ResourceError(
            "a path to data: is not UTF-8, and the libraries that read data take no other; give another name to what "
            "REPRO_DATA and REPRO_CACHE say"
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return ResourceError(_out_of_memory((str(error).splitlines() or [""])[0]))
    return None


def _out_of_memory(said: str) -> str:
    asked = f"what was asked for ({said})" if said else "what was asked for"
    if found := _AMOUNT.search(said):
        asked = _in_words(float((found["count"] or found["bytes"]).rstrip(".")), found["unit"] or "bytes")
    where = "on this machine"
    if "CUDA" in said or "CUBLAS" in said:
        has = said.partition("total capacity of ")[2].partition(" of which")[0]
        where = f"on the GPU, of {has}" if has else "on the GPU"
    elif hasattr(os, "sysconf"):
        where += f", of {_in_words(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'), 'bytes')}"
    return (
        f"memory: {asked}, not to be had {where}; take a smaller net, or smaller or fewer pictures at a time "
        "(data.size, data.border, batch_size, --accumulate)"
    )


def _in_words(count: float, unit: str) -> str:
    """13.6 TiB for 14953588588544 bytes."""
    if unit != "bytes":
        return f"{count:,.1f} {unit}"
    power = min(max(int(count).bit_length() - 1, 20) // 10, 6)
    return f"{count / 2 ** (10 * power):,.1f} {'KMGTPE'[power - 1]}iB"
