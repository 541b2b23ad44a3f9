"""Row 8: labels that are none, files of another structure, and sets drawn at random, one kind of fault in each."""

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from helpers import CLASSES, IMAGE, encode, random_images, write_parquet
from hypothesis import HealthCheck, given, settings
from PIL import Image
from tier import Finding, amount

from repro.data import ShardSet, load, sources
from repro.data.imagenet import prepare_imagenet
from repro.data.imagenet_layouts import DEVKIT_TAR, TRUTH, find
from repro.data.made_imagenet import make_imagenet
from repro.data.shard_files import write_index
from repro.errors import DataError

PIXELS = random_images(6)
GOOD = [encode(Image.fromarray(i)) for i in PIXELS]
WIDE = encode(Image.fromarray(np.full((6, 6), 70_000 // 2, np.uint16)))
LABELS = [0, 1, 2, 0, 1, 2]
TRAIN = "train-00000-of-00001.parquet"


def column(values: list[Any], kind: pa.DataType | None = None) -> dict[str, pa.Array]:
    return {"label": pa.array(values, kind)}


# What stands in the column of labels, for three classes, and the words that name it.
WRONG_LABELS: dict[str, tuple[dict[str, pa.Array], str]] = {
    "−1": (column([0, 1, -1, 0, 1, 2]), "label -1 is out of range; expected 0…2"),
    "−1 in one byte": (column([0, 1, -1, 0, 1, 2], pa.int8()), "label -1 is out of range"),
    "n": (column([0, 1, 3, 0, 1, 2]), "label 3 is out of range; expected 0…2"),
    "255": (column([0, 1, 255, 0, 1, 2], pa.uint8()), "label 255 is out of range"),
    "−100": (column([-100] * 6), "label -100 is out of range"),
    "null": (column([0, 1, None, 0, 1, 2]), "label None is out of range"),
    "2⁶⁴ − 1": (column([0, 1, 2**64 - 1, 0, 1, 2], pa.uint64()), "label 18446744073709551615 is out of range"),
    "text": (column(["cat"] * 6), "column 'label' is string; expected an integer type"),
    "fractions": (column([0.0, 1.0, 0.5, 0.0, 1.0, 2.0]), "column 'label' is double; expected an integer type"),
    "true": (column([True] * 6), "column 'label' is bool; expected an integer type"),
    "lists": (column([[0]] * 6), "column 'label' is list<"),
    "nothing": (column([None] * 6), "column 'label' is null; expected an integer type"),
}
# Of the validation pictures of a made ImageNet with three classes; number 4 stands above them.
WRONG_TRUTH = {"0": "name class 0", "4": "name class 4", "-100": "name class -100", "cat": "not the devkit"}


def test_wrong_labels(data: Path, cache: Path, finding: Finding) -> None:
    """Catches −100, which `cross_entropy` passes over without a word, −1 that Python takes for the last class, labels
    of other types that are rounded, and a reader that checks less than another one.
    """
    for case, (columns, words) in WRONG_LABELS.items():
        for folder, read in ((data / "pets", lambda: load("pets")), (data / "copy", lambda: find(data / "copy"))):
            path = write_parquet(folder / TRAIN, GOOD, LABELS, **columns)
            with pytest.raises(DataError) as failure:
                read()
            assert str(path) in str(failure.value), case
            assert words in str(failure.value), case
    make_imagenet(data / "tar", "tar", classes=3, per_class=1, val_per_class=1, side=8, odd=False)
    make_imagenet(data / "plain", "folder", classes=3, per_class=1, val_per_class=1, side=8, odd=False)
    kit = data / "tar" / DEVKIT_TAR
    whole = kit.read_bytes()
    for label, words in WRONG_TRUTH.items():
        kit.write_bytes(with_truth(whole, f"1\n{label}\n2\n"))
        with pytest.raises(DataError, match=rf"{DEVKIT_TAR}: .*{words}"):
            find(data / "tar")
    kit.write_bytes(with_truth(whole, "1\n2\n"))
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000003\.JPEG is none of"):
        find(data / "tar")
    assert not cache.exists()
    shards = next(prepare_imagenet(data / "plain", size=8, workers=1, partial=True))
    sizes, wrong_indices = (
        [(8, 8)] * 3,
        {"label -100 is": [0, -100, 2], "label 3 is": [3, 1, 2], "2 labels for 3": [0, 1]},
    )
    for words, labels in wrong_indices.items():
        stored = write_index(shards.folder, labels, sizes[: len(labels)])
        shards.manifest.model_copy(update={"index": stored}).write(shards.folder)
        with pytest.raises(DataError, match=rf"index\.arrow: {words}"):
            ShardSet(shards.folder)
    count = 2 * len(WRONG_LABELS) + len(WRONG_TRUTH) + 1 + len(wrong_indices)
    finding(f"{count} wrong labels: −1, n, 255, −100, null, other types, too few", "each named, nothing prepared")


def with_truth(kit: bytes, truth: str) -> bytes:
    """The devkit with other classes of the validation pictures."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(kit)) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            content = truth.encode() if member.name.endswith(TRUTH) else file.read() if file else b""
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


def images(*replaced: bytes | None) -> list[bytes | None]:
    """Six images, the fifth replaced."""
    return [*GOOD[:4], *replaced, *GOOD[5:]]


def written(folder: Path, **changes: object) -> None:
    write_parquet(folder / TRAIN, **({"images": GOOD, "labels": [0, 1, 2, 0, 1, 2]} | changes))  # type: ignore[arg-type]


def truncated(folder: Path) -> None:
    written(folder)
    path = folder / TRAIN
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_nothing(folder: Path) -> None:
    (folder / TRAIN).write_bytes(b"")


def struct_array(**fields: list[object]) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(v) for v in fields.values()], names=list(fields))


STRUCTURES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, rf"{TRAIN}: not readable as parquet, cut short or damaged"),
    "empty file": (cut_to_nothing, rf"{TRAIN}: not readable as parquet"),
    "other columns": (
        lambda f: (
            write_parquet(f / TRAIN, GOOD, [0] * 6).unlink()
            or pa.parquet.write_table(pa.table({"img": GOOD, "target": [0] * 6}), f / TRAIN)
        ),
        rf"{TRAIN}: expected one column 'image' .* found img, target",
    ),
    "images as plain bytes": (
        lambda f: written(f, image=pa.array(GOOD)),
        rf"{TRAIN}: column 'image' is binary; expected struct<bytes: binary, path: string>",
    ),
    "images as text": (
        lambda f: written(f, image=struct_array(bytes=["a"] * 6, path=["b"] * 6)),
        rf"{TRAIN}: column 'image' is struct<bytes: string.*expected struct<bytes: binary",
    ),
    "labels as text": (lambda f: written(f, label=pa.array(["cat"] * 6)), rf"{TRAIN}: column 'label' is string"),
    "undecodable image": (
        lambda f: written(f, images=images(b"no picture")),
        rf"{TRAIN}: row 4: the image cannot be decoded",
    ),
    "image cut short": (
        lambda f: written(f, images=images(GOOD[4][:-30])),
        rf"{TRAIN}: row 4: the image cannot be decoded",
    ),
    "empty image": (lambda f: written(f, images=images(b"")), rf"{TRAIN}: row 4: the image is empty"),
    "null image": (lambda f: written(f, images=images(None)), rf"{TRAIN}: row 4: the image is empty"),
    "null struct over bytes": (
        lambda f: written(
            f,
            image=pa.StructArray.from_arrays(
                [pa.array(GOOD), pa.array([None] * 6, pa.string())],
                fields=list(IMAGE),
                mask=pa.array([False] * 5 + [True]),
            ),
        ),
        rf"{TRAIN}: row 5: the image is empty",
    ),
    "16 bits": (lambda f: written(f, images=images(WIDE)), rf"{TRAIN}: row 4: .*more than 8 bits"),
    "mixed sizes": (
        lambda f: written(f, images=images(encode(Image.new("RGB", (7, 6))))),
        rf"{TRAIN}: row 4: 6×7 pixels, but the first picture has 6×6; give `size`",
    ),
    "no class names": (lambda f: written(f, classes=None), rf"{TRAIN}: no class names in the schema metadata"),
    "no rows": (lambda f: written(f, images=[], labels=[]), rf"{TRAIN}: no rows"),
    "a shard is missing": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00003.parquet", GOOD, [0] * 6) for i in (0, 2)] and None,
        r"train is not whole: missing train-00001-of-00003\.parquet",
    ),
    "the last shard is missing": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00003.parquet", GOOD, [0] * 6) for i in (0, 1)] and None,
        r"train is not whole: missing train-00002-of-00003\.parquet",
    ),
    "two numberings": (
        lambda f: [write_parquet(f / f"train-00000-of-0000{n}.parquet", GOOD, [0] * 6) for n in (1, 2)] and None,
        r"train has files of two numberings, of-00001 and of-00002",
    ),
    "a shard too many": (
        lambda f: [write_parquet(f / f"train-0000{i}-of-00001.parquet", GOOD, [0] * 6) for i in (0, 4)] and None,
        r"train has a file number 4 of 1",
    ),
    "classes differ between shards": (
        lambda f: (
            [
                write_parquet(f / f"train-0000{i}-of-00002.parquet", GOOD, [0] * 6, c)
                for i, c in enumerate((CLASSES, CLASSES[::-1]))
            ]
            and None
        ),
        r"train-00001-of-00002\.parquet: its class names differ from those of train-00000",
    ),
}


def test_structure(data: Path, cache: Path, finding: Finding) -> None:
    """Catches a fault that passes in silence, a message without file or row, and a half-made folder in the cache."""
    for case, (make, message) in STRUCTURES.items():
        for old in (data / "pets").glob("*"):
            old.unlink()
        (data / "pets").mkdir(exist_ok=True)
        make(data / "pets")
        with pytest.raises(DataError, match=message) as failure:
            load("pets", "train")
        assert str(data) in str(failure.value), case
        assert len(str(failure.value).splitlines()) == 1, case
    assert not [p for p in cache.rglob("*") if p.is_file()]
    assert not list(cache.rglob("*.half"))
    finding(
        f"{len(STRUCTURES)} sets of another structure or count", "each named with its file or row, nothing prepared"
    )


ROW = st.tuples(
    st.sampled_from([*GOOD, encode(Image.new("RGB", (7, 6)))]) | st.none() | st.binary(max_size=40),
    st.none() | st.integers(-3, 5) | st.integers(-(2**63), 2**63 - 1),
)
GOOD_ROW = st.tuples(st.sampled_from(GOOD), st.integers(0, 2))
NAMES = st.just(list(CLASSES)) | st.none() | st.text(max_size=3) | st.lists(st.text(max_size=3) | st.none(), max_size=3)


def test_sets_drawn_at_random(data: Path, finding: Finding) -> None:
    """Catches a set that is taken although something in it is wrong, one that is refused although nothing is, pixels or
    labels in another order, and an exception of another kind than DataError.
    """
    path, outcomes = data / "pets" / TRAIN, Counter[str]()

    @settings(
        max_examples=amount(150, 2000),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(GOOD_ROW, min_size=1, max_size=6), st.lists(ROW, max_size=1), st.integers(0, 6), NAMES)
    def draw(rows: list[Any], strange: list[Any], at: int, names: Any) -> None:
        rows = [*rows[:at], *strange, *rows[at:]]
        write_parquet(path, [image for image, _ in rows], [label for _, label in rows], None)
        table = pa.parquet.read_table(path)
        about = {"info": {"features": {"label": {"names": names}}}}
        pa.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
        classes = names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []
        sound = all(image in GOOD and label in range(len(classes)) for image, label in rows)
        try:
            found = sources.from_parquet("pets", "train", None)
        except DataError as e:
            said = str(e)
            assert not sound, said
            assert TRAIN in said
            outcomes["refused"] += 1
            return
        assert sound
        np.testing.assert_array_equal(found.images, PIXELS[[GOOD.index(image) for image, _ in rows]])
        assert (found.labels.tolist(), list(found.classes)) == ([label for _, label in rows], classes)
        outcomes["taken"] += 1

    draw()
    assert min(outcomes["refused"], outcomes["taken"]) > outcomes.total() / 10
    finding(f"{outcomes.total():,} drawn sets", f"{outcomes['refused']:,} named, the others read pixel by pixel")
