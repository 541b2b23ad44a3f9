"""From a name to pictures: the cache, then `$REPRO_DATA`, then a download, then what needs nothing.

A named set is looked for in the cache, then under `$REPRO_DATA/NAME/`, as parquet or as folders SPLIT/CLASS/ of
pictures, then downloaded from its publishers (not when `REPRO_OFFLINE` is set). Any other folder under `$REPRO_DATA` in
one of these layouts is a set too, by its name.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from repro.data import cache, embedded, folder, parquet, sums
from repro.data.decode import Fit, Target, decode_all
from repro.data.decoded import Decoded
from repro.data.images import ImageSet
from repro.errors import DataError, UnknownName, nearest
from repro.fetch import FetchError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FLOWER_CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@dataclass(frozen=True)
class Spec:
    """What is known of a named set: its splits with their sizes, classes, pictures, and published digests."""

    title: str
    splits: dict[str, int]
    classes: tuple[str, ...]
    channels: int
    size: int | None = None  # the side everything is brought to when `load` is given none
    digests: dict[str, str] = field(default_factory=dict)  # of the published set, as `cache.content_digest` computes it
    sharded: bool = False  # too large for memory: `repro.data.imagenet` prepares it, `repro.data.shards` opens it


SPECS = {
    "mnist": Spec(
        "handwritten digits, 28×28 grey (LeCun et al. 1998)",
        {"train": 60_000, "test": 10_000},
        embedded.DIGIT_CLASSES,
        1,
        digests={
            "train": "88e8c87a1fe96f5f7713e18290ed2251fbd855c56eb43f1863473e1b1c66d7e1",
            "test": "703214bf156a09fef05ee23a71834c600c38d285eda599349dc651712834d0e5",
        },
    ),
    "fashion_mnist": Spec(
        "articles of clothing, 28×28 grey (Xiao et al. 2017)",
        {"train": 60_000, "test": 10_000},
        FASHION_CLASSES,
        1,
    ),
    "cifar10": Spec(
        "small photographs, 32×32 (Krizhevsky 2009)",
        {"train": 50_000, "test": 10_000},
        CIFAR10_CLASSES,
        3,
        digests={
            "train": "3ea9babf9e8da85bec34a3019f57f2f8da8197bcd7aa407aa4e29cef73eb6343",
            "test": "c1120437e8877d8e863a50ed5ad130e989231c31d0629ae6da8f66dab6597601",
        },
    ),
    "flowers": Spec(
        "five kinds of flowers, photographs at 256×256",
        {"train": 3_306, "val": 364},
        FLOWER_CLASSES,
        3,
        size=256,
    ),
    "digits": Spec(
        "scikit-learn's handwritten digits, embedded",
        {s: len(range(1797)[part]) for s, part in embedded.DIGIT_SPLITS.items()},
        embedded.DIGIT_CLASSES,
        1,
        size=embedded.DIGIT_SIZE,
    ),
    "shapes": Spec(
        "coloured shapes at any size, generated",
        embedded.SHAPE_COUNTS,
        embedded.SHAPE_CLASSES,
        3,
        size=embedded.SHAPE_SIZE,
    ),
    "imagenet": Spec(
        "ILSVRC-2012, photographs of 1,000 classes (Russakovsky et al. 2015)",
        {"train": 1_281_167, "val": 50_000},
        (),  # a thousand, named in the source
        3,
        size=256,
        sharded=True,
    ),
}
EMBEDDED: dict[str, Callable[[str, int | None], tuple[NDArray[np.uint8], NDArray[np.int64]]]] = {
    "digits": embedded.digits,
    "shapes": embedded.shapes,
}


def list_sets() -> list[str]:
    """The names `load` takes: the known sets, and every folder of parquet files or pictures under `$REPRO_DATA`."""
    layouts = "*.parquet", "[!.]*/[!.]*/[!.]*"
    here = data_dir().iterdir() if data_dir().is_dir() else ()
    own = [p.name for p in here if any(any(p.glob(layout)) for layout in layouts)]
    return sorted({*SPECS, *own})


def data_dir() -> Path:
    """`$REPRO_DATA`, where sets lie; an empty path that is no folder when it is not set."""
    return Path(os.environ.get("REPRO_DATA") or os.devnull).expanduser()


def load(
    name: str, split: str = "train", *, size: int | None = None, fit: Fit = "cut", fallback: str | None = None
) -> ImageSet:
    """One split of a set of pictures, decoded once into the cache and memory-mapped from it.

    `size` brings every picture to a size×size square: with `fit="cut"` by resizing the shorter side and cutting the
    centre, with `"squash"` by resizing both sides. `fallback` names the embedded set (`"digits"`, `"shapes"`) to use
    where the named one cannot be had: look at `.name` of what comes back.
    Raises UnknownName for a name or split that does not exist, DataError when a set is damaged or nowhere to be found.
    """
    _check(name, split, size, fit)
    if fallback is not None and fallback not in EMBEDDED:
        raise UnknownName(f"fallback '{fallback}': {nearest(fallback, EMBEDDED)}")
    try:
        return _load(name, split, size, fit)
    except NotFound:
        if fallback is None:
            raise
        return _load(fallback, "test" if split == "val" else split, size, fit)


def prepare(name: str, split: str, *, size: int | None = None, fit: Fit = "cut", force: bool = False) -> ImageSet:
    """Decode a split into the cache if it is not there, or anew with `force`, and return it."""
    _check(name, split, size, fit)
    if not force:
        return _load(name, split, size, fit)
    return _decode_into_cache(name, split, *_stored(name, size, fit))


def splits_of(name: str) -> list[str]:
    """The splits of a set; raises UnknownName with the nearest sets."""
    if name in SPECS:
        return list(SPECS[name].splits)
    if name in list_sets():
        return list(parquet.splits(data_dir() / name) or folder.splits(data_dir() / name))
    raise UnknownName(f"data set '{name}': {nearest(name, list_sets())}")


def where(name: str) -> str:
    """Where `load` would find a set at its usual size now."""
    kept = "manifest.json" if name in SPECS and SPECS[name].sharded else "meta.json"
    if all((cache.folder_of(name, s, _usual_size(name)) / kept).exists() for s in splits_of(name)):
        return "cache"
    if kept == "manifest.json":
        return "not here; prepare it from your copy"
    if name in EMBEDDED:
        return "embedded"
    return "REPRO_DATA" if (data_dir() / name).is_dir() else "not here; would be downloaded"


def check(name: str, split: str) -> str:
    """Hold a split in the cache against its source, where that is here, and the published digest; one line.

    Raises DataError when the contents differ from either.
    """
    kept = load(name, split)
    try:
        fresh = _decode(name, split, _usual_size(name)).digest()
        source = "whole"
    except NotFound:  # a prepared cache folder can be copied without its source
        fresh = cache.content_digest(kept.images, kept.labels, kept.classes)
        source = "whole, its source is not here"
    if fresh != kept.digest:
        raise DataError(
            f"{name} {split}: the cache holds digest {kept.digest}, its source {fresh}; prepare with --force"
        )
    published = SPECS[name].digests.get(split) if name in SPECS else None
    if published not in (None, fresh):
        raise DataError(f"{name} {split}: digest {fresh} is not the published set's, {published}")
    return f"{kept}: {source}" + ("" if published is None else ", and the published set")


class NotFound(DataError):
    """None of the three ways to a set worked."""


def _load(name: str, split: str, size: int | None, fit: Fit) -> ImageSet:
    size, fit = _stored(name, size, fit)
    try:
        found = cache.read(name, split, cache.folder_of(name, split, size, fit))
    except DataError as e:
        # The cache can be made again from its source; when the source is gone too, its own error says so.
        print(f"repro: {e}; making it again", file=sys.stderr)
        found = None
    return found or _decode_into_cache(name, split, size, fit)


def _decode_into_cache(name: str, split: str, size: int | None, fit: Fit) -> ImageSet:
    decoded = _decode(name, split, size, fit)
    _require_sound(name, split, decoded, size)
    images, labels = torch.from_numpy(decoded.images), torch.from_numpy(decoded.labels)
    kept = cache.folder_of(name, split, size, fit)
    cache.write(kept, images, labels, decoded.classes, decoded.source, decoded.conversions, decoded.skipped)
    found = cache.read(name, split, kept)
    if found is None:
        raise DataError(f"{kept}: vanished while it was being prepared; run the command again")
    return found


def _require_sound(name: str, split: str, decoded: Decoded, size: int | None) -> None:
    """Raise DataError for labels that are none, and where a set's publisher states another digest."""
    decoded.require_labels(f"{name} {split}")
    expected = SPECS[name].digests.get(split) if name in SPECS else None
    if expected is None or not (data_dir() / name).is_dir():  # a download is held against it as it comes
        return
    # At another size the pixels are others; then the set is decoded once more at its own.
    found = (decoded if size is None else _decode(name, split, None)).digest()
    if found != expected:
        raise DataError(
            f"{data_dir() / name}: {split} is not the published set: digest {found}, expected {expected}; copy it again"
        )


