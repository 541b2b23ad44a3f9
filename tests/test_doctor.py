"""`repro doctor` on machines that lack something."""

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from repro import doctor


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions to pretend; what is not in it is not installed. torchvision asks for `torch==2.9.1`."""
    versions = {"torch": "2.9.1+cpu", "torchvision": "0.24.1+cpu"}

    def version(package: str) -> str:
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy", "torch==2.9.1", "scipy; extra == 'scipy'"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stderr=""))
    return versions


def test_a_pair_that_fits_has_no_problem(installed: dict[str, str]) -> None:
    """Catches a build's suffix (+cpu) taken for another version."""
    assert doctor.pair_problem() is None


def test_a_mismatched_pair_gets_the_exact_command(installed: dict[str, str]) -> None:
    """Catches advice that installs the latest of both, or of the wrong one of them."""
    installed["torch"] = "2.8.0"
    installed["torchvision"] = "0.24.1"
    assert doctor.pair_problem() == (
        "torchvision 0.24.1 needs torch ==2.9.1, but torch 2.8.0 is installed: "
        f'{sys.executable} -m pip install "torch==2.9.1" torchvision==0.24.1'
    )


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_a_missing_package_is_named(missing: str, installed: dict[str, str]) -> None:
    """Catches an ImportError in the very command that is to explain it."""
    del installed[missing]
    expected = f"{missing} is not installed: {sys.executable} -m pip install torch torchvision"
    assert doctor.pair_problem() == expected
    console = Console(record=True, width=40)
    assert doctor.report(console) is False
    assert expected in console.export_text()  # one line, whatever the width: it is to be copied


def test_builds_that_do_not_fit_are_found_by_asking(installed: dict[str, str], monkeypatch) -> None:
    """Catches a CPU-only torch under a torchvision built for CUDA, whose versions fit."""
    error = "Traceback\nRuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=error))
    assert doctor.pair_problem() == (
        "torch 2.9.1+cpu and torchvision 0.24.1+cpu are builds that do not fit (RuntimeError: operator "
        f"torchvision::nms does not exist): {sys.executable} -m pip install --force-reinstall torch torchvision"
    )


def test_the_report_names_versions_devices_and_data(data, cache) -> None:
    """Catches a report that leaves out where data is looked for."""
    (data / "mnist").mkdir()
    console = Console(record=True, width=200)
    assert doctor.report(console) is True
    text = console.export_text()
    for package in ("torch", "torchvision", "numpy", "pillow", "pyarrow"):
        assert f"{package:12} {importlib.metadata.version(package)}" in text
    assert f"REPRO_DATA   {data}" in text
    assert f"cache        {cache}" in text
    assert "mnist          REPRO_DATA" in text
    assert "cifar10        not here; would be downloaded" in text
    assert "cpu          " in text
