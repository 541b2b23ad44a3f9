"""Row 8: data files cut short or with one bit flipped, in each format that is read.

What comes out is compared to pixels that never went through the package: drawn ones, or what Pillow alone makes of the
files before the damage.
"""

import hashlib
import io
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import CLASSES, encode, offer_idx, random_images, write_parquet
from PIL import Image
from tier import Finding, amount
from torchvision import datasets

from repro.data import ShardSet, download, load, sources
from repro.data.decode import Target, decode
from repro.data.imagenet import prepare_imagenet
from repro.data.imagenet_layouts import DEVKIT_TAR, TRAIN_TAR, VAL_TAR, find
from repro.data.made_imagenet import make_imagenet, wordnet_ids
from repro.data.sources import SPECS, Spec
from repro.errors import DataError

PIXELS = random_images(6)
GOOD = [encode(Image.fromarray(i)) for i in PIXELS]
PHOTOS = [encode(Image.fromarray(i), "JPEG", quality=90) for i in random_images(6, side=24)]
SEEN = [np.asarray(Image.open(io.BytesIO(i))) for i in PHOTOS]
LABELS = [0, 1, 2, 0, 1, 2]
TRAIN = "train-00000-of-00001.parquet"
Content = tuple[Sequence[str], Sequence[int], Sequence[bytes]]
"""Classes, labels, and the pixels of each picture."""


@dataclass
class Kept:
    """A set as files: those that are damaged one after the other, how it is read, and what it holds."""

    files: list[Path]
    read: Callable[[], Content]
    expected: Content
    by_itself: Callable[[], Content] | None = None
    """How it is read without the digests that lie beside it."""


def content(classes: Sequence[str], labels: Any, images: Any) -> Content:
    return list(classes), [int(x) for x in labels], [np.ascontiguousarray(i).tobytes() for i in images]


def list_sums(folder: Path) -> None:
    """What `find . -type f -exec sha256sum {} +` prints."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./{p.relative_to(folder).as_posix()}" for p in files]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def without_sums(folder: Path, read: Callable[[], Content]) -> Callable[[], Content]:
    def reading() -> Content:
        sums = folder / "SHA256SUMS"
        kept = sums.read_bytes()
        sums.unlink()
        try:
            return read()
        finally:
            sums.write_bytes(kept)

    return reading


def own_set(read: Callable[..., sources.Decoded], size: int | None = None) -> Callable[[], Content]:
    def reading() -> Content:
        found = read("pets", "train", size)
        if found.skipped:
            raise DataError(found.skipped[0])
        return content(found.classes, found.labels, found.images)

    return reading


def parquet(data: Path, cache: Path) -> Kept:
    """As the hub's files are: without checksums of pages."""
    path = write_parquet(data / "pets" / TRAIN, PHOTOS, LABELS)
    list_sums(path.parent)
    read = own_set(sources.from_parquet)
    return Kept([path], read, content(CLASSES, LABELS, SEEN), without_sums(path.parent, read))


def checked_parquet(data: Path, cache: Path) -> Kept:
    """With checksums of pages, of which the footer has none."""
    path = write_parquet(data / "pets" / TRAIN, PHOTOS, LABELS)
    pq.write_table(pq.read_table(path), path, write_page_checksum=True)
    list_sums(path.parent)
    read = own_set(sources.from_parquet)
    return Kept([path], read, content(CLASSES, LABELS, SEEN), without_sums(path.parent, read))


def class_folders(kind: str, data: Path) -> list[Path]:
    """Six pictures in folders of three classes, in the order in which they are read."""
    paths = []
    for i, label in enumerate(LABELS):
        path = data / "pets" / "train" / CLASSES[label] / f"{i}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PHOTOS[i] if kind == "JPEG" else GOOD[i])
        paths.append(path)
    return sorted(paths)


def jpeg(data: Path, cache: Path) -> Kept:
    paths = class_folders("JPEG", data)
    list_sums(data / "pets")
    read, pixels = own_set(sources.from_folder), [SEEN[int(p.stem)] for p in paths]
    return Kept(paths, read, content(CLASSES, sorted(LABELS), pixels), without_sums(data / "pets", read))


