"""From copies of a made ImageNet, in each layout and with its oddities, to the same shards; and what goes wrong."""

import errno
import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made import kill, names, prepared, write_copy
from PIL import Image
from torchvision import datasets
from torchvision.datasets import imagenet as torchvision_imagenet
from typer.testing import CliRunner

from repro.cli import app
from repro.data import ShardSet, imagenet_shard
from repro.data.imagenet import prepare_imagenet
from repro.data.imagenet_layouts import DEVKIT_TAR, TRAIN_TAR, VAL_TAR, find
from repro.data.made_imagenet import make_imagenet, wordnet_ids
from repro.data.shard_files import Manifest
from repro.errors import DataError, RecipeError, ResourceError

SIDE = 40


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of six, and of two, in the three layouts; and the odd ones by name."""
    place = tmp_path_factory.mktemp("copies")
    for layout in ("tar", "folder", "parquet"):
        make_imagenet(place / layout, layout, classes=4, per_class=6, side=SIDE)  # type: ignore[arg-type]
    return place


def own_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.setenv("REPRO_CACHE", str(folder))
    return folder


def run(source: Path, **options: object) -> list[ShardSet]:
    options = {"size": 32, "workers": 1, "partial": True, "shard_size": 5} | options
    return list(prepare_imagenet(source, **options))  # type: ignore[arg-type]


def by_name(images: ShardSet) -> dict[str, tuple[int, bytes]]:
    """Label and JPEG file of every sample."""
    places = images.locate(list(range(len(images))))
    contents = (bytes(images.shard(s).encoded(r)) for s, r in places)
    return dict(zip(names(images), zip(images.labels.tolist(), contents, strict=True), strict=True))


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_three_layouts_give_the_same_samples(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches offsets into an archive that are wrong by a header, the devkit's class numbers taken for labels, rows of
    parquet exchanged, and a split of one layout that is left out.
    """
    found = {}
    for layout in ("tar", "folder", "parquet"):
        own_cache(monkeypatch, tmp_path / layout)
        found[layout] = [by_name(images) for images in run(copies / layout)]
    assert found["tar"] == found["folder"] == found["parquet"]
    train, val = found["tar"]
    assert (len(train), len(val)) == (23, 8)  # one is cut short
    truth = datasets.ImageFolder(str(copies / "folder" / "val"), loader=lambda path: None)
    assert truth.classes == wordnet_ids(4)
    assert {Path(path).name: label for path, label in truth.samples} == {n: label for n, (label, _) in val.items()}


def test_oddities_are_reported_and_the_damaged_named(copies: Path, cache: Path) -> None:
    """Catches a conversion in silence, and a damaged picture that stops the rest or becomes a grey square."""
    train, val = run(copies / "tar")
    a, b, c, d = wordnet_ids(4)
    assert train.conversions == {"CMYK to RGB": 1, "EXIF orientation": 1, "L to RGB": 1, "PNG named .JPEG": 1}
    assert [s.partition(":")[0] for s in train.skipped] == [f"{a}_1.JPEG"]
    assert val.conversions == {}
    assert val.skipped == ()
    report = "\n".join(train.manifest.report)
    for line in (f"1 CMYK to RGB: {a}_0.JPEG", f"1 L to RGB: {b}_0.JPEG", f"1 EXIF orientation: {c}_0.JPEG",
                 f"1 PNG named .JPEG: {d}_0.JPEG", f"1 damaged and left out: {a}_1.JPEG"):  # fmt: skip
        assert line in report


@pytest.mark.parametrize("fit", ["cut", "shorter"])
def test_pictures_are_what_pillow_makes_of_them(fit: str, copies: Path, cache: Path) -> None:
    """Catches the longer side brought to size, a corner cut out, a sum of colours before the resize, and quality."""
    train, _ = run(copies / "folder", fit=fit)
    kept = by_name(train)
    for path in sorted((copies / "folder" / "train").glob("*/*_[2-5].JPEG")):
        image = Image.open(path)
        width, height = image.size
        scale = 32 / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        if fit == "cut":
            left, top = (image.width - 32) // 2, (image.height - 32) // 2
            image = image.crop((left, top, left + 32, top + 32))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        assert kept[path.name][1] == buffer.getvalue()
    assert train.manifest.quality == 90


def test_a_turned_picture_is_set_upright(tmp_path: Path, cache: Path) -> None:
    """Catches EXIF that is counted and not applied, or applied twice."""
    picture = np.zeros((12, 12, 3), np.uint8)
    picture[:, 6:] = 255  # right half white
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise: the right half comes to lie below
    path = tmp_path / "copy" / "train" / "c" / "a.jpg"
    path.parent.mkdir(parents=True)
    image.save(path, exif=exif, quality=95)
    shown = prepared(tmp_path / "copy", encoding="raw").shard(0).pixels[0]
    assert shown[:5].max() < 60
    assert shown[7:].min() > 195


