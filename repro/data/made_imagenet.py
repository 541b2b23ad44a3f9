"""An ImageNet of a handful of made pictures, in each layout that the real one comes in, with its oddities.

What the real training set holds is here too, once each: a JPEG file in CMYK, one in grey, one that EXIF turns, a PNG
named .JPEG, and one file cut short, which the real set has not. With it every recipe and every step from archive
to trained net can be tried without the data. Classes differ in the direction and width of stripes: a net can learn.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from repro.data.imagenet_layouts import DEVKIT_TAR, META, TRAIN_TAR, TRUTH, VAL_TAR
from repro.errors import DataError

Layout = Literal["tar", "folder", "parquet"]
ODD = ("CMYK", "grey", "turned", "PNG", "cut short")
QUALITY = 92
ROWS = 50  # pictures in one parquet file


@dataclass(frozen=True)
class Picture:
    """One file: its name, class, and bytes."""

    name: str
    label: int
    content: bytes


def wordnet_ids(classes: int) -> list[str]:
    """Made ones, in order."""
    return [f"n{1_440_000 + 97 * k:08d}" for k in range(classes)]


def make_imagenet(
    folder: Path,
    layout: Layout,
    classes: int = 10,
    per_class: int = 8,
    val_per_class: int = 2,
    side: int = 375,
    seed: int = 0,
    odd: bool = True,
) -> dict[str, str]:
    """Write it under `folder`; which training picture is odd in which way (empty without `odd`).

    `side` is the shorter side of most pictures, 500 the longer at 375. The same arguments give the same pictures.
    Raises DataError when there are too few of them for the odd ones, or something is in the folder already.
    """
    if layout not in get_args(Layout):
        raise DataError(f"layout '{layout}': one of {', '.join(get_args(Layout))}")
    if min(classes, per_class, val_per_class, side) < 1 or (odd and classes * per_class < len(ODD)):
        raise DataError(
            f"{classes} classes of {per_class}: at least {len(ODD)} pictures are needed, and none of size 0"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty; give a folder to be made")
    folder.mkdir(parents=True, exist_ok=True)
    wnids = wordnet_ids(classes)
    kinds = {(j % classes, j // classes): kind for j, kind in enumerate(ODD)} if odd else {}
    train = [
        Picture(f"{wnids[k]}_{i}.JPEG", k, _encoded(_rng(seed, 0, k, i), k, side, kinds.get((k, i))))
        for k in range(classes)
        for i in range(per_class)
    ]
    order = _rng(seed, 2).permutation(classes * val_per_class)  # as in the real one, not class by class
    val = [
        Picture(f"ILSVRC2012_val_{n:08d}.JPEG", int(k), _encoded(_rng(seed, 1, n), int(k), side, None))
        for n, k in enumerate(order % classes, start=1)
    ]
    {"tar": _archives, "folder": _folders, "parquet": _parquet}[layout](folder, wnids, train, val)
    return {f"{wnids[k]}_{i}.JPEG": kind for (k, i), kind in kinds.items()}


def _rng(*parts: int) -> np.random.Generator:
    return np.random.default_rng(parts)


def picture(rng: np.random.Generator, label: int, height: int, width: int) -> NDArray[np.uint8]:
    """Stripes of the class's direction and width over soft colours, with noise: uint8 (height, width, 3)."""
    soft = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:height, :width]
    angle, period = np.pi * (label * 0.382 % 1), height / (3 + label * 0.618 % 1 * 9)
    phase = rng.uniform(0, 2 * np.pi)
    stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(np.asarray(soft) * 0.6 + 50 + 45 * stripes[..., None] + noise, 0, 255).astype(np.uint8)


def _encoded(rng: np.random.Generator, label: int, side: int, kind: str | None) -> bytes:
    sides = side, side * 4 // 3
    height, width = sides if rng.random() < 0.75 else sides[::-1]
    image = Image.fromarray(picture(rng, label, height, width))
    options = {}
    if kind == "turned":
        options["exif"] = image.getexif()
        options["exif"][0x0112] = 6
    image = image.convert({"CMYK": "CMYK", "grey": "L"}.get(str(kind), "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if kind == "PNG" else "JPEG", quality=QUALITY, **options)
    content = buffer.getvalue()
    return content[: len(content) // 2] if kind == "cut short" else content


def _folders(folder: Path, wnids: list[str], train: list[Picture], val: list[Picture]) -> None:
    for split, pictures in (("train", train), ("val", val)):
        for p in pictures:
            path = folder / split / wnids[p.label] / p.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(p.content)


def _archives(folder: Path, wnids: list[str], train: list[Picture], val: list[Picture]) -> None:
    with tarfile.open(folder / TRAIN_TAR, "w") as outer:
        for label, wnid in enumerate(wnids):
            _add(outer, f"{wnid}.tar", _tar({p.name: p.content for p in train if p.label == label}))
    (folder / VAL_TAR).write_bytes(_tar({p.name: p.content for p in val}))
    # The devkit numbers its classes in an order of its own.
    numbers = dict(zip(wnids, _rng(len(wnids)).permutation(len(wnids)) + 1, strict=True))
    truth = "".join(f"{numbers[wnids[p.label]]}\n" for p in val)
    counts = [sum(p.label == label for p in train) for label in range(len(wnids))]
    root = DEVKIT_TAR.removesuffix(".tar.gz")
    with tarfile.open(folder / DEVKIT_TAR, "w:gz") as kit:
        _add(kit, f"{root}/{META}", _meta(wnids, numbers, counts))
        _add(kit, f"{root}/{TRUTH}", truth.encode())


def _meta(wnids: list[str], numbers: dict[str, int], counts: list[int]) -> bytes:
    """The table of classes: those with pictures, and after them one that stands above them all."""
    from scipy.io import savemat

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
              "num_train_images")  # fmt: skip
    rows: list[tuple[Any, ...]] = [
        (numbers[w], w, f"made class {k}", "", 0, [], 0, counts[k]) for k, w in enumerate(wnids)
    ]
    rows.sort()
    rows.append((len(wnids) + 1, "n00001740", "entity", "", len(wnids), sorted(numbers.values()), 1, 0))
    synsets = np.array([tuple(row) for row in rows], dtype=[(f, object) for f in fields])
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets[:, None]})
    return buffer.getvalue()


def _tar(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in contents.items():
            _add(archive, name, content)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _parquet(folder: Path, wnids: list[str], train: list[Picture], val: list[Picture]) -> None:
    names = [f"made class {k}" for k in range(len(wnids))]
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, pictures in (("train", train), ("validation", val)):
        mixed = [pictures[i] for i in _rng(len(pictures)).permutation(len(pictures))]
        files = [mixed[s : s + ROWS] for s in range(0, len(mixed), ROWS)]
        for k, rows in enumerate(files):
            images = pa.array([{"bytes": p.content, "path": p.name} for p in rows], image)
            table = pa.table({"image": images, "label": pa.array([p.label for p in rows], pa.int64())})
            (folder / "data").mkdir(exist_ok=True)
            path = folder / "data" / f"{split}-{k:05d}-of-{len(files):05d}.parquet"
            pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
