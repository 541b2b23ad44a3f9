"""Batches from shards on disk against the same pictures in memory, and against decoding and cutting by hand."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from made import in_memory, names, prepared, write_copy
from PIL import Image
from torchvision.transforms import functional as TF

from repro.data import stream
from repro.data.augmentation import Augmentation, Batches
from repro.data.images import mean_image
from repro.errors import DataError

ALL = [(12, 12)] * 22
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
DECODERS = [None] if stream.simplejpeg is None else [None, stream.simplejpeg]
EVERYTHING = Augmentation(crop_padding=2, flip=True, crop=9, crop_chunk=4, color_noise=0.1)


@pytest.mark.parametrize(
    ("augmentation", "border", "cut"),
    [
        (Augmentation(), 0, None),
        (EVERYTHING, 1, None),
        (EVERYTHING, 0, "crop"),
        (EVERYTHING, 1, "centre"),
        (Augmentation(crop=8, flip=True, rotation=10, shift=0.1), 0, None),
    ],
)
def test_raw_shards_give_the_bits_of_memory(
    augmentation: Augmentation, border: int, cut: str | None, tmp_path: Path, cache: Path
) -> None:
    """Catches samples out of order, padding or a mean image that is applied twice or not at all, and draws by place in
    the batch: each of the three kinds of batches has to be the same to the bit.
    """
    pixels = write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy", encoding="raw")
    memory = in_memory(shards, pixels)
    assert len(shards.files) == 6
    options = {"augmentation": augmentation, "border": border, "pca": shards.pca}
    if cut:
        options |= {"mean_image": mean_image(memory), "mean_image_cut": cut}
    ours, expected = (Batches(s, MEAN, STD, **options) for s in (shards, memory))  # type: ignore[arg-type]
    order = torch.randperm(22, generator=torch.Generator().manual_seed(1))
    ours.expect(order.split(5))
    for batch in order.split(5):
        for found, wanted in zip(ours.augmented(batch, 3, 1), expected.augmented(batch, 3, 1), strict=True):
            assert torch.equal(found, wanted)
    for start in range(0, 22, 6):
        for found, wanted in zip(ours.plain(start, start + 6), expected.plain(start, start + 6), strict=True):
            assert torch.equal(found, wanted)
        for found, wanted in zip(ours.ten_views(start, start + 6), expected.ten_views(start, start + 6), strict=True):
            assert torch.equal(found, wanted)
    ours.close()


@pytest.mark.parametrize("decoder", DECODERS)
def test_jpeg_shards_are_decoded_as_pillow_does(
    decoder: object, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches BGR for RGB, a decoder with another transform or upsampling, and bytes of the neighbouring sample."""
    monkeypatch.setattr(stream, "simplejpeg", decoder)
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    found, labels = Batches(shards, (0.0,) * 3, (1 / 255,) * 3).plain(0, 22)
    for i, (shard, row) in enumerate(shards.locate(list(range(22)))):
        by_hand = np.asarray(Image.open(io.BytesIO(shards.shard(shard).encoded(row))))
        np.testing.assert_allclose(found[i].permute(1, 2, 0), by_hand, atol=1e-4)
    assert labels.tolist() == [int(n.split(".")[0]) % 3 for n in names(shards)]


def test_a_part_of_a_batch_is_that_part(tmp_path: Path, cache: Path) -> None:
    """Catches chunks counted from the part's own start, labels of the whole batch, and pictures decoded for others."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    batches = Batches(shards, MEAN, STD, augmentation=EVERYTHING, pca=shards.pca)
    order = torch.randperm(22, generator=torch.Generator().manual_seed(1))
    whole, labels = batches.augmented(order, 3, 1)
    for part in (slice(0, 7), slice(7, 15), slice(15, None), slice(1, 22, 3), slice(22, 22)):
        found, its_labels = batches.augmented(order, 3, 1, part)
        assert torch.equal(found, whole[part])
        assert torch.equal(its_labels, labels[part])


def test_expected_batches_are_decoded_once_and_not_all_at_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stream that decodes everything at once, decodes a batch again when it is asked for, hands out a wrong
    one when something else is asked for, or loses its place after that.
    """
    pixels = write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy", encoding="raw")
    memory = in_memory(shards, pixels)
    decoded: list[int] = []
    original = stream.decode_rows

    def counting(images, places, target, start) -> None:
        decoded.extend(int(images.starts[s]) + r for s, r in places)
        original(images, places, target, start)

    monkeypatch.setattr(stream, "decode_rows", counting)
    batches = Batches(shards, (0.0,) * 3, (1 / 255,) * 3, workers=1)
    read: list[int] = []

    def order():
        for start in range(0, 22, 2):
            read.append(start)
            yield torch.arange(start, start + 2)

    batches.expect(order())
    for step, start in enumerate(range(0, 22, 2)):
        if step == 3:
            assert torch.equal(batches.plain(20, 22)[0], Batches(memory, (0.0,) * 3, (1 / 255,) * 3).plain(20, 22)[0])
        found, _ = batches.plain(start, start + 2)
        assert torch.equal(found.permute(0, 2, 3, 1).round().to(torch.uint8), memory.images[start : start + 2])
        assert len(read) <= step + 1 + stream.BATCHES_AHEAD
    assert sorted(decoded) == sorted([*range(22), 20, 21])
    batches.expect(torch.arange(22).split(2))
    batches.plain(2, 4)  # the first is left out: the place is found again
    decoded.clear()
    batches.plain(4, 6)
    assert 4 not in decoded
    batches.close()