def png(data: Path, cache: Path) -> Kept:
    """Its chunks have checksums of their own: nothing lies beside the files."""
    paths = class_folders("PNG", data)
    pixels = PIXELS[[int(p.stem) for p in paths]]
    return Kept(paths, own_set(sources.from_folder), content(CLASSES, sorted(LABELS), pixels))


def idx(data: Path, cache: Path) -> Kept:
    """IDX in gzip, as MNIST's publishers offer it. What is damaged is removed, so each read finds the others anew."""
    spec = Spec("six", {"train": 6, "test": 6}, SPECS["fashion_mnist"].classes, 1)
    with pytest.MonkeyPatch.context() as patch:
        paths = offer_idx(cache, patch, PIXELS[..., 0], LABELS)
        resources = datasets.FashionMNIST.resources
    whole = {path: path.read_bytes() for path in paths}

    def read() -> Content:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.FashionMNIST, "resources", resources)
            try:
                found = download.fetch("fashion_mnist", "train", None, spec)
            finally:
                paths[0].parent.mkdir(exist_ok=True)
                for path in paths:
                    path.write_bytes(path.read_bytes() if path.exists() else whole[path])
        return content(found.classes, found.labels, found.images)

    return Kept(paths, read, content(spec.classes, LABELS, PIXELS[..., :1]))


def imagenet(data: Path) -> tuple[list[str], list[int], list[np.ndarray]]:
    """A copy in archives; classes, and label and pixels of each picture in training and validation."""
    options: dict[str, Any] = {"classes": 3, "per_class": 2, "val_per_class": 1, "side": 48, "odd": False}
    make_imagenet(data / "copy", "tar", **options)
    make_imagenet(data / "plain", "folder", **options)  # the same bytes, where Pillow finds them
    train = sorted((data / "plain" / "train").glob("*/*"))
    val = sorted((data / "plain" / "val").glob("*/*"), key=lambda path: path.name)
    labels = [wordnet_ids(3).index(p.parent.name) for p in (*train, *val)]
    return wordnet_ids(3), labels, [np.asarray(Image.open(p)) for p in (*train, *val)]


def read_copy(copy: Path) -> Content:
    """What preparing would decode, without the resizing."""
    found = find(copy)
    entries = [*found.entries["train"], *found.entries["val"]]
    return content(found.classes, [e.label for e in entries], [named(e.read(), e.name) for e in entries])


def named(encoded: bytes, name: str) -> np.ndarray:
    try:
        return decode(encoded, Target(3))[0]
    except Exception as e:
        raise DataError(f"{name}: {e}") from e


def tar(data: Path, cache: Path) -> Kept:
    """Archives of archives, and of files; whole ones are prepared, others are refused before."""
    expected, copy = content(*imagenet(data)), data / "copy"
    list_sums(copy)

    def read() -> Content:
        list(prepare_imagenet(copy, size=12, workers=1, partial=True, force=True))  # refuses before it decodes
        return read_copy(copy)

    return Kept([copy / TRAIN_TAR, copy / VAL_TAR], read, expected, lambda: read_copy(copy))


def tar_gz(data: Path, cache: Path) -> Kept:
    """The devkit, which says of which class a validation picture is: gzip has a checksum."""
    expected, copy = content(*imagenet(data)), data / "copy"
    return Kept([copy / DEVKIT_TAR], lambda: read_copy(copy), expected)


def shards(data: Path, cache: Path) -> Kept:
    for i, label in enumerate(LABELS):
        path = data / "copy" / "train" / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD[i])
    [made] = prepare_imagenet(data / "copy", size=6, encoding="raw", workers=1, partial=True, shard_size=4)
    order = [int(Path(n).stem) for k in range(2) for n in made.shard(k).column("name")]

    def read() -> Content:
        found = ShardSet(made.folder)
        assert found.mean_image is not None
        np.testing.assert_allclose(found.mean_image.numpy(), PIXELS.mean(0) / 255, atol=1e-6)
        return content(found.classes, found.labels, [p for k in range(2) for p in found.shard(k).pixels])

    labels = [LABELS[i] for i in order]
    return Kept(sorted(made.folder.iterdir()), read, content(CLASSES, labels, PIXELS[order]))


