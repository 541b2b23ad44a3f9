"""What `repro transfer` does: a net and a set by their names, or a folder of pictures, and the study of the two."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from repro import data, weights
from repro.data import ImageSet, cache, folder, sums
from repro.data.decode import Target, decode_all
from repro.data.images import channel_statistics
from repro.data.preparation import Preparation
from repro.data.sources import SPECS, splits_of
from repro.errors import DataError, RecipeError
from repro.training.device import choose_device
from repro.transfer.classify import draw_pictures
from repro.transfer.study import DRAWS, NUMBERS, Study, study, write
from repro.weights import Which

TESTED = (
    20  # pictures of each class of a folder: Caltech-256's smallest classes have 80, and sixty are to be trained on
)
TEST_SPLITS = ("test", "val")


def transfer(
    net: str,
    to: str,
    which: Which = "book",
    numbers: list[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    tested: int | None = None,
    layers: list[str] | None = None,
    whole: bool = False,
    records_dir: Path = Path("records"),
    device: str | None = None,
) -> tuple[Study, Path]:
    """Run the study of a net of `repro.weights` and a set, or a folder, and write its record; returns both.

    `tested` is how many test pictures of each class are used, drawn from `seed`: all when None, TESTED of each class of
    a folder that has no splits. Raises `RecipeError` for numbers that are none.
    """
    numbers = numbers or list(NUMBERS)
    if min(numbers) < 1 or draws < 1:
        raise RecipeError(f"--n {','.join(map(str, numbers))}, --draws {draws}: each must be 1 or more")
    found = weights.load(net, which)
    found.model.to(choose_device(device))
    train, test = open_target(to, found.prepare, tested, seed)
    result = study(found, train, test, numbers=numbers, draws=draws, seed=seed, layers=layers, whole=whole)
    return result, write(result, records_dir, which)


def open_target(to: str, prepare: Preparation, tested: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and test pictures of a set, by its name, or of a folder, by its path, in a size for `prepare`.

    What is larger than the net's pictures is brought to their size; sets of small pictures keep their own.
    """
    if Path(to).is_dir():
        return from_folder(Path(to), prepare, tested or TESTED, seed)
    split = next((s for s in TEST_SPLITS if s in splits_of(to)), None)
    if split is None:
        raise DataError(f"{to}: has no split {' or '.join(TEST_SPLITS)} to test on")
    size = None if to in SPECS and SPECS[to].size is None else prepare.size
    train, test = (data.load(to, s, size=size, fit=prepare.fit) for s in ("train", split))
    if tested is not None:
        test = test.subset(draw_pictures(test.labels, tested, 0, seed))
    return train, test


def from_folder(place: Path, prepare: Preparation, tested: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """A folder of class folders, such as Caltech-256's, as training and test pictures.

    `tested` files of each class, drawn from `seed`, are tested on and the rest is to be trained on. Files that cannot
    be read are left out and named. All pictures lie in memory, in the net's size: some 6 GB for Caltech-256. Raises
    `DataError` for fewer than two classes, for a class with fewer files, and for files that `SHA256SUMS` denies.
    """
    kinds = [p for p in sorted(place.iterdir()) if p.is_dir() and not p.name.startswith(".") and folder.files(p)]
    if len(kinds) < 2:
        raise DataError(
            f"{place}: holds {len(kinds)} folders with pictures; one for each of two or more classes is needed"
        )
    paths = [(path, label) for label, kind in enumerate(kinds) for path in folder.files(kind) if path.is_file()]
    sums.verify(place, [path for path, _ in paths])
    labels, classes = torch.tensor([label for _, label in paths]), tuple(kind.name for kind in kinds)
    held_out = set(draw_pictures(labels, tested, 0, seed).tolist())
    parts = [[pair for i, pair in enumerate(paths) if (i in held_out) == test] for test in (False, True)]
    train, test = (_decoded(place, part, classes, prepare) for part in parts)
    return replace(train, split="train"), replace(test, split="test")


def _decoded(place: Path, part: list[tuple[Path, int]], classes: tuple[str, ...], prepare: Preparation) -> ImageSet:
    """Files and their labels as a set, without those that cannot be read."""
    faults: dict[int, str] = {}
    pixels, conversions = decode_all(
        [path.read_bytes() for path, _ in part],
        Target(prepare.channels, prepare.size, prepare.fit),
        f"decoding {place.name}",
        lambda i: part[i][0].relative_to(place).as_posix(),
        faults,
    )
    if faults:
        print(f"repro: {place}: {len(faults)} files skipped, the first {next(iter(faults.values()))}", file=sys.stderr)
    images = torch.from_numpy(pixels)
    labels = torch.tensor([label for i, (_, label) in enumerate(part) if i not in faults])
    digest = cache.content_digest(images, labels, classes)
    skipped = tuple(faults.values())
    return ImageSet(
        place.name, "", images, labels, classes, digest, "folder", *channel_statistics(images), conversions, skipped
    )