def test_threads_end_and_waiting_is_counted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches threads that outlive their set, and time that was waited and not counted."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    original = stream.decode_rows

    def slow(*arguments) -> None:
        threading.Event().wait(0.05)
        original(*arguments)

    monkeypatch.setattr(stream, "decode_rows", slow)
    batches = Batches(shards, MEAN, STD, workers=2)
    assert batches.waited_s == 0
    batches.plain(0, 3)
    assert 0.04 < batches.waited_s < 5
    batches.expect(torch.arange(22).split(3))
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decoding")]
    assert batches.plain(0, 3)[0].shape == (3, 3, 12, 12)  # and starts them again
    batches.close()


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path, cache: Path) -> None:
    """Catches an error that is lost in a thread, and a picture left as it was before."""
    write_copy(tmp_path / "copy", ALL)
    shards = prepared(tmp_path / "copy")
    opened = shards.shard(1)
    whole = opened.encoded(2)
    cut = bytes(whole[: len(whole) // 2]).ljust(len(whole), b"\0")
    opened._data = memoryview(bytes(opened._data).replace(bytes(whole), cut))
    batches = Batches(shards, MEAN, STD)
    batches.expect([torch.arange(8)])
    with pytest.raises(DataError, match=r"shard-00001-of-00006.arrow: row 2: the picture cannot be decoded"):
        batches.plain(0, 8)
    batches.close()


SIZES = [(12, 12 + i % 7) if i % 2 else (12 + i % 5, 12) for i in range(22)]


def test_windows_of_pictures_of_any_size(tmp_path: Path, cache: Path) -> None:
    """Catches a window drawn over another picture's range, rows for columns, and one that never reaches an edge."""
    pixels = write_copy(tmp_path / "copy", SIZES)
    shards = prepared(tmp_path / "copy", fit="shorter", size=12)
    own = [pixels[n].shape[:2] for n in names(shards)]
    assert shards.sizes is not None
    assert shards.sizes.tolist() == [list(s) for s in own]
    decoded = [stream.decode_jpeg(shards.shard(s).encoded(r)) for s, r in shards.locate(list(range(22)))]
    batches = Batches(shards, MEAN, STD, augmentation=Augmentation(crop=10, flip=True))
    order = torch.randperm(22, generator=torch.Generator().manual_seed(4))
    found, _ = batches.augmented(order, 5, 2)
    drawn = batches.draw(order, 5, 2)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    for k, i in enumerate(order.tolist()):
        picture = torch.from_numpy(decoded[i]).permute(2, 0, 1)
        cut = TF.crop(picture, int(drawn.top[k]), int(drawn.left[k]), 10, 10)
        expected = TF.normalize((TF.hflip(cut) if drawn.mirrored[k] else cut).double() / 255, MEAN, STD)
        torch.testing.assert_close(found[k].double(), expected, atol=2e-6, rtol=0)
    epochs = [batches.draw(order, 5, epoch) for epoch in range(200)]
    for axis, offsets in enumerate((torch.stack([e.top for e in epochs]), torch.stack([e.left for e in epochs]))):  # type: ignore[misc]
        assert offsets.min(0).values.tolist() == [0] * 22
        assert offsets.max(0).values.tolist() == [own[i][axis] - 10 for i in order.tolist()]
    plain, _ = batches.plain(3, 9)
    views, _ = batches.ten_views(3, 9)
    for k, i in enumerate(range(3, 9)):
        picture = torch.from_numpy(decoded[i]).permute(2, 0, 1).double() / 255
        five = [TF.normalize(v, MEAN, STD) for v in TF.five_crop(picture, [10, 10])[:4]]
        top, left = ((side - 10) // 2 for side in own[i])
        five.append(TF.normalize(TF.crop(picture, top, left, 10, 10), MEAN, STD))
        expected = torch.stack([*five, *map(TF.hflip, five)])
        torch.testing.assert_close(views[k].double(), expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(plain[k].double(), five[4], atol=2e-6, rtol=0)


def test_what_pictures_of_any_size_cannot_have(tmp_path: Path, cache: Path) -> None:
    """Catches a border or rotation that is left out without a word, and a crop larger than the smallest picture."""
    write_copy(tmp_path / "copy", SIZES)
    shards = prepared(tmp_path / "copy", fit="shorter", size=12)
    for wrong in (Augmentation(), Augmentation(crop=10, crop_padding=1), Augmentation(crop=10, rotation=3)):
        with pytest.raises(DataError, match="its pictures differ in size"):
            Batches(shards, MEAN, STD, augmentation=wrong)
    with pytest.raises(DataError, match="crop of 13×13 is larger than the picture of 12×12"):
        Batches(shards, MEAN, STD, augmentation=Augmentation(crop=13))
