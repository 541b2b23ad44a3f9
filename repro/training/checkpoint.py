"""What a run needs to go on exactly, on disk in a way that a crash at any moment leaves intact.

A checkpoint is two files: tensors (`step-000000469.safetensors`) and a manifest (`.json`) that holds the rest of the
state and the tensors' size and sha256. The tensors are written, synced and renamed first, the manifest after them:
without its manifest a checkpoint does not exist. Loading verifies the digests (neither `torch.load` nor safetensors
notices a flipped bit) and never runs code: state is tensors and JSON.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from repro.errors import CheckpointError, ResourceError

KEPT = 2  # committed checkpoints that stay


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint at `step` and prune all but the last two; raises ResourceError when the disk refuses."""
    stem = folder / f"step-{step:09d}"
    data = tensors_to_bytes({k: t.detach().cpu().contiguous() for k, t in checkpoint.tensors.items()})
    manifest = {
        "step": step,
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "state": checkpoint.state,
    }
    manifest["digest"] = _digest(manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(stem.with_suffix(".safetensors"), data)
        write_atomic(stem.with_suffix(".json"), json.dumps(manifest, indent=1).encode())
    except OSError as e:
        raise ResourceError(
            f"{stem}: the checkpoint cannot be written, {len(data):,} bytes needed ({e.strerror or e}); "
            "the one before it is whole; free space and resume"
        ) from e
    _prune(folder)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when there is none at all.

    A damaged one is named on stderr and the one before it taken; raises CheckpointError when all are damaged.
    """
    faults = []
    for manifest in _manifests(folder):
        try:
            found = load(manifest)
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
    path = manifest.with_suffix(".safetensors")
    try:
        content = json.loads(manifest.read_bytes())
        expected, state, digest = content["tensors"], content["state"], content.pop("digest")
        if digest != _digest(content):
            raise CheckpointError(f"{manifest}: damaged: its sha256 is not the one it states")
        data = path.read_bytes()
        if len(data) != expected["bytes"]:
            raise CheckpointError(f"{path}: damaged: {len(data):,} bytes, expected {expected['bytes']:,}")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: damaged: its sha256 is not the one in the manifest")
        return Checkpoint(tensors_from_bytes(data), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise CheckpointError(f"{manifest}: damaged: not readable ({e})") from e


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new, never a part."""
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there; the rename is durable by itself
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _manifests(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)


def _prune(folder: Path) -> None:
    kept = {m.stem for m in _manifests(folder)[:KEPT]}
    for path in sorted(folder.glob("step-*.*")):  # a manifest (.json) goes before its tensors
        if path.stem not in kept:
            path.unlink(missing_ok=True)
    for half in folder.glob(".*.half"):  # left by a run that was killed while it wrote
        half.unlink(missing_ok=True)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
