"""Folders of pictures: labels, what is converted, and what is left out and said so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode
from PIL import Image

from repro.data import list_sets, load
from repro.data.sources import FLOWER_CLASSES, SPECS, Spec, check, splits_of, where
from repro.errors import DataError, UnknownName


def put(path: Path, color: tuple[int, int, int] = (9, 9, 9), mode: str = "RGB", kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Image.new("RGB", (6, 4), color).convert(mode), kind))


@pytest.fixture
def pets(data: Path, cache: Path) -> Path:
    """Three classes to train, of which only two are tested."""
    for i, kind in enumerate(("eel", "cat", "dog")):
        for k in range(2):
            put(data / "pets" / "train" / kind / f"{k}.png", (40 * i, 40 * k, 7))
    put(data / "pets" / "test" / "dog" / "a.png", (80, 0, 7))
    put(data / "pets" / "test" / "eel" / "b.png", (0, 0, 7))
    return data / "pets"


def test_a_folder_is_a_set(pets: Path) -> None:
    """Catches labels by the order of a split's own folders: in `test`, without cats, a dog would become a cat."""
    train, test = load("pets"), load("pets", "test")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [1, 2]
    assert train.images[:, 0, 0].tolist() == [[40, 0, 7], [40, 40, 7], [80, 0, 7], [80, 40, 7], [0, 0, 7], [0, 40, 7]]
    assert (train.source, train.skipped, where("pets")) == ("folder", (), "cache")
    assert "pets" in list_sets()
    assert splits_of("pets") == ["test", "train"]
    assert check("pets", "train").endswith("whole")
    with pytest.raises(UnknownName, match="split 'val' of pets"):
        load("pets", "val")


def test_modes_are_converted_with_a_count(pets: Path) -> None:
    """Catches a CMYK photograph taken for inverted RGB, and grey or palette pictures that stop the rest."""
    put(pets / "train" / "cat" / "cmyk.jpg", (200, 40, 40), "CMYK", "JPEG")
    put(pets / "train" / "cat" / "grey.jpg", (90, 90, 90), "L", "JPEG")
    put(pets / "train" / "dog" / "palette.gif", (0, 0, 255), "P", "GIF")
    found = load("pets", size=4)
    assert found.conversions == {"CMYK to RGB": 1, "L to RGB": 1, "P to RGB": 1}
    assert np.abs(found.images[2, 2, 2].int().numpy() - [200, 40, 40]).max() < 12
    assert found.images[3, 2, 2].tolist() == pytest.approx([90, 90, 90], abs=2)


def test_unreadable_files_are_named_and_skipped(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a broken file that stops the set, one that is left out without a word, labels that shift where it was,
    and what was left out forgotten when the set comes from the cache.
    """
    whole = (pets / "train" / "cat" / "1.png").read_bytes()
    (pets / "train" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (pets / "train" / "dog" / "0.png").write_bytes(b"")
    (pets / "train" / "dog" / "notes.txt").write_text("not a picture")
    (pets / "train" / "eel" / "0.5.png").mkdir()
    (pets / "train" / "eel" / ".DS_Store").write_bytes(b"x")
    for _ in range(2):  # decoded, then from the cache
        found = load("pets", size=4)
        assert found.labels.tolist() == [0, 1, 2, 2]
        assert found.images[:, 0, 0].tolist() == [[40, 0, 7], [80, 40, 7], [0, 0, 7], [0, 40, 7]]
        assert [fault.partition(": ")[0] for fault in found.skipped] == [
            "train/cat/1.png", "train/dog/0.png", "train/dog/notes.txt", "train/eel/0.5.png",
        ]  # fmt: skip
        assert "no image format" in found.skipped[2]
        assert repr(found).endswith("folder, 4 files skipped)")
    said = capsys.readouterr().err
    assert "pets train: 4 files skipped, the first train/cat/1.png" in said
    assert said.count("skipped") == 1


def test_a_class_without_pictures_is_an_error(pets: Path) -> None:
    """Catches a net with an output that no picture can ever be for."""
    (pets / "train" / "ant").mkdir()
    with pytest.raises(DataError, match="ant: no pictures of this class; put some there, or remove the folder"):
        load("pets")
    (pets / "train" / "ant" / "0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"class .ant. has no picture .*; the first: train/ant/0\.jpg: the image"):
        load("pets", size=4)


def test_pictures_of_many_sizes_need_one(pets: Path) -> None:
    """Catches pictures that are skipped, or stretched, because nobody said to which size."""
    (pets / "train" / "dog" / "big.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    with pytest.raises(DataError, match=r"train/dog/big\.png: 9×9 pixels, but the first picture has 4×6; give `size`"):
        load("pets")
    assert len(load("pets", size=5, fit="squash")) == 7


def test_a_known_name_has_to_keep_its_promises(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a folder of other flowers, or with one lost, under the flowers' name."""
    monkeypatch.setitem(SPECS, "flowers", Spec("tiny", {"train": 5}, FLOWER_CLASSES, 3, size=4))
    for kind in FLOWER_CLASSES[:4]:
        put(data / "flowers" / "train" / kind / "a.jpg", kind="JPEG")
    with pytest.raises(DataError, match="are not those of flowers"):
        load("flowers")
    put(data / "flowers" / "train" / FLOWER_CLASSES[4] / "a.jpg", kind="JPEG")
    assert torch.equal(load("flowers").labels, torch.arange(5))
    put(data / "flowers" / "train" / FLOWER_CLASSES[4] / "b.jpg", kind="JPEG")
    with pytest.raises(DataError, match="flowers: 6 pictures in train, expected 5; copy it again"):
        load("flowers", size=3)
