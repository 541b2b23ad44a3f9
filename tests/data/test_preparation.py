"""Pictures of any kind as a net takes them, against the batches of training or arithmetic by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode
from PIL import Image

from repro import data
from repro.data.augmentation import Augmentation, Batches
from repro.data.preparation import Preparation
from repro.errors import DataError

MEAN, STD = torch.tensor([0.5, 0.25, 0.125])[:, None, None], torch.tensor([0.5, 0.25, 0.5])[:, None, None]
PLAIN = Preparation(4, 4, MEAN, STD)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def standardised(pixels: np.ndarray) -> torch.Tensor:
    """(value / 255 − mean) / std, pixel by pixel."""
    out = torch.zeros(1, 3, 4, 4)
    for c in range(3):
        for y in range(4):
            for x in range(4):
                out[0, c, y, x] = (int(pixels[y, x, c]) / 255 - float(MEAN[c])) / float(STD[c])
    return out


def test_every_kind_of_picture_gives_the_same_numbers(tmp_path: Path) -> None:
    """Catches channels and rows exchanged, a division by 255 left out for one of the kinds, and an alpha channel taken
    for a colour."""
    file = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(file)
    opaque = np.dstack([PIXELS, np.full((4, 4), 255, np.uint8)])
    kinds = (PIXELS, torch.from_numpy(PIXELS), Image.fromarray(PIXELS), file, str(file), file.read_bytes(), opaque)
    for picture in kinds:
        torch.testing.assert_close(PLAIN(picture), standardised(PIXELS))
    assert PLAIN([PIXELS, file]).shape == PLAIN(np.stack([PIXELS] * 2)).shape == (2, 3, 4, 4)


def test_modes_of_pillow_are_brought_to_the_channels_of_the_net() -> None:
    """Catches grey read as one channel of three, CMYK as colours of light, and palette numbers as greys."""
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    grey = Preparation(4, 4, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    for mode in ("RGBA", "P", "CMYK"):
        shown = PLAIN.show(PLAIN(red.convert(mode)))[0]
        assert shown[0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.01)
    assert grey(red).shape == (1, 1, 4, 4)
    assert grey(red).flatten()[0] == pytest.approx(76 / 255)  # 0.299 of 255
    assert PLAIN.show(PLAIN(red.convert("L")))[0, 0, 0].tolist() == pytest.approx([76 / 255] * 3)


def test_a_rotated_photograph_stands_upright() -> None:
    """Catches EXIF ignored."""
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encode(Image.fromarray(PIXELS), "PNG", exif=exif)
    torch.testing.assert_close(PLAIN(turned), standardised(PIXELS[::-1, ::-1]))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 values, whose range nothing states"),
        (np.zeros((4, 4), np.uint16), "uint16 values"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\) is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits per channel"),
        ("absent.jpg", "absent.jpg: cannot be used: .*No such file"),
        (b"no picture", "cannot be used: cannot identify"),
        (3, "int is not one"),
        ([], "the sequence is empty"),
    ],
)
def test_what_is_no_picture_of_8_bits_is_refused(picture: object, message: str) -> None:
    """Catches 16 bits cut to 8 by saturation, floats of an unknown range, and a traceback of Pillow's."""
    with pytest.raises(DataError, match=message):
        PLAIN(picture)


def test_a_net_is_asked_as_it_was_trained() -> None:
    """The same picture by way of `Batches`, which training uses. Catches a crop off the centre, and a mean and a
    deviation in units of 0…255."""
    flowers = data.load("flowers", "val", size=32, fallback="shapes")
    batches = Batches(flowers, flowers.mean, flowers.std, augmentation=Augmentation(crop=20))
    mean, std = (torch.tensor(values)[:, None, None] for values in (flowers.mean, flowers.std))
    prepare = Preparation(flowers.images.shape[1], 20, mean, std)
    wanted = batches.plain(0, 3)[0]
    torch.testing.assert_close(prepare(flowers.images[:3]), wanted.contiguous(), atol=1e-5, rtol=1e-5)


def test_a_border_is_added_as_zeros_before_standardising() -> None:
    """Catches a border of the mean: LeNet-5's background of 28×28 in 32×32 is black."""
    prepare = Preparation(4, 6, MEAN, STD)
    found = prepare(PIXELS)
    torch.testing.assert_close(found[:, :, 1:5, 1:5], standardised(PIXELS))
    torch.testing.assert_close(found[0, :, 0, 0], (-MEAN / STD).flatten())


def test_show_is_the_way_back_and_bounds_are_black_and_white() -> None:
    """Catches a mean added before the deviation is multiplied."""
    x = PLAIN(PIXELS)
    torch.testing.assert_close(PLAIN.show(x)[0], torch.from_numpy(PIXELS).float() / 255)
    black, white = PLAIN.bounds
    torch.testing.assert_close(black[0], PLAIN(np.zeros((4, 4, 3), np.uint8))[0, :, :1, :1])
    torch.testing.assert_close(white[0], PLAIN(np.full((4, 4, 3), 255, np.uint8))[0, :, :1, :1])
    assert PLAIN.show(100 * x.abs()).max() == 1