def test_a_copy_that_is_not_whole_is_refused_before_the_work(copies: Path, tmp_path: Path, cache: Path) -> None:
    """Catches hours of work on half a data set, and a message without the class and the counts."""
    with pytest.raises(DataError) as e:
        list(prepare_imagenet(copies / "tar"))
    said = str(e.value)
    for line in ("4 classes, expected 1,000", "train: 24 pictures, expected 1,281,167",
                 "val: 8 pictures, expected 50,000", f"{wordnet_ids(4)[0]} 2 of 50", "--partial"):  # fmt: skip
        assert line in said
    assert "train: 4 classes" not in said  # the devkit promises six of each
    assert not cache.exists()
    cut = tmp_path / "copy"
    make_imagenet(cut, "tar", classes=4, per_class=6, side=SIDE)
    with tarfile.open(cut / TRAIN_TAR) as old:
        contents = {m.name: old.extractfile(m).read() for m in old.getmembers()[1:]}  # type: ignore[union-attr]
    with tarfile.open(cut / TRAIN_TAR, "w") as new:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    missing = find(cut).missing({"train": 24, "val": 8}, 4)
    assert "train: 18 pictures, expected 24" in missing
    assert f"train: 1 classes with other counts: {wordnet_ids(4)[0]} 0 of 6" in missing


