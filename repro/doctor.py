"""`repro doctor`: what is installed, what it runs on, what data there is, and how to mend what does not fit."""

import importlib.metadata
import os
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console


def pair_problem() -> str | None:
    """What is wrong with the installed torch and torchvision, and the command that mends it; None when they fit."""
    found = {p: _version(p) for p in ("torch", "torchvision")}
    pip = f"{sys.executable} -m pip install"
    for package, version in found.items():
        if version is None:
            return f"{package} is not installed: {pip} torch torchvision"
    wanted = _torch_wanted_by_torchvision()
    if not wanted.contains(found["torch"] or "", prereleases=True):
        return (
            f"torchvision {found['torchvision']} needs torch {wanted}, but torch {found['torch']} is installed: "
            f'{pip} "torch{wanted}" torchvision=={found["torchvision"]}'
        )
    asked = subprocess.run([sys.executable, "-c", "import torchvision.ops"], capture_output=True, text=True)
    if asked.returncode == 0:
        return None
    # Versions that fit, but builds that do not: a CPU-only torch, say, under a torchvision built for CUDA.
    reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
    return (
        f"torch {found['torch']} and torchvision {found['torchvision']} are builds that do not fit ({reason}): "
        f"{pip} --force-reinstall torch torchvision"
    )


def _torch_wanted_by_torchvision() -> SpecifierSet:
    """The versions of torch that the installed torchvision asks for, from its metadata."""
    needs = [Requirement(r) for r in importlib.metadata.requires("torchvision") or []]
    return next((r.specifier for r in needs if r.name == "torch"), SpecifierSet())


def report(console: Console) -> bool:
    """Print the report; True when everything fits."""
    problem = pair_problem()
    console.print(f"python       {sys.version.split()[0]}")
    for package in ("torch", "torchvision", "numpy", "pillow", "pyarrow"):
        console.print(f"{package:12} {_version(package) or 'missing'}")
    if problem:
        console.print(f"\n{problem}", style="red", soft_wrap=True)
        return False
    _report_devices(console)
    _report_data(console)
    return True


def _report_devices(console: Console) -> None:
    import torch

    from repro.training.device import cpu_has_bf16, cpu_name

    bf16 = "fast" if cpu_has_bf16() else "slow"
    console.print(f"\ncpu          {cpu_name()}, {torch.get_num_threads()} threads, bfloat16 {bf16}")
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        console.print(f"cuda:{i}       {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        console.print("cuda         none")


def _report_data(console: Console) -> None:
    from repro.data.cache import cache_dir
    from repro.data.sources import list_sets, where

    console.print(f"\ncache        {cache_dir()}", soft_wrap=True)
    console.print(f"REPRO_DATA   {os.environ.get('REPRO_DATA') or 'not set'}", soft_wrap=True)
    for name in list_sets():
        console.print(f"{name:14} {where(name)}", soft_wrap=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
