"""Row 15: streams. Every picture that reaches the net, in order, in runs that are stopped and resumed."""

import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from helpers import CLASSES, encode, write_parquet
from PIL import Image
from ranks import in_ranks
from stream_programs import CROP, Seen, streams
from tier import Finding, amount

from repro.data.imagenet import prepare_imagenet
from repro.training.recipe import Recipe, parse_recipe

COUNT, BATCH, EPOCHS = 41, 8, 3  # the last batch has one picture: of two ranks one gets none
STEPS = -(-COUNT // BATCH)  # of an epoch
SIDE, BLOCK = 32, 8
APART = 5  # values of 0…255 between the ranges of two pictures
WORKERS = 2


def picture(i: int) -> Image.Image:
    """Flat blocks, the four in the middle from dark to bright, the others drawn: a window shows where it was cut.

    Wherever it was cut it holds the four, so that the range of its values tells which picture it is; reflection and a
    colour that is added to all pixels leave that as it is, and so does JPEG, whose blocks these are.
    """
    levels = np.random.default_rng(i).random((SIDE // BLOCK, SIDE // BLOCK))
    levels[1:3, 1:3] = [[0, 1], [0.25, 0.6]]
    grey = 20 + APART * (i + 1) * levels.repeat(BLOCK, 0).repeat(BLOCK, 1)
    return Image.fromarray(grey.round().astype(np.uint8)[..., None].repeat(3, 2))


def which(seen: Seen) -> int:
    """The picture's number."""
    number = round(seen.range / APART) - 1
    assert abs(seen.range - APART * (number + 1)) < APART / 2 - 1
    return number


def in_memory(data: Path) -> None:
    encoded = [encode(picture(i)) for i in range(COUNT)]
    labels = [i % len(CLASSES) for i in range(COUNT)]
    write_parquet(data / "blocks" / "train-00000-of-00001.parquet", encoded, labels)
    write_parquet(data / "blocks" / "test-00000-of-00001.parquet", encoded[:3], labels[:3])


def in_shards(source: Path) -> None:
    """JPEG files in shards of two: more of them than are open at a time in an order by shards."""
    for i in range(COUNT):
        for split in ("train", "val")[: 2 if i < 3 else 1]:
            path = source / split / f"c{i % len(CLASSES)}" / f"{i}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(i)))
    list(prepare_imagenet(source, size=SIDE, workers=1, partial=True, shard_size=2))


def recipe(**data: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "streams",
            "title": "for tests",
            "model": "witness",
            "data": data | {"mean": [0.5] * 3, "std": [0.25] * 3},
            "augmentation": {"crop": CROP, "flip": True, "color_noise": 0.1},
            "optimizer": {"learning_rate": 0.01, "momentum": 0.9},
            "epochs": EPOCHS,
            "batch_size": BATCH,
        },
        "streams",
    )


SHARDS = {"name": "imagenet", "test": "val", "size": SIDE}
KINDS = {
    "in memory": recipe(name="blocks"),
    "in shards, ordered by samples": recipe(**SHARDS),
    "in shards, ordered by shards": recipe(**SHARDS, order="shards"),
}


def test_streams(tmp_path: Path, data: Path, cache: Path, finding: Finding) -> None:
    """Catches an order or a draw that depends on the process, the rank or the decoding threads, an epoch that starts
    again, what was decoded ahead and is lost or comes twice, a forgotten `set_epoch`, and labels of other pictures.
    """
    in_memory(data)
    in_shards(tmp_path / "copy")
    points = sorted(random.Random(0).sample(range(1, STEPS * EPOCHS), amount(2, 10)))
    by_ranks = [
        in_ranks(ranks, streams, KINDS, mode, tmp_path, points, WORKERS) for ranks, mode in ((1, "none"), (2, "data"))
    ]
    for kind in KINDS:
        workers = 0 if kind == "in memory" else WORKERS
        seen_by = []  # one rank, and two: each step's pictures of the one rank, and then of the other
        for ranks in by_ranks:
            assert [rank[kind][1] for rank in ranks] == [workers] * len(ranks)
            for (undisturbed, *resumed), _ in (rank[kind] for rank in ranks):
                assert len(undisturbed) == STEPS * EPOCHS
                assert [run == undisturbed for run in resumed] == [True] * len(points)
            shares = zip(*(rank[kind][0][0] for rank in ranks), strict=True)
            seen_by.append([list(chain(*share)) for share in shares])
        assert seen_by[0] == seen_by[1]
        check_epochs(seen_by[0])
        finding(
            f"pictures {kind}: 1 and 2 ranks, {workers} decoding threads each, stopped and resumed at {len(points)} "
            "points",
            f"the {sum(map(len, seen_by[0]))} pictures that reach the net are the same to the byte and in the same "
            "order; each once an epoch",
        )


def check_epochs(passes: list[list[Seen]]) -> None:
    """Fails unless each epoch has each picture once, with its label, in an order and with draws of its own."""
    epochs = [list(chain(*passes[k * STEPS : (k + 1) * STEPS])) for k in range(EPOCHS)]
    orders = [[which(seen) for seen in epoch] for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert sorted(order) == list(range(COUNT))
        assert [seen.label for seen in epoch] == [i % len(CLASSES) for i in order]
    assert len(set(map(tuple, orders))) == EPOCHS
    assert len({seen.digest for epoch in epochs for seen in epoch}) == COUNT * EPOCHS
