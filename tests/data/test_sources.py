"""From a name to pictures: the order of the ways, the errors when none works, and the real sets where they are here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, encode, needs_data, offer_idx, own_set, random_images, write_parquet
from PIL import Image

import repro
from repro.data import list_sets, load
from repro.data.sources import CIFAR10_CLASSES, FASHION_CLASSES, SPECS, Spec, check, prepare, splits_of, where
from repro.errors import DataError, UnknownName

TRAIN = "train-00000-of-00001.parquet"


def test_embedded_sets_need_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a set that asks for a file or the network after all."""
    monkeypatch.delenv("REPRO_DATA", raising=False)
    digits, shapes = load("digits", "test"), load("shapes", "test", size=16)
    assert repr(digits).startswith("digits test: 297 images 28×28×1, 10 classes (digest ")
    assert repr(digits).endswith(", embedded)")
    assert shapes.images.shape == (1000, 16, 16, 3)
    assert shapes.input_size == (3, 16, 16)
    assert where("digits") == "embedded"
    assert load("digits", "train").split == "train"
    assert where("digits") == "cache"
    assert repro.load("digits", "test").digest == digits.digest


def test_images_batches_and_subsets() -> None:
    """Catches a subset that keeps the statistics and digest of the whole."""
    whole = load("digits", "test")
    indices = torch.tensor([5, 2, 9])
    images, labels = whole.batch(indices)
    assert torch.equal(images, whole.images[indices])
    assert torch.equal(labels, whole.labels[indices])
    part = whole.subset(indices)
    assert len(part) == 3
    assert part.mean[0] == pytest.approx(images.numpy().mean() / 255)
    assert part.digest != whole.digest
    assert part.digest == whole.subset(indices.flip(0)).digest
    assert torch.equal(whole.to("cpu").images, whole.images)


def test_the_error_names_the_three_ways(cache: Path, data: Path) -> None:
    """Catches a stack trace of urllib where the reader needs to know what to do."""
    with pytest.raises(DataError) as failure:
        load("mnist")
    text = str(failure.value)
    assert "REPRO_OFFLINE is set" in text
    assert f"copy a prepared cache folder to {cache / 'mnist'}" in text
    assert "set REPRO_DATA to a folder that holds mnist/SPLIT-00000-of-00001.parquet" in text
    assert "`repro data prepare mnist`" in text


def test_fallback_says_what_it_is(cache: Path, data: Path) -> None:
    """Catches digits that pose as MNIST."""
    assert load("mnist", fallback="digits").name == "digits"
    flowers = load("flowers", "val", size=32, fallback="shapes")
    assert (flowers.name, flowers.split, flowers.images.shape[1]) == ("shapes", "test", 32)