def _stored(name: str, size: int | None, fit: Fit) -> tuple[int | None, Fit]:
    """Size and fit as the cache keeps them: what has its size already, or is drawn at it, is not fitted to it."""
    size = size or _usual_size(name)
    return size, "cut" if size is None or name in EMBEDDED else fit


def _decode(name: str, split: str, size: int | None, fit: Fit = "cut") -> Decoded:
    if name in SPECS and SPECS[name].sharded:
        raise NotFound(
            f"{name} {split}: no shards of size {size} here, and too large to be decoded into memory; run `repro data "
            f"prepare {name} --source DIR` once, DIR being your copy of it, and open it with `repro.data.open_set`"
        )
    if name in EMBEDDED:
        return Decoded(*EMBEDDED[name](split, size), SPECS[name].classes, "embedded", {})
    if (data_dir() / name).is_dir():
        own = parquet.splits(data_dir() / name)
        return (from_folder if not own and folder.splits(data_dir() / name) else from_parquet)(name, split, size, fit)
    return _download(name, split, size, fit)


def from_parquet(name: str, split: str, size: int | None, fit: Fit = "cut") -> Decoded:
    """Decode one split from `$REPRO_DATA/NAME/`; raises DataError naming file, row and fault."""
    place = data_dir() / name
    files = parquet.splits(place).get(split)
    if not files:
        raise NotFound(_without_split(place, split))
    sums.verify(place, files)
    rows = parquet.Rows(files)
    classes = rows.classes or ()
    _require_published(name, split, classes, len(rows.labels))
    what, target = f"decoding {name} {split}", Target(_channels(name), size, fit)
    images, conversions = decode_all(rows.images, target, what, rows.place)
    return Decoded(images, np.array(rows.labels, np.int64), classes, "parquet", conversions)


