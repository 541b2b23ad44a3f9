"""A prepared split on disk: what it says of itself, damage, order, and shards that are copied from elsewhere."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import own_set
from made import in_memory, names, prepared, write_copy

from repro.data import ImageSet, ShardSet, load, open_set
from repro.data.color import ColorPCA
from repro.data.images import mean_image
from repro.data.shard_files import Manifest
from repro.data.shards import WINDOW, check
from repro.errors import DataError, ReproError, ResourceError

ALL = [(12, 12)] * 22


def flip_bit(path: Path, at: float = 0.5) -> None:
    """One bit, at a fraction of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_statistics_are_those_of_the_pictures_in_memory(encoding: str, tmp_path: Path, cache: Path) -> None:
    """Catches sums of what was encoded instead of what will be decoded, a shard counted twice or left out, and a last,
    shorter shard weighted like a whole one.
    """
    pixels = write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy", encoding=encoding)
    if encoding == "jpeg":
        from repro.data.stream import decode_jpeg

        places = shards.locate(list(range(22)))
        pixels = {n: decode_jpeg(shards.shard(s).encoded(r)) for n, (s, r) in zip(names(shards), places, strict=True)}
    memory = in_memory(shards, pixels)
    np.testing.assert_allclose((shards.mean, shards.std), (memory.mean, memory.std), rtol=1e-12)
    assert shards.mean_image is not None
    torch.testing.assert_close(shards.mean_image, mean_image(memory), atol=1e-7, rtol=0)
    expected = ColorPCA.of(memory)
    torch.testing.assert_close(shards.pca.eigenvalues, expected.eigenvalues)
    torch.testing.assert_close(shards.pca.vectors, expected.vectors)
    assert torch.equal(shards.labels, memory.labels)
    assert (len(shards), shards.input_size, shards.sizes) == (22, memory.input_size, None)


def test_samples_are_dealt_out_over_all_shards(tmp_path: Path, cache: Path) -> None:
    """Catches shards class by class or in the order of the files, and a sample that is lost or there twice."""
    write_copy(tmp_path / "copy", [(12, 12)] * 60)
    shards = prepared(tmp_path / "copy", shard_size=20)
    assert sorted(names(shards)) == sorted(f"{i}.PNG" for i in range(60))
    for k in range(3):
        rows = [int(Path(n).stem) for n in shards.shard(k).column("name")]
        assert 15 < np.mean(rows) < 45
        assert min(shards.shard(k).column("label").count(c) for c in range(3)) >= 2


def test_any_arrow_reader_opens_a_shard(tmp_path: Path, cache: Path) -> None:
    """Catches a format that only this package reads."""
    pixels = write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy", encoding="raw")
    with pa.memory_map(str(shards.folder / shards.files[0].file)) as file:
        rows = pa.ipc.open_file(file).read_all().to_pylist()
    for row in rows:
        assert row["image"] == pixels[Path(row["name"]).name].tobytes()
        assert (row["height"], row["width"]) == (12, 12)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9])
def test_a_flipped_bit_is_named_when_the_shard_is_opened(at: float, tmp_path: Path, cache: Path) -> None:
    """Catches a digest that nobody compares: JPEG decoders accept most flipped bits."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    flip_bit(shards.folder / shards.files[2].file, at)
    opened = ShardSet(shards.folder)
    opened.shard(1)
    with pytest.raises(DataError, match=r"shard-00002-of-00006.arrow: damaged: its sha256"):
        opened.shard(2)


@pytest.mark.parametrize("file", ["index.arrow", "mean_image.npy", "manifest.json"])
def test_a_flipped_bit_beside_the_shards_is_named(file: str, tmp_path: Path, cache: Path) -> None:
    """Catches labels or a mean image that are believed unseen."""
    write_copy(tmp_path / "copy", ALL)
    folder = prepared(tmp_path / "copy").folder
    flip_bit(folder / file)
    with pytest.raises(DataError, match=file):
        _ = ShardSet(folder).mean_image


def test_a_shard_cut_short_or_missing_is_named_at_once(tmp_path: Path, cache: Path) -> None:
    """Catches a run that ends hours later, when it comes to the shard."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    path = shards.folder / shards.files[3].file
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"shard-00003-of-00006.arrow: damaged: {len(content) - 1:,} bytes, expected"):
        ShardSet(shards.folder)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00003-of-00006.arrow: damaged: No such file"):
        ShardSet(shards.folder)


