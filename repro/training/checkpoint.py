"""What a run needs to go on exactly, on disk in a way that a crash at any moment leaves intact.

A checkpoint is two files: a manifest (`step-000000469.json`) that holds the tensors' size and sha256 and the rest of
the state, and the tensors (`step-000000469-SHA256.safetensors`, by the first digits of theirs, so that saving a step
again leaves alone what the old manifest speaks of). The tensors are written, synced and renamed first, the manifest
after them: without its manifest a checkpoint does not exist. Loading verifies the digests (neither `torch.load` nor
safetensors notices a flipped bit) and never runs code: state is tensors and JSON.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from repro.errors import CheckpointError, ResourceError
from repro.files import write_atomic

KEPT = 2  # committed checkpoints that stay


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint at `step` and prune all but the last two; raises ResourceError when the disk refuses."""
    manifest = folder / f"step-{step:09d}.json"
    data = tensors_to_bytes({k: t.detach().cpu().contiguous() for k, t in checkpoint.tensors.items()})
    content = {
        "step": step,
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "state": checkpoint.state,
    }
    content["digest"] = _digest(content)
    tensors = _tensors_of(manifest, content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(tensors, data)
        write_atomic(manifest, json.dumps(content, indent=1).encode())
        _prune(manifest, tensors)
    except OSError as e:
        raise ResourceError(
            f"{manifest}: the checkpoint cannot be written, {len(data):,} bytes needed ({e.strerror or e}); "
            "the one before it is whole; free space and resume"
        ) from e


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
    try:
        content = json.loads(manifest.read_bytes())
        expected, state, digest = content["tensors"], content["state"], content.pop("digest")
        if digest != _digest(content):
            raise CheckpointError(f"{manifest}: damaged: its sha256 is not the one it states")
        path = _tensors_of(manifest, content)
        data = path.read_bytes()
        if len(data) != expected["bytes"]:
            raise CheckpointError(f"{path}: damaged: {len(data):,} bytes, expected {expected['bytes']:,}")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: damaged: its sha256 is not the one in the manifest")
        return Checkpoint(tensors_from_bytes(data), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise CheckpointError(f"{manifest}: damaged: not readable ({e})") from e


def _manifests(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)


def _tensors_of(manifest: Path, content: dict[str, Any]) -> Path:
    return manifest.with_name(f"{manifest.stem}-{content['tensors']['sha256'][:12]}.safetensors")


def _prune(newest: Path, tensors: Path) -> None:
    """Keep the checkpoint just written and the one before it.

    One of a later step goes too: this run did not go on from it, because it is damaged or another run's.
    """
    folder = newest.parent
    kept = [m.stem for m in _manifests(folder) if m <= newest][:KEPT]
    for path in sorted(folder.glob("step-*.*"), reverse=True):  # a manifest goes before its tensors
        stem = path.name[: len(newest.stem)]
        if stem not in kept or (stem == newest.stem and path not in (newest, tensors)):
            path.unlink(missing_ok=True)
    for half in folder.glob(".*.half"):  # left by a run that was killed while it wrote
        half.unlink(missing_ok=True)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
