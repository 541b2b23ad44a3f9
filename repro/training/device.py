"""Where a run computes and in which precision."""

import ctypes
import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repro.errors import ResourceError

# Below this many multiply-adds per picture, casting costs a CPU more than bfloat16 products save. Measured with
# AVX512-BF16 and the plan of `alexnet_cifar10` at smaller widths: a step in float32 takes 0.96 times as long as one in
# bfloat16 at 0.8 million, 1.5 times at 3 million, 1.9 times at 12 million and 2.0 times at 46 million.
BF16_PAYS = 2_000_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
REGISTER_FLOATS = 16  # of a 512-bit vector register


def choose_device(wanted: str | None = None) -> torch.device:
    """The device of that name, or CUDA when there is one, else the CPU; raises ResourceError when it is not there."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ResourceError(
            f"device '{wanted}' is not there ({str(e).splitlines()[0]}); `repro doctor` lists what is"
        ) from e
    return device


def choose_precision(wanted: str, device: torch.device, multiply_adds: int) -> str:
    """`float32` or `bf16`: `auto` takes bf16 where the device computes it fast and the net is large enough to gain."""
    if wanted != "auto":
        return wanted
    fast = device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16())
    return "bf16" if fast and multiply_adds >= BF16_PAYS else "float32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16); torch 2.11 can be asked only in private."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs in this precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def describe(device: torch.device) -> dict[str, Any]:
    """What a record says of the machine: device, its name, threads, and settings that change speed or bits."""
    cuda = device.type == "cuda"
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "world_size": 1,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE"),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_freed_memory(mmap_threshold: int = 2**30, trim_threshold: int = 2**31 - 1) -> None:
    """Tell glibc to keep for the next tensor what a tensor frees; elsewhere nothing happens.

    By default a large tensor's memory goes back to the system at once, and the next one of its size is cleared and
    mapped again page by page, at every step. The process then stays as large as it once was. Both thresholds are in
    bytes; pieces above the first are mapped on their own, above the second given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)


def channels_last(model: nn.Module) -> nn.Module:
    """The model with its convolution weights laid out channels-last, as its inputs are.

    Narrow ones (LeNet's) stay as they are: the layout lets a vector register hold many channels of one pixel, and
    theirs do not fill it.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels > REGISTER_FLOATS:
            layer.to(memory_format=torch.channels_last)
    return model