def test_going_on_without_damaged_shards(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a shard left out in silence, labels that no longer belong to their samples, and a digest that lets a run
    be resumed on other data.
    """
    write_copy(tmp_path / "copy", ALL)
    whole = prepared(tmp_path / "copy")
    flip_bit(whole.folder / whole.files[2].file)
    (whole.folder / whole.files[5].file).unlink()
    expected = [Path(n).name for k in (0, 1, 3, 4) for n in whole.shard(k).column("name")]
    left = ShardSet(whole.folder, on_damage="skip")
    said = capsys.readouterr().err
    assert "going on without 2 of 6 shards, 6 of 22 samples" in said
    assert "shard-00002" in said
    assert "shard-00005" in said
    assert names(left) == expected
    assert left.labels.tolist() == [int(Path(n).stem) % 3 for n in expected]
    assert left.digest != whole.digest
    assert len(left.skipped) == 2
    for file in whole.files:
        (whole.folder / file.file).unlink(missing_ok=True)
    with pytest.raises(DataError, match="every shard is damaged"):
        ShardSet(whole.folder, on_damage="skip")


def test_the_order_through_windows(tmp_path: Path, cache: Path) -> None:
    """Catches a sample left out or visited twice, windows that are not kept to, and the same order every epoch."""
    write_copy(tmp_path / "copy", [(12, 12)] * 85)
    shards = prepared(tmp_path / "copy", shard_size=2)
    assert len(shards.files) == 43
    orders = [shards.order(seed, epoch).tolist() for seed, epoch in itertools.product((0, 1), (0, 1))]
    for order in orders:
        assert sorted(order) == list(range(85))
        seen = [shard for shard, _ in shards.locate(order)]
        first = list(dict.fromkeys(seen))
        for k, shard in enumerate(first):
            span = [i for i, s in enumerate(seen) if s == shard]
            assert span[-1] < 2 * WINDOW * (k // WINDOW + 1)
            assert span[0] >= 2 * WINDOW * (k // WINDOW) - 1  # one shard holds a single sample
        assert order[:32] != sorted(order[:32])
    assert len({tuple(o) for o in orders}) == 4
    assert shards.order(0, 1).tolist() == orders[1]


def test_a_sample_that_does_not_exist(tmp_path: Path, cache: Path) -> None:
    """Catches an index past the end, or before the start, that lands on another sample."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    for wrong in (22, -1):
        with pytest.raises(DataError, match="no sample"):
            shards.locate([0, wrong])


def test_open_set_gives_shards_where_there_are_some(tmp_path: Path, cache: Path, data: Path) -> None:
    """Catches the shards of another size or fit, and a set in memory that is no longer found."""
    write_copy(tmp_path / "copy", ALL)
    prepared(tmp_path / "copy")
    found = open_set("imagenet", "train", size=12)
    assert isinstance(found, ShardSet)
    assert "22 images" in repr(found)
    for other in ({"size": 13}, {"size": 12, "fit": "shorter"}, {}):
        with pytest.raises(ReproError, match=r"repro data prepare imagenet --source DIR|fit 'shorter'"):
            open_set("imagenet", "train", **other)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="too large to be decoded into memory"):
        load("imagenet", "train")
    own_set(data)
    assert isinstance(open_set("pets", "train"), ImageSet)


def test_shards_are_copied_when_they_are_needed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that copies everything first, asks again for what it has, or believes a damaged copy."""
    write_copy(tmp_path / "copy", ALL)
    there = prepared(tmp_path / "copy")
    expected = bytes(there.shard(1).encoded(2))
    remote = tmp_path / "bucket" / "imagenet" / "train-12"
    remote.parent.mkdir(parents=True)
    shutil.move(there.folder, remote)
    monkeypatch.setenv("REPRO_SHARDS", f"file://{tmp_path / 'bucket'}")
    found = open_set("imagenet", "train", size=12)
    assert isinstance(found, ShardSet)
    assert bytes(found.shard(1).encoded(2)) == expected
    assert {p.name for p in found.folder.iterdir()} == {"manifest.json", "index.arrow", "shard-00001-of-00006.arrow"}
    flip_bit(remote / "shard-00002-of-00006.arrow")
    with pytest.raises(DataError, match=r"shard-00002-of-00006.arrow: damaged: its sha256"):
        found.shard(2)
    (remote / "shard-00003-of-00006.arrow").unlink()
    with pytest.raises(DataError, match=r"bucket/imagenet/train-12/shard-00003-of-00006.arrow: cannot be read"):
        found.shard(3)
    monkeypatch.setattr(
        "repro.data.shard_files.write_atomic", lambda path, data: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(ResourceError, match=r"shard-00004-of-00006.arrow: cannot be written \(full\)"):
        found.shard(4)


def test_check_opens_every_shard(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that looks at the manifest alone."""
    write_copy(tmp_path / "copy", [(256, 256)] * 6)
    shards = prepared(tmp_path / "copy", size=256)
    assert check("imagenet", "train").endswith("whole")
    flip_bit(shards.folder / shards.files[1].file)
    with pytest.raises(DataError, match=r"1 shards are damaged: .*shard-00001"):
        check("imagenet", "train")


def test_a_manifest_is_what_was_written(tmp_path: Path, cache: Path) -> None:
    """Catches a manifest that someone edited and left with its old sha256, and unknown keys."""
    write_copy(tmp_path / "copy", ALL)
    path = prepared(tmp_path / "copy").folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"source": "elsewhere"}))
    with pytest.raises(DataError, match="its sha256 is not the one it states"):
        Manifest.read(path.parent)
    assert Manifest.read(tmp_path) is None