def from_folder(name: str, split: str, size: int | None, fit: Fit = "cut") -> Decoded:
    """Decode one split from `$REPRO_DATA/NAME/SPLIT/CLASS/`, leaving out files that cannot be read and naming them.

    Raises DataError for a class without pictures.
    """
    place = data_dir() / name
    if split not in folder.splits(place):
        raise NotFound(_without_split(place, split))
    files = folder.Files(place, split)
    sums.verify(place, files.paths)
    what, target = f"decoding {name} {split}", Target(_channels(name), size, fit)
    images, conversions = decode_all(files.images, target, what, files.place, files.faults)
    files.require_each_class()
    labels = np.array([label for i, label in enumerate(files.labels) if i not in files.faults], np.int64)
    _require_published(name, split, files.classes, len(labels))
    skipped = tuple(files.faults[i] for i in sorted(files.faults))
    if skipped:
        print(f"repro: {name} {split}: {len(skipped)} files skipped, the first {skipped[0]}", file=sys.stderr)
    return Decoded(images, labels, files.classes, "folder", conversions, skipped)


def _channels(name: str) -> int:
    return SPECS[name].channels if name in SPECS else 3


def _require_published(name: str, split: str, classes: tuple[str, ...], count: int) -> None:
    """Raise DataError when what lies under a known name has other classes, or another number of pictures."""
    if (spec := SPECS.get(name)) is None:
        return
    if classes != spec.classes:
        raise DataError(f"{data_dir() / name}: classes {classes} are not those of {name}, {spec.classes}")
    if count != spec.splits[split]:
        raise DataError(
            f"{data_dir() / name}: {count:,} pictures in {split}, expected {spec.splits[split]:,}; copy it again"
        )


def _download(name: str, split: str, size: int | None, fit: Fit) -> Decoded:
    if name not in SPECS:
        raise NotFound(f"{data_dir() / name}: vanished; put it back, or point REPRO_DATA at the folder that holds it")
    from repro.data import download

    try:
        return download.fetch(name, split, size, SPECS[name], fit)
    except FetchError as e:
        raise NotFound(
            f"{name}: not in the cache, not under REPRO_DATA, and not downloaded ({e}); run "
            f"`repro data prepare {name}` with a network connection, or set REPRO_DATA to a folder that holds "
            f"{name}/SPLIT-00000-of-00001.parquet (Hugging Face layout) or {name}/SPLIT/CLASS/*.jpg, or copy a "
            f"prepared cache folder to {cache.cache_dir() / name}"
        ) from e


def _without_split(place: Path, split: str) -> str:
    return (
        f"{place}: holds no pictures of split '{split}'; put {split}-00000-of-00001.parquet or {split}/CLASS/*.jpg "
        "there, or take the folder away to have the set downloaded"
    )


def _usual_size(name: str) -> int | None:
    return SPECS[name].size if name in SPECS else None


def _check(name: str, split: str, size: int | None, fit: Fit) -> None:
    if fit not in get_args(Fit):
        raise UnknownName(f"fit '{fit}': {nearest(fit, get_args(Fit))}")
    if size is not None and size < 1:
        raise DataError(f"{name}: size {size} is no side of a square; give at least 1")
    known = splits_of(name)
    if split not in known:
        raise UnknownName(f"split '{split}' of {name}: {nearest(split, known)}")