def cached(data: Path, cache: Path) -> Kept:
    """What `load` keeps, after its source is gone: else it would be made again."""
    source = write_parquet(data / "pets" / TRAIN, GOOD, LABELS)
    load("pets")
    source.write_bytes(b"")

    def read() -> Content:
        found = load("pets")
        return content(found.classes, found.labels, found.images.numpy())

    return Kept(sorted((cache / "pets" / "train-native").iterdir()), read, content(CLASSES, LABELS, PIXELS))


FORMATS = {
    "parquet": parquet,
    "parquet with checksums of pages": checked_parquet,
    "IDX in gzip": idx,
    "tar": tar,
    "tar.gz": tar_gz,
    "JPEG": jpeg,
    "PNG": png,
    "shards": shards,
    "the cache": cached,
}


def damage(whole: bytes, draw: random.Random) -> bytes:
    """A quarter cut short, the others with one bit flipped."""
    if draw.randrange(4) == 0:
        return whole[: draw.randrange(len(whole))]
    place = draw.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]


def outcome(read: Callable[[], Content], expected: Content, names: list[str]) -> str:
    """`named`, `identical`, or `changed`: other classes, labels or pixels, and nobody said so."""
    refusal = None
    try:
        found = read()
    except DataError as e:
        refusal = str(e)
    if refusal is None:
        return "identical" if found == expected else "changed"
    assert len(refusal.splitlines()) == 1, refusal
    assert any(name in refusal for name in names), refusal
    return "named"


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_in_each_format(
    kind: str, data: Path, cache: Path, finding: Finding, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a checksum that nobody reads to its end, a damaged header taken for the end of an archive, a list of
    digests that is looked at after the pictures, and an exception of another kind than DataError.
    """
    kept, draw, seen, unguarded = FORMATS[kind](data, cache), random.Random(8), Counter[str](), Counter[str]()
    assert kept.read() == kept.expected
    if kept.by_itself:
        assert kept.by_itself() == kept.expected
    whole = {path: path.read_bytes() for path in kept.files}
    for k in range(amount(24, 200)):
        path = kept.files[k % len(kept.files)]
        path.write_bytes(damage(whole[path], draw))
        names = [path.name, *(["pets"] if kind == "the cache" else [])]
        seen[outcome(kept.read, kept.expected, names)] += 1
        if kept.by_itself:
            unguarded[outcome(kept.by_itself, kept.expected, [*names, "JPEG"])] += 1
        path.write_bytes(whole[path])
    assert kept.read() == kept.expected
    assert seen["changed"] == 0
    assert seen["named"] > seen["identical"]
    guarded = ""
    if kept.by_itself:
        guarded = f" by the SHA256SUMS beside it (without that, {unguarded['changed']} would pass with other contents)"
    same = f", {seen['identical']} read as before" if seen["identical"] else ""
    finding(f"{kind} damaged {seen.total()} times", f"{seen['named']} named{guarded}{same}, {seen['changed']} silent")


def test_zip_is_not_read(data: Path, cache: Path, finding: Finding) -> None:
    """Catches an archive that is opened, or passed over in silence, because its name says something else."""
    paths, buffer = class_folders("PNG", data), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    paths[0].with_name("more.png").write_bytes(buffer.getvalue())
    found = sources.from_folder("pets", "train", None)
    assert content(found.classes, found.labels, found.images)[1] == sorted(LABELS)
    assert [line.partition(":")[0] for line in found.skipped] == ["train/cat/more.png"]
    (data / "pets" / TRAIN).write_bytes(buffer.getvalue())
    (data / "copy").mkdir()
    (data / "copy" / TRAIN_TAR).write_bytes(buffer.getvalue())
    for read, name in ((lambda: load("pets"), TRAIN), (lambda: find(data / "copy"), TRAIN_TAR)):
        with pytest.raises(DataError, match=rf"{name}: not readable"):
            read()
    finding("zip in the place of a picture, of parquet and of tar", "named each time; there is no reader of zip")
