"""What libraries say of a machine that refuses something, in one line."""

import errno
import os

import pytest

from repro.errors import CheckpointError, ResourceError
from repro.refusals import refusal, refusals_named

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 3.00 GiB is "
    "free.\nIf reserved but unallocated memory is large …"
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory: what was asked for, not to be had on this machine"),
        (MemoryError("Unable to allocate 13.6 TiB for an array"), "memory: 13.6 TiB, not to be had on this machine"),
        (MemoryError("malloc of size 1073741824 failed"), "memory: 1.0 GiB, not to be had on this machine"),
        (
            RuntimeError("you tried to allocate 1048577 bytes. DefaultCPUAllocator: can't allocate memory"),
            "memory: 1.0 M",
        ),
        (
            RuntimeError("std::bad_alloc"),
            r"memory: what was asked for \(std::bad_alloc\), not to be had on this machine",
        ),
        (RuntimeError(CUDA), "memory: 20.0 GiB, not to be had on the GPU, of 79.11 GiB; take"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory: what was asked for"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; free space"),
        (OSError(errno.EMFILE, "Too many open files", b"a\xff"), r"a\udcff: Too many open files; .*`ulimit -n`"),
        (OSError(errno.EIO, "Input/output error", 3), "this process: Input/output error; see that it is there"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), "a path to data: is not UTF-8"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_is_named(error: Exception, message: str) -> None:
    """Catches an amount that is lost, a GPU's memory taken for the machine's, and a crash over the error itself."""
    found = refusal(error)
    assert isinstance(found, ResourceError)
    assert "\n" not in str(found)
    with pytest.raises(ResourceError, match=f"^{message}"), refusals_named():
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 cannot be multiplied"), KeyError("x"), OSError("no number"), CheckpointError("x"),
     BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), UnicodeEncodeError("ascii", "é", 0, 1, "not in range")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    """Catches a fault of ours that is told as one of the machine's."""
    with pytest.raises(type(error)) as found, refusals_named():
        raise error
    assert found.value is error
