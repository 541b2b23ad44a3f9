"""Training on ImageNet's layout end to end: a made copy, prepared, streamed and shared."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_programs import train_recipe
from ranks import in_ranks

from repro.data import ImageSet, open_set
from repro.data.imagenet import prepare_imagenet
from repro.data.made_imagenet import make_imagenet
from repro.data.shards import ShardSet
from repro.errors import DataError, RecipeError
from repro.training import setup
from repro.training.loop import Trainer
from repro.training.recipe import Recipe, parse_recipe

CLASSES, SIZE = 10, 32
CONTENT: dict[str, Any] = {
    "name": "made",
    "title": "for tests",
    "model": "cuda_convnet_18pct",
    "model_options": {"norm": "none"},
    "data": {"name": "imagenet", "test": "val", "size": SIZE, "mean_image": "crop"},
    "augmentation": {"crop_padding": 2, "flip": True, "color_noise": 0.1},
    "optimizer": {"name": "sgd2012", "learning_rate": 0.01, "momentum": 0.9},
    "epochs": 2,
    "batch_size": 16,
}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe(CONTENT | changes, "made")


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ten classes of five pictures, the damaged kinds among them, in raw shards of a cache of their own."""
    folder = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CACHE", str(folder / "cache"))
        make_imagenet(folder / "made", layout="folder", classes=CLASSES, per_class=5)
        list(prepare_imagenet(folder / "made", size=SIZE, encoding="raw", workers=1, partial=True, shard_size=16))
        yield


def run(**changes: Any) -> Any:
    """Train to the end; the epochs and the net's weights."""
    trainer = Trainer(recipe(**changes), 0, torch.device("cpu"))
    while not trainer.finished:
        trainer.train_epoch(lambda: None)
    return trainer.place.history, {k: t.clone() for k, t in trainer.model.state_dict().items()}


def same(found: Any, expected: Any) -> bool:
    weights = all(torch.equal(found[1][k], t) for k, t in expected[1].items())
    return weights and [e.train_loss for e in found[0]] == [e.train_loss for e in expected[0]]


def test_streamed_training_is_training_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an order that depends on the workers, statistics of other pictures than the training set's, and a batch
    that belongs to the step before.
    """
    streamed = run()

    def in_memory(name: str, split: str, **how: Any) -> ImageSet:
        shards = open_set(name, split, size=SIZE)
        assert isinstance(shards, ShardSet)
        pixels = np.concatenate([shards.shard(k).pixels for k in range(len(shards.files))])
        mean, std = shards.mean, shards.std
        return ImageSet(name, split, torch.from_numpy(pixels), shards.labels, shards.classes, "", "", mean, std)

    monkeypatch.setattr(setup, "open_set", in_memory)
    assert same(run(), streamed)


def test_two_ranks_read_each_picture_once() -> None:
    """Catches ranks that both read a picture, or none: the sums over them are those of one process."""
    trainer = Trainer(recipe(precision="float32"), 0, torch.device("cpu"))
    alone = [trainer.train_epoch(lambda: None) for _ in range(2)]
    first, second = in_ranks(2, train_recipe, recipe(precision="float32"), "data")
    assert first["seen"] + second["seen"] == 2 * len(trainer.train_set)
    for ours, expected in zip(first["history"], alone, strict=True):
        assert ours.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert ours.test_loss == pytest.approx(expected.test_loss, rel=1e-5)
        assert (ours.train_error, ours.test_error) == (expected.train_error, expected.test_error)


def test_an_order_by_shards_is_an_order_of_all_samples() -> None:
    """Catches a sample left out or read twice, and a recipe whose key changes nothing."""
    trainer, plain = (
        Trainer(recipe(data=CONTENT["data"] | how), 0, torch.device("cpu")) for how in ({"order": "shards"}, {})
    )
    orders = [trainer.order(epoch) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(len(trainer.train_set)))
    assert not torch.equal(*orders)
    assert not torch.equal(orders[0], plain.order(0))
    with pytest.raises(RecipeError, match=r"needs prepared shards, and digits has none"):
        Trainer(recipe(data={"name": "digits", "order": "shards"}), 0, torch.device("cpu"))


def test_a_set_on_disk_cannot_be_limited() -> None:
    """Catches a limit that is silently ignored where the pictures are not in memory."""
    with pytest.raises(RecipeError, match=r"data\.limit cuts sets in memory"):
        run(data=CONTENT["data"] | {"limit": 5})


def test_a_damaged_shard_ends_the_run_or_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Catches a flipped bit that is trained on, and samples that are missing without a word."""
    shutil.copytree(os.environ["REPRO_CACHE"], tmp_path / "cache")
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    shards = open_set("imagenet", "train", size=SIZE)
    assert isinstance(shards, ShardSet)
    path = shards.folder / shards.files[1].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}.*sha256"):
        run()
    kept = Trainer(recipe(data=CONTENT["data"] | {"on_damage": "skip"}), 0, torch.device("cpu"))
    assert len(kept.train_set) == len(shards) - shards.files[1].samples
    assert f"{shards.files[1].samples} of {len(shards)} samples" in capfd.readouterr().err
    kept.train_epoch(lambda: None)
