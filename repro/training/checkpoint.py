"""What a run needs to go on exactly, on disk in a way that a crash at any moment leaves intact.

A checkpoint is two files: a manifest (`step-000000469.json`) that holds the tensors' size and sha256 and the rest of
the state, and the tensors (`step-000000469-SHA256.safetensors`, by the first digits of theirs, so that saving a step
again leaves alone what the old manifest speaks of). The tensors are written, synced and renamed first, the manifest
after them: without its manifest a checkpoint does not exist. Loading verifies the digests (neither `torch.load` nor
safetensors notices a flipped bit) and never runs code: state is tensors and JSON.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from repro.errors import CheckpointError, ResourceError
from repro.files import MOST_TEXT, digest, read_regular, write_atomic
from repro.tensors import read_tensors

KEPT = 2  # committed checkpoints that stay
TEXT = 2**16  # bytes beside the tensors' own: their names, the manifest and the record, of a run of ordinary length
_OURS = re.compile(r"(step-\d{9})(?:\.json|-[0-9a-f]{12}\.safetensors)")
_HALF = re.compile(r"\.(?:step-\d{9}.*|record\.json|\.holder)\.\d+\.half")  # left by a run that was killed as it wrote

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _Tensors(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    step: Count
    tensors: _Tensors
    state: dict[str, Any]


Fits = Callable[[dict[str, Any]], None]
"""Raises CheckpointError where a checkpoint's state is not that of the run which would go on from it."""


def save(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint at `step` and prune all but the last two; raises ResourceError when the disk refuses."""
    manifest = manifest_of(folder, step)
    data = tensors_to_bytes({k: t.detach().cpu().contiguous() for k, t in checkpoint.tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    content = {"step": step, "tensors": {"bytes": len(data), "sha256": sha256}, "state": checkpoint.state}
    tensors, text = _tensors_of(manifest, sha256), json.dumps(content | {"digest": digest(content)}, indent=1).encode()
    if len(text) > MOST_TEXT:  # it could not be read again
        raise ResourceError(
            f"{manifest}: {len(text):,} bytes of state, {MOST_TEXT:,} at most; train fewer epochs at once"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(tensors, data)
        write_atomic(manifest, text)
        _prune(manifest, tensors)
    except OSError as e:
        before = next((m.stem for m in _manifests(folder) if m < manifest), None)
        raise ResourceError(
            f"{manifest}: the checkpoint cannot be written, {len(data) + len(text):,} bytes needed "
            f"({e.strerror or e}); {f'{before} stays' if before else 'there is none before it'}; free space and resume"
        ) from e


def size_of_all(folder: Path) -> int:
    """The bytes that a run's checkpoints take now."""
    return sum(path.lstat().st_size for path in _files(folder))


def is_any(folder: Path) -> bool:
    """Whether a run was here and left a checkpoint, whole or not."""
    return bool(_manifests(folder))


def load_latest(folder: Path, fits: Fits | None = None, most: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when there is none at all.

    A damaged one is named on stderr and the one before it taken; raises CheckpointError when all are damaged. `fits`
    is asked about a whole manifest's state before its tensors are read, which may be of `most` bytes.
    """
    faults = []
    for manifest in _manifests(folder):
        try:
            read = _read(manifest)
        except CheckpointError as e:
            faults.append(e)
            continue
        if fits:
            fits(read.state)
        try:
            found = _with_tensors(manifest, read, most)
        except CheckpointError as e:
            faults.append(e)
            continue
        for fault in faults:
            print(f"repro: {fault}; using {manifest.stem} instead", file=sys.stderr)
        return found
    if faults:
        raise CheckpointError(f"{faults[0]}; no older checkpoint is whole either: remove {folder} to start anew")
    return None


def load(manifest: Path) -> Checkpoint:
    """One checkpoint by its manifest, verified; raises CheckpointError naming the file and the fault."""
    return _with_tensors(manifest, _read(manifest))


def _read(manifest: Path) -> _Manifest:
    """A manifest, verified."""
    try:
        data = read_regular(manifest, MOST_TEXT)
        content = json.loads(data)
        stated = content.pop("digest")
        found = _Manifest.model_validate(content)
        as_written = json.dumps(content | {"digest": stated}, indent=1).encode()
    except ValidationError as e:
        first = e.errors()[0]
        raise CheckpointError(f"{manifest}: damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{manifest}: damaged: not readable ({e})") from e
    if stated != digest(content) or as_written != data:
        raise CheckpointError(f"{manifest}: damaged: its sha256 is not the one it states")
    if manifest != manifest_of(manifest.parent, found.step):
        raise CheckpointError(f"{manifest}: damaged: it is the manifest of step {found.step}")
    return found


def _with_tensors(manifest: Path, read: _Manifest, most: int | None = None) -> Checkpoint:
    """The checkpoint of a manifest, its tensors verified."""
    path, size = _tensors_of(manifest, read.tensors.sha256), read.tensors.bytes
    if most is not None and size > most:
        raise CheckpointError(f"{path}: damaged: {size:,} bytes, and this run's tensors take {most:,} at most")
    return Checkpoint(read_tensors(path, size, read.tensors.sha256, "the manifest"), read.state)


def manifest_of(folder: Path, step: int) -> Path:
    """The path of a step's manifest."""
    return folder / f"step-{step:09d}.json"


def _files(folder: Path) -> list[Path]:
    """All files of checkpoints, newest first, a manifest before its tensors; nothing else that lies there."""
    return sorted((path for path in folder.glob("step-*") if _OURS.fullmatch(path.name)), reverse=True)


def _manifests(folder: Path) -> list[Path]:
    """Newest first."""
    return [path for path in _files(folder) if path.suffix == ".json"]


def _tensors_of(manifest: Path, sha256: str) -> Path:
    return manifest.with_name(f"{manifest.stem}-{sha256[:12]}.safetensors")


def _prune(newest: Path, tensors: Path) -> None:
    """Keep the checkpoint just written and the one before it.

    One of a later step goes too: this run did not go on from it, because it is damaged or another run's.
    """
    folder = newest.parent
    kept = [m.stem for m in _manifests(folder) if m <= newest][:KEPT]
    for path in _files(folder):
        stem = path.name[: len(newest.stem)]
        is_old = stem not in kept or (stem == newest.stem and path not in (newest, tensors))
        if is_old and (path.is_symlink() or not path.is_dir()):  # a folder is nothing that a run wrote
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.half"):
        if _HALF.fullmatch(path.name):
            path.unlink(missing_ok=True)
