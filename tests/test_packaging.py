"""pyproject.toml, requirements.txt and environment.yml describe one environment."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from book._tools import licences

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PINS = [Requirement(line) for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line]
PYTHONS = ("3.11", "3.12", "3.13")
DIRECT = [
    Requirement(text)
    for text in [*PROJECT["dependencies"], *(r for group in PROJECT["optional-dependencies"].values() for r in group)]
]


def pinned(name: str, python: str) -> list[Version]:
    """The versions that requirements.txt pins for a package on Linux under one Python."""
    where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    pins = [pin for pin in PINS if pin.name.lower() == name.lower() and (not pin.marker or pin.marker.evaluate(where))]
    return [Version(next(iter(pin.specifier)).version) for pin in pins]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_inside_its_bound(requirement: Requirement, python: str) -> None:
    """Catches a dependency added without `make lock`, two pins for one Python, and a bound raised past its pin."""
    versions = pinned(requirement.name, python)
    assert len(versions) == 1, f"{requirement.name} on Python {python}: {versions}; make lock"
    assert versions[0] in requirement.specifier


def test_every_pin_is_exact() -> None:
    """Catches a range among the pins, with which two clones would get two environments."""
    for pin in PINS:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


def test_pins_name_no_server() -> None:
    """Catches a pin that is tied to one registry or file server."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--" not in text


def test_the_lock_has_the_same_pins_and_their_hashes() -> None:
    """Catches a pin that was changed in one file alone, one without a hash, and an installation that asks for none."""
    entries = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    locked = [entry.partition(" --hash=") for entry in entries if entry.strip()]
    own = [Requirement(pin.strip()) for pin, _, _ in locked]
    assert [(pin.name, pin.specifier) for pin in own] == [(pin.name, pin.specifier) for pin in PINS]
    assert all(
        re.fullmatch(r"sha256:[0-9a-f]{64}(\s+--hash=sha256:[0-9a-f]{64})*", rest.strip()) for *_, rest in locked
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes --only-binary :all: -r requirements.lock" in makefile


def test_every_licence_is_listed() -> None:
    """Catches a dependency that came without its licence, and one that left and is still listed."""
    text = (ROOT / "book" / "licences.md").read_text(encoding="utf-8")
    listed = dict(licences.ROW.findall(text))
    listed.pop("package")
    assert sorted(listed) == sorted({pin.name.lower() for pin in PINS})
    assert "UNKNOWN" not in listed.values()
    assert listed["numpy"].startswith("BSD-3-Clause")
    # A copyleft licence may stand beside others, for some files or as a choice, but not alone.
    assert not [name for name, words in listed.items() if re.search(r"GPL|GNU General", words) and ";" not in words]


def test_package_asks_for_lower_bounds_only() -> None:
    """Catches an upper bound that would keep the package from running with a reader's torch."""
    bounds = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    assert {specifier.operator for bound in bounds.values() for specifier in bound} == {">="}
    assert bounds["torch"] == SpecifierSet(">=2.11")
    assert bounds["torchvision"] == SpecifierSet(">=0.26")
    assert PROJECT["requires-python"] == ">=3.11"


def test_conda_environment_installs_the_same_pins_and_the_package() -> None:
    """Catches an environment.yml with pins of its own, without the package, or for another Python."""
    *conda, last = ENVIRONMENT["dependencies"]
    assert last["pip"] == ["-r requirements.txt", "-e ."]
    python, pip = conda
    assert pip == "pip"
    allowed = Requirement(python).specifier
    assert all(Version(version) in allowed for version in PYTHONS)
    assert Version("3.10") not in allowed
    assert ENVIRONMENT["name"] == PROJECT["name"]


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "LICENSE-text"])
def test_promised_files_are_there(name: str) -> None:
    """Catches a licence or read-me that the package's metadata names and the repository lacks."""
    assert (ROOT / name).stat().st_size > 200
    assert name in [PROJECT["readme"], *PROJECT["license-files"]]


def test_licences_say_what_they_should() -> None:
    """Catches the two licences mixed up."""
    assert PROJECT["license"] == "BSD-3-Clause"
    assert "Redistribution and use in source and binary forms" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Creative Commons Attribution 4.0" in (ROOT / "LICENSE-text").read_text(encoding="utf-8")