def test_an_archive_is_not_trusted(copies: Path, tmp_path: Path) -> None:
    """Catches a member that leads out of the archive, a link, and an archive cut short."""
    content = (copies / "tar" / VAL_TAR).read_bytes()
    kit = (copies / "tar" / DEVKIT_TAR).read_bytes()
    for k, kind in enumerate(("link", "escape", "short", "no devkit")):
        place = tmp_path / str(k)
        place.mkdir()
        (place / DEVKIT_TAR).write_bytes(kit)
        (place / VAL_TAR).write_bytes(content[: len(content) // 2])
        if kind in ("link", "escape"):
            with tarfile.open(place / VAL_TAR, "w") as archive:
                member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG" if kind == "link" else "../x.JPEG")
                member.type, member.linkname = (tarfile.SYMTYPE, "/etc/passwd") if kind == "link" else (b"0", "")
                archive.addfile(member)
        if kind == "no devkit":
            (place / VAL_TAR).write_bytes(content)
            (place / DEVKIT_TAR).unlink()
        said = {"short": "cut short or damaged", "no devkit": f"{DEVKIT_TAR} is missing"}.get(kind, "not trusted")
        with pytest.raises(DataError, match=said):
            find(place)
    with pytest.raises(DataError, match="no copy of ImageNet"):
        find(tmp_path)


def test_a_damaged_page_is_the_files_fault(tmp_path: Path, cache: Path) -> None:
    """Catches a damaged file taken for a disk that cannot be written: pyarrow raises OSError for both."""
    make_imagenet(tmp_path / "copy", "parquet", classes=4, per_class=6, side=SIDE, odd=False)
    path = tmp_path / "copy" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in a picture
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: not readable as parquet.*CRC"):
        run(tmp_path / "copy")


@pytest.fixture
def undisturbed(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files that a run which nothing interrupts leaves."""
    own_cache(monkeypatch, tmp_path / "undisturbed")
    return files_of(run(copies / "folder")[0].folder)


def test_a_full_disk_costs_only_what_was_not_finished(
    copies: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a half-written shard, a manifest of a split that is not whole, work that is done again, and another
    result than without the interruption.
    """
    place = own_cache(monkeypatch, tmp_path / "cache") / "imagenet"
    original, written = imagenet_shard.write_shard, []

    def full(path: Path, *rest: object) -> object:
        written.append(path.name)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(imagenet_shard, "write_shard", full)
    with pytest.raises(ResourceError, match="the disk is full; finished shards are kept"):
        run(copies / "folder")
    half = place / "train-32.preparing"
    assert sorted(p.name for p in half.glob("*.arrow")) == [f"shard-0000{k}-of-00005.arrow" for k in (0, 1)]
    assert not (place / "train-32").exists()
    written.clear()
    monkeypatch.setattr(imagenet_shard, "write_shard", lambda path, *r: written.append(path.name) or original(path, *r))
    damaged = half / "shard-00001-of-00005.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    found = run(copies / "folder")[0]
    assert [n for n in written if n.endswith("of-00005.arrow")] == [
        f"shard-0000{k}-of-00005.arrow" for k in (1, 2, 3, 4)
    ]
    assert files_of(found.folder) == undisturbed
    assert {p.name for p in place.iterdir()} == {"train-32", "val-32"}


def test_processes_give_the_same_files(
    copies: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an order that depends on which process was faster, and names of files that hold the layout's path."""
    own_cache(monkeypatch, tmp_path / "cache")
    assert files_of(run(copies / "folder", workers=2)[0].folder) == undisturbed


def test_a_killed_process_is_told(copies: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, or a wait for ever, where the system kills a worker."""
    monkeypatch.setattr("repro.data.imagenet.make_shard", kill)
    with pytest.raises(ResourceError, match="was killed"):
        run(copies / "folder", workers=2)


def test_prepared_once(copies: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches work done again without --force, shards of two kinds in one folder, and --force that does nothing."""
    folder = run(copies / "folder")[0].folder
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    run(copies / "folder")
    assert "was prepared before" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    with pytest.raises(DataError, match="prepared before as jpeg, not raw"):
        run(copies / "folder", encoding="raw")
    assert run(copies / "folder", encoding="raw", force=True)[0].encoding == "raw"
    assert Manifest.read(folder) is not None
    assert {p.name for p in folder.parent.iterdir()} == {"train-32", "val-32"}


def test_too_little_room_is_known_before(copies: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches raw pixels that fill the disk after hours: their size is known."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(ResourceError, match="need more than"):
        run(copies / "folder", encoding="raw")


def test_a_split_without_a_picture(tmp_path: Path, cache: Path) -> None:
    """Catches a mean of nothing."""
    for split in ("train", "val"):
        path = tmp_path / "copy" / split / "c" / "a.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no picture can be decoded; the first: train/c/a\.JPEG"):
        prepared(tmp_path / "copy")


def test_the_made_imagenet_is_what_it_says(copies: Path, tmp_path: Path) -> None:
    """Catches pictures that change from run to run, oddities that are none, and classes that look alike."""
    again = make_imagenet(tmp_path / "again", "folder", classes=4, per_class=6, side=SIDE)
    for path in (tmp_path / "again").rglob("*.JPEG"):
        assert path.read_bytes() == (copies / "folder" / path.relative_to(tmp_path / "again")).read_bytes()
    kinds = {kind: next((copies / "folder").rglob(name)) for name, kind in again.items()}
    assert Image.open(kinds["CMYK"]).mode == "CMYK"
    assert Image.open(kinds["grey"]).mode == "L"
    assert Image.open(kinds["PNG"]).format == "PNG"
    assert Image.open(kinds["turned"]).getexif()[0x0112] == 6
    with pytest.raises(OSError, match="truncated"):
        Image.open(kinds["cut short"]).load()
    with pytest.raises(DataError, match="not empty"):
        make_imagenet(copies / "folder", "folder")
    with pytest.raises(DataError, match="at least 5 pictures"):
        make_imagenet(tmp_path / "few", "folder", classes=2, per_class=2)


def test_torchvision_reads_the_made_devkit_as_we_do(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a devkit that only this package understands, classes that stand above others taken for classes, and
    validation labels shifted by one: torchvision has a reader of its own.
    """
    shutil.copy(copies / "tar" / DEVKIT_TAR, tmp_path)
    monkeypatch.setattr(torchvision_imagenet, "_verify_archive", lambda *a: None)  # it knows the real one's md5 alone
    torchvision_imagenet.parse_devkit_archive(tmp_path)
    names_of, theirs = torch.load(tmp_path / torchvision_imagenet.META_FILE, weights_only=True)
    ours = find(copies / "tar")
    assert sorted(names_of) == list(ours.classes)
    assert theirs == [ours.classes[e.label] for e in ours.entries["val"]]


def test_raw_pixels_are_those_of_the_files(tmp_path: Path, cache: Path) -> None:
    """Catches pixels stored in another order of rows, columns or channels."""
    pixels = write_copy(tmp_path / "copy", [(12, 12)] * 6)
    shards = prepared(tmp_path / "copy", encoding="raw")
    seen = np.concatenate([shards.shard(k).pixels for k in range(len(shards.files))])
    np.testing.assert_array_equal(seen, np.stack([pixels[n] for n in names(shards)]))


def test_the_commands(tmp_path: Path, cache: Path) -> None:
    """Catches an option that does not arrive, a report that is not printed, and options that other sets ignore."""
    run_command = CliRunner().invoke
    made = run_command(app, ["data", "make-imagenet", str(tmp_path / "m"), "--classes", "3", "--per-class", "2",
                             "--side", "40", "--layout", "folder"])  # fmt: skip
    assert "n01440000_0.JPEG: CMYK" in made.output
    source = ["--source", str(tmp_path / "m"), "--workers", "1"]
    refused = run_command(app, ["data", "prepare", "imagenet", *source])
    assert isinstance(refused.exception, DataError)
    done = run_command(app, ["data", "prepare", "imagenet", *source, "--partial", "--size", "24", "--fit", "shorter"])
    assert "imagenet train: 5 images, shorter side 24, 3 classes, 1 jpeg shards" in done.output
    assert "1 damaged and left out" in done.output
    squashed, uncut = ["imagenet", *source, "--fit", "squash"], ["mnist", "--fit", "shorter"]
    for wrong in (["imagenet"], ["mnist", *source], squashed, uncut):
        assert isinstance(run_command(app, ["data", "prepare", *wrong]).exception, RecipeError)
