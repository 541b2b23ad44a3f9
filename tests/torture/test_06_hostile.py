"""Row 6, hostile checkpoints: pickles, bombs, lies about sizes, links, pipes and devices."""

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from faults import told
from processes import EACH_STEP, RUN, Nursery, differences, part, train_tiny
from tier import Finding, amount

from repro.training.checkpoint import load_latest
from repro.weights import weights_dir


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


TRAP = "executed"
LARGE = 2**40  # bytes; as a file with nothing in it they take no room on a disk


def forged(run: Path, tensors: bytes, **stated: Any) -> None:
    """The newest checkpoint with other tensors, and a manifest in which every digest fits them."""
    manifest = part(run, "json")
    content = json.loads(manifest.read_bytes())
    content.pop("digest")
    content["tensors"] = {"bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()} | stated
    part(run, "safetensors").unlink()
    sha256 = str(content["tensors"]["sha256"])
    if "/" not in sha256:
        manifest.with_name(f"{manifest.stem}-{sha256[:12]}.safetensors").write_bytes(tensors)
    sealed(manifest, content)


def sealed(manifest: Path, content: Any) -> None:
    """Write a manifest with its digest, as a checkpoint's is."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(content | {"digest": digest}, indent=1))


def headed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of tensors with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def zipped(path: Path, content: bytes) -> bytes:
    """A zip file with a lot of nothing in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", content)
    return path.read_bytes()


def in_place(path: Path, make: Callable[[Path], Any]) -> None:
    """Something else in the place of a file."""
    path.unlink(missing_ok=True)
    make(path)


def bind(path: Path) -> None:
    """A socket, whose name may not be long."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def sparse(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    with path.open("wb") as f:
        f.truncate(LARGE)


def torch_file(run: Path) -> bytes:
    """What torch.save makes of a trap."""
    torch.save(Trap(run / TRAP), run / "made")
    data = (run / "made").read_bytes()
    (run / "made").unlink()
    return data


def strewn(run: Path) -> None:
    """Pickles under the names that other trainers' checkpoints have, and the newest manifest cut short."""
    for name in ("step-000000099.pt", "checkpoint.pt", "optimizer.pth", "model.bin", "data.pkl", "step-notes.json"):
        (run / name).write_bytes(pickle.dumps(Trap(run / TRAP)))
    part(run, "json").write_bytes(part(run, "json").read_bytes()[:-1])


def empty_tensors(count: int) -> bytes:
    """A header that names many tensors without an element."""
    return headed({f"model/{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})


FORM = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
# What is done to the newest of two checkpoints, after which the one before it has to be used.
HOSTILE: dict[str, Callable[[Path], Any]] = {
    "pickle as manifest": lambda r: part(r, "json").write_bytes(pickle.dumps(Trap(r / TRAP))),
    "pickle as tensors, digests and all": lambda r: forged(r, pickle.dumps(Trap(r / TRAP))),
    "torch.save as tensors": lambda r: forged(r, torch_file(r)),
    "pickles under other names": strewn,
    "zip bomb as tensors": lambda r: forged(r, zipped(r / "z", bytes(2**26))),
    "gzip bomb as manifest": lambda r: part(r, "json").write_bytes(gzip.compress(bytes(2**28))),
    "deep nesting": lambda r: part(r, "json").write_bytes(b"[" * 1_000_000),
    "deep nesting of objects": lambda r: part(r, "json").write_bytes(b'{"state":' * 500_000),
    "no tensors": lambda r: part(r, "safetensors").unlink(),
    "many empty lists": lambda r: part(r, "json").write_bytes(b"[" + b"[]," * 2_700_000 + b"[]]"),
    "a number of a million digits": lambda r: part(r, "json").write_bytes(b"9" * 1_000_000),
    "a terabyte of manifest": lambda r: in_place(part(r, "json"), sparse),
    "a terabyte of tensors": lambda r: in_place(part(r, "safetensors"), sparse),
    "a terabyte of tensors, stated": lambda r: (forged(r, b"x", bytes=LARGE), sparse(max(r.glob("*.safetensors")))),
    "a header of 2^63 bytes": lambda r: forged(r, headed({}, length=2**63 - 1)),
    "a header of 90 MB": lambda r: forged(r, headed({}, length=90_000_000)),
    "a header of deep nesting": lambda r: forged(r, headed(b"[" * 50_000)),
    "a shape of 2^120": lambda r: forged(r, headed({"a": FORM | {"shape": [2**60, 2**60]}}, bytes(4))),
    "a shape below 0": lambda r: forged(r, headed({"a": FORM | {"shape": [-1]}}, bytes(4))),
    "offsets outside the file": lambda r: forged(r, headed({"a": FORM | {"data_offsets": [0, 2**40]}}, bytes(4))),
    "tensors that overlap": lambda r: forged(r, headed({"a": FORM, "b": FORM}, bytes(4))),
    "an unknown type": lambda r: forged(r, headed({"a": FORM | {"dtype": "__import__"}}, bytes(4))),
    "a hundred thousand tensors": lambda r: forged(r, empty_tensors(100_000)),
    "a digest that leads elsewhere": lambda r: forged(r, b"", sha256="/../../../../../etc/passwd"),
    "a size below 0": lambda r: forged(r, b"", bytes=-1),
    "a link to /etc/passwd": lambda r: in_place(part(r, "json"), lambda p: p.symlink_to("/etc/passwd")),
    "a link to /etc/passwd as tensors": lambda r: in_place(
        part(r, "safetensors"), lambda p: p.symlink_to("/etc/passwd")
    ),
    "a link to /dev/zero": lambda r: in_place(part(r, "json"), lambda p: p.symlink_to("/dev/zero")),
    "a link to /dev/zero as tensors": lambda r: in_place(part(r, "safetensors"), lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": lambda r: in_place(part(r, "json"), lambda p: p.symlink_to(p.name)),
    "a pipe": lambda r: in_place(part(r, "json"), os.mkfifo),
    "a pipe as tensors": lambda r: in_place(part(r, "safetensors"), os.mkfifo),
    "a pipe as record": lambda r: in_place(part(r, "record"), os.mkfifo),
    "a pipe as note of the lock": lambda r: in_place(r / ".holder", os.mkfifo),
    "a socket": lambda r: in_place(part(r, "json"), bind),
}
FAST = (
    "pickle as tensors, digests and all",
    "deep nesting",
    "many empty lists",
    "a terabyte of tensors, stated",
    "a pipe",
)
# Reports how much memory the reading took, at its most; and nothing may take longer than a minute.
WATCHED = """
import re, signal
from repro.training import checkpoint
signal.alarm(60)
read = checkpoint.load_latest
def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
def watched(*arguments):
    open("/proc/self/clear_refs", "w").write("5")  # the highest so far is forgotten
    before = resident("VmRSS")
    try:
        return read(*arguments)
    finally:
        open("taken", "w").write(str(resident("VmHWM") - before))
checkpoint.load_latest = watched
"""


# What stands in the way of the next save, too: nothing of it is removed.
IN_THE_WAY: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda r: in_place(part(r, "json"), os.mkdir),
    "a folder as record": lambda r: in_place(part(r, "record"), os.mkdir),
    "a lock that is a link": lambda r: in_place(r / ".lock", lambda p: p.symlink_to("step-mine.txt")),
}


def hostile(folder: Path, stopped: Path, act: Callable[[Path], Any]) -> Path:
    """A stopped run and what was done to it, with a file of somebody's in its folder."""
    shutil.copytree(stopped, folder)
    (folder / "runs" / RUN / "step-mine.txt").write_text("my notes")
    (folder / "taken").write_text("0")
    act(folder / "runs" / RUN)
    return folder / "runs" / RUN


def test_hostile(tmp_path: Path, stopped: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches torch.load as a second attempt, memory by what a file says of itself, a wait for a pipe, a device that is
    read, a path out of the folder, a stack trace from the depths of a parser, and somebody else's file removed.
    """
    most, names = 0, amount(FAST, tuple(HOSTILE))
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        run = hostile(folder, stopped, HOSTILE[name])
        train_tiny(nursery, folder, "--resume", prelude=WATCHED)
        code, error = nursery.wait(), (folder / "stderr").read_text()
        assert code == 0, f"{name}: {error}"
        assert re.search("; using step-0+18 instead$|; it is written anew$", error, re.MULTILINE) or name.endswith(
            "lock"
        )
        assert "root:" not in error
        assert differences(folder, undisturbed) == [], name
        assert not (run / TRAP).exists()
        assert (run / "step-mine.txt").read_text() == "my notes"
        if name.startswith("pickles"):
            assert len([p for p in run.iterdir() if p.suffix in (".pt", ".pth", ".bin", ".pkl")]) == 5
        most = max(most, int((folder / "taken").read_text()))
    for name, act in IN_THE_WAY.items():
        folder = tmp_path / name
        run = hostile(folder, stopped, act)
        train_tiny(nursery, folder, "--resume", *EACH_STEP, prelude=WATCHED)
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        assert "Traceback" not in (folder / "stderr").read_text()
        assert load_latest(run)
        assert (run / "step-mine.txt").read_text() == "my notes"
    assert most < 300_000
    finding(
        f"{len(names)} hostile files in the place of the newest checkpoint or the record, some of a terabyte; "
        f"{len(IN_THE_WAY)} that no save gets past",
        f"no code ran, nothing waited, {most / 1024:.0f} MiB taken at most; the one before used {len(names)} times, 0 "
        f"differences; {len(IN_THE_WAY)} ended with a line",
    )


WEIGHTS = "lenet5-modern"


def with_weights(folder: Path, tensors: bytes = b"", **stated: Any) -> None:
    """A file of weights with a manifest in which every digest fits it."""
    (folder / f"{WEIGHTS}.safetensors").write_bytes(tensors)
    manifest = folder / f"{WEIGHTS}.json"
    fitting = {"bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | fitting | stated))


def changed(folder: Path, **stated: Any) -> None:
    """The same weights under a manifest that says something else of them."""
    with_weights(folder, (folder / f"{WEIGHTS}.safetensors").read_bytes(), **stated)


OF_WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "a pickle": lambda f: with_weights(f, pickle.dumps(Trap(f / TRAP))),
    "a header of 2^63 bytes": lambda f: with_weights(f, headed({}, length=2**63 - 1)),
    "a shape of 2^120": lambda f: with_weights(f, headed({"a": FORM | {"shape": [2**60, 2**60]}}, bytes(4))),
    "no tensor": lambda f: with_weights(f, headed({})),
    "a pipe": lambda f: in_place(f / f"{WEIGHTS}.safetensors", os.mkfifo),
    "a pipe as manifest": lambda f: in_place(f / f"{WEIGHTS}.json", os.mkfifo),
    "a device": lambda f: in_place(f / f"{WEIGHTS}.safetensors", lambda p: p.symlink_to("/dev/zero")),
    "a terabyte": lambda f: in_place(f / f"{WEIGHTS}.safetensors", sparse),
    "deep nesting": lambda f: (f / f"{WEIGHTS}.json").write_bytes(b"[" * 1_000_000),
    "another net": lambda f: changed(f, model="alexnet_2012"),
    "no such net": lambda f: changed(f, model="__import__"),
    "an unknown option": lambda f: changed(f, model_options={"self": 1}),
    "a net of 2^60 classes": lambda f: changed(f, model_options={"num_classes": 2**60}),
    "a side below 0": lambda f: changed(f, crop=-28, head="linear"),
    "no layers": lambda f: changed(f, layers=0),
    "an unknown field": lambda f: changed(f, code="import os"),
}
LOOKED_INTO = """
import signal
from pathlib import Path
from repro import weights
from repro.ending import told
signal.alarm(60)
told(lambda: weights.load("lenet5-modern", folder=Path("weights")))
raise SystemExit(0)
"""


def test_hostile_weights(tmp_path: Path, nursery: Nursery, finding: Finding) -> None:
    """Catches the same in the weights that notebooks load, and a net of somebody else's choice."""
    for name, act in OF_WEIGHTS.items():
        folder = tmp_path / name
        (folder / "weights").mkdir(parents=True)
        for kind in ("json", "safetensors"):
            shutil.copy(weights_dir() / f"{WEIGHTS}.{kind}", folder / "weights")
        act(folder / "weights")
        nursery.start(folder, prelude=LOOKED_INTO)
        assert nursery.wait() == 4, f"{name}: {(folder / 'stderr').read_text()}"
        assert told(folder)
        assert not (folder / "weights" / TRAP).exists()
    finding(f"{len(OF_WEIGHTS)} hostile files of weights", "no code ran, nothing waited; each refused with a line")