def test_fallback_is_for_absence_not_for_damage(cache: Path, data: Path) -> None:
    """Catches a truncated file that silently turns MNIST into digits."""
    (data / "mnist").mkdir()
    for split in ("train", "test"):
        (data / "mnist" / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not readable as parquet"):
        load("mnist", fallback="digits")


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_wrong_fallback_is_found_before_it_is_needed(name: str, cache: Path, data: Path) -> None:
    """Catches a misspelt fallback that works on the author's machine, where the set is."""
    with pytest.raises(UnknownName, match="fallback 'digit': did you mean digits"):
        load(name, fallback="digit")


def test_unknown_names_get_the_nearest(data: Path) -> None:
    """Catches a bare KeyError, sets of one's own left out, and a path that leaves REPRO_DATA."""
    own_set(data)
    with pytest.raises(UnknownName, match="data set 'cifar': did you mean cifar10"):
        load("cifar")
    with pytest.raises(UnknownName, match="data set 'pet': did you mean pets"):
        load("pet")
    with pytest.raises(UnknownName, match="split 'valid' of flowers: did you mean val"):
        load("flowers", "valid")
    for name in ("../data/pets", "", "."):
        with pytest.raises(UnknownName):
            load(name)
    for size in (0, -3):
        with pytest.raises(DataError, match=f"size {size} is no side of a square"):
            prepare("digits", "test", size=size)


def test_own_sets_are_listed_found_and_checked(data: Path, cache: Path) -> None:
    """Catches a source that knows only the famous names."""
    images = own_set(data)
    assert list_sets() == sorted([*SPECS, "pets"])
    assert splits_of("pets") == ["test", "train"]
    assert where("pets") == "REPRO_DATA"
    found = load("pets")
    np.testing.assert_array_equal(found.images.numpy(), images)
    assert (found.name, found.source, found.classes) == ("pets", "parquet", CLASSES)
    load("pets", "test")
    assert where("pets") == "cache"
    assert where("mnist").startswith("not here")
    assert check("pets", "train").endswith("whole")


def test_check_notices_a_source_that_changed(data: Path, cache: Path) -> None:
    """Catches a check that compares the cache with itself."""
    own_set(data)
    load("pets")
    own_set(data, n=15)
    with pytest.raises(DataError, match=r"the cache holds digest .*; prepare with --force"):
        check("pets", "train")
    prepare("pets", "train", force=True)
    assert check("pets", "train").endswith("whole")


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST's name for three grey pictures."""
    monkeypatch.setitem(SPECS, "mnist", Spec("tiny", {"train": 3}, CLASSES, 1, digests={"train": "0" * 64}))


def test_a_known_name_has_to_keep_its_promises(tiny_mnist: None, data: Path, cache: Path) -> None:
    """Catches half of MNIST, or Fashion-MNIST, under MNIST's name."""
    encoded = [encode(Image.fromarray(i)) for i in random_images(4)]
    path = data / "mnist" / TRAIN
    write_parquet(path, encoded, [0, 1, 2, 0])
    with pytest.raises(DataError, match=r"mnist: 4 pictures in train, expected 3; copy it again"):
        load("mnist")
    write_parquet(path, encoded[:3], [0, 1, 2], CLASSES[::-1])
    with pytest.raises(DataError, match=r"classes \('eel', 'dog', 'cat'\) are not those of mnist"):
        load("mnist")
    write_parquet(path, encoded[:3], [0, 1, 2])
    for size in (None, 9):
        with pytest.raises(DataError, match=r"mnist: train is not the published set: digest .*, expected 0000"):
            load("mnist", size=size)
    assert not cache.exists()


def test_labels_are_looked_at_wherever_they_come_from(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a label past the last class that a download brings, where nothing published states a digest."""
    monkeypatch.delenv("REPRO_OFFLINE")
    monkeypatch.setitem(SPECS, "fashion_mnist", Spec("six", {"train": 6, "test": 6}, FASHION_CLASSES, 1))
    offer_idx(cache, monkeypatch, random_images(6)[..., 0], [0, 1, 10, 0, 1, 2])
    with pytest.raises(DataError, match="fashion_mnist train: label 10 is out of range; expected 0…9"):
        load("fashion_mnist")


def test_check_holds_a_set_against_the_published_digest(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a set that is whole but not the one whose name it bears; with its source gone too."""
    write_parquet(data / "mnist" / TRAIN, [encode(Image.fromarray(i)) for i in random_images(3)], [0, 1, 2])
    monkeypatch.setitem(SPECS, "mnist", Spec("tiny", {"train": 3}, CLASSES, 1))
    assert load("mnist").conversions == {"RGB to L": 3}
    monkeypatch.setitem(SPECS, "mnist", Spec("tiny", {"train": 3}, CLASSES, 1, digests={"train": "0" * 64}))
    for _ in range(2):
        with pytest.raises(DataError, match="is not the published set's, 0000"):
            check("mnist", "train")
        (data / "mnist" / TRAIN).unlink(missing_ok=True)


def test_check_works_on_a_copied_cache(data: Path, cache: Path) -> None:
    """Catches a check that needs the network although everything is here, or that trusts the digest in meta.json."""
    load("digits", "test")
    (cache / "fashion_mnist").mkdir()
    (cache / "digits" / "test-28").rename(cache / "fashion_mnist" / "test-native")
    assert check("fashion_mnist", "test").endswith("whole, its source is not here")


@needs_data("mnist")
def test_mnist_is_the_real_one(cache: Path) -> None:
    """Catches another order, another scale, or test digits among the training digits; and the published digests."""
    train, test = load("mnist"), load("mnist", "test")
    assert (train.images.shape, test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert round(train.mean[0], 4) == 0.1307
    assert round(train.std[0], 4) == 0.3081
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert check("mnist", "test").endswith("and the published set")
    assert train.digest == SPECS["mnist"].digests["train"]


@needs_data("cifar10")
def test_cifar10_is_the_real_one(cache: Path) -> None:
    """Catches BGR for RGB (the means tell), lossy copies, and a wrong order of classes."""
    test = load("cifar10", "test")
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.classes == CIFAR10_CLASSES
    assert test.labels.bincount().tolist() == [1000] * 10
    np.testing.assert_allclose(test.mean, (0.4942, 0.4851, 0.4504), atol=6e-5)
    assert test.digest == SPECS["cifar10"].digests["test"]


def test_known_classes_are_torchvisions() -> None:
    """Catches a class misspelt or out of its order."""
    from torchvision import datasets

    assert list(FASHION_CLASSES) == datasets.FashionMNIST.classes
    assert [c.split(" - ")[0] for c in datasets.MNIST.classes] == list(SPECS["mnist"].classes)


def test_fits_are_kept_apart(data: Path, cache: Path) -> None:
    """Catches a squashed set that answers for a cut one, a cut one whose folder was renamed (old caches would be made
    again), and a fit that means nothing but is decoded twice.
    """
    wide = [Image.new("RGB", (40, 20), (i, 0, 0)) for i in range(3)]
    for image in wide:
        image.paste((0, 255, 0), (10, 0, 30, 20))
    write_parquet(data / "pets" / TRAIN, [encode(i) for i in wide], [0, 1, 2])
    cut, squashed = load("pets", size=8), load("pets", size=8, fit="squash")
    assert (cut.images[..., 1] > 200).all()
    assert (squashed.images[:, :, 0, 1] < 40).all()
    assert load("pets", size=8).digest == cut.digest
    assert prepare("pets", "train", size=8, fit="squash").digest == squashed.digest
    load("pets", fit="squash")
    load("digits", "test", size=16, fit="squash")
    found = sorted(p.relative_to(cache).as_posix() for p in cache.glob("*/*"))
    assert found == ["digits/test-16", "pets/train-8", "pets/train-8-squash", "pets/train-native"]
    with pytest.raises(UnknownName, match="fit 'squeeze': known: cut, squash"):
        load("pets", size=8, fit="squeeze")  # type: ignore[arg-type]
