"""The licences of everything that `make` installs, as a page of the book.

    python -m book._tools.licences

Reads the metadata of the installed packages, and what other systems need from the page as it was; `make lock`
calls it. The words are the packages' own; of a licence that is quoted in full the first line.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

from book._tools.notebooks import ROOT

PAGE = ROOT / "book" / "licences.md"
ROW = re.compile(r"^\| ([\w.-]+) \| (.+) \|$", re.MULTILINE)
# What the metadata leaves out or another system's package cannot be asked for, from the packages' own licence files.
SAID_ELSEWHERE = {
    "appnope": "BSD-2-Clause",
    "axe-playwright-python": "MIT",
    "colorama": "BSD-3-Clause",
    "cuda-toolkit": "NVIDIA Proprietary Software",
    "pywinpty": "MIT",
}
HEAD = """(licences)=
# Licences

The book's code stands under BSD-3-Clause, its text and figures under CC BY 4.0.
This is what `make` installs beside it, with the licence that each package states; the page is written by `make lock`.

| package | licence |
|---|---|
"""


def pins() -> list[str]:
    """The names of all pinned packages, for every system, in order."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return sorted({Requirement(line).name.lower() for line in lines if line})


def licence(name: str) -> str | None:
    """What a package says of its licence; None where it is not installed, `UNKNOWN` where it says nothing."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    stated = about.get("License-Expression") or ""
    classified = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    if not stated and classified:
        stated = "; ".join(dict.fromkeys(classified))
    if not stated:
        stated = next(iter((about.get("License") or "").strip().splitlines()), "")
    return stated.replace("|", "/") or "UNKNOWN"


def page() -> str:
    """The page: a row for each pin."""
    before = dict(ROW.findall(PAGE.read_text(encoding="utf-8"))) if PAGE.exists() else {}
    found = {name: SAID_ELSEWHERE.get(name) or licence(name) or before.get(name, "UNKNOWN") for name in pins()}
    return HEAD + "".join(f"| {name} | {words} |\n" for name, words in found.items())


def main() -> int:
    """Write the page; the exit status is 1 where a licence is not known, which is said."""
    PAGE.write_text(page(), encoding="utf-8")
    unknown = [name for name, words in ROW.findall(page()) if words == "UNKNOWN"]
    for name in unknown:
        print(f"{name}: states no licence; look it up and enter it in {PAGE.name}", file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
