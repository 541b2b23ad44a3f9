"""MNIST from parquet to tensors: prepared for the first time, and loaded again from the cache."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from benchmarks.harness import OURS, Comparison, alternate, progress, require_close, timed
from repro.data import load
from repro.data.parquet import splits
from repro.data.sources import data_dir, prepare, splits_of

PREPARING_S, LOADING_S = 3.0, 0.2
NAME = "mnist"
ROUNDS = 3  # seconds each, and nothing in it is short enough to be disturbed much


def compare(rounds: int) -> list[Comparison]:
    """Both splits, 70,000 pictures, against decoding them in a plain loop, which keeps nothing for the next time."""
    if not (data_dir() / NAME).is_dir():
        progress(f"preparing: no parquet of {NAME} under REPRO_DATA, left out\n")
        return []
    with _own_cache():
        theirs = timed(plain_loop)
        preparing = {OURS: timed(lambda: [prepare(NAME, s, force=True) for s in splits_of(NAME)]), "plain loop": theirs}
        kept = alternate("preparing MNIST", preparing, min(rounds, ROUNDS), warmup=0)
        decoded = plain_loop()
        ours = torch.cat([load(NAME, split).images for split in splits_of(NAME)])
        note = require_close("pixels", ours, decoded, tolerance=0)
        loading = timed(lambda: [load(NAME, split) for split in splits_of(NAME)])
        again = alternate("loading MNIST again", {OURS: loading}, rounds)
    data = f"{NAME}, {len(decoded):,}"
    again["plain loop"] = kept["plain loop"]
    return [
        Comparison("preparing from parquet", data, kept, limit=PREPARING_S, notes=[note]),
        Comparison("loading again", data, again, limit=LOADING_S, notes=[note]),
    ]


def plain_loop() -> torch.Tensor:
    """Every row's bytes through PIL into a list, and the list into a uint8 tensor (N, H, W, 1)."""
    pictures = []
    files = splits(data_dir() / NAME)
    for split in splits_of(NAME):
        for path in files[split]:
            for row in pq.read_table(path)["image"].to_pylist():
                pictures.append(TF.pil_to_tensor(Image.open(io.BytesIO(row["bytes"]))))
    return torch.stack(pictures).permute(0, 2, 3, 1)


@contextmanager
def _own_cache() -> Iterator[None]:
    """An empty cache for the time of the benchmark."""
    before = os.environ.get("REPRO_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPRO_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["REPRO_CACHE"]
            else:
                os.environ["REPRO_CACHE"] = before
