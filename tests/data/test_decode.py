"""Pictures brought to size and decoded many at a time; odd ones are in `tests/torture/test_09_odd_images.py`."""

import numpy as np
import pytest
from helpers import encode
from PIL import Image

from repro.data.decode import Target, centre_square, decode, decode_all, squashed
from repro.errors import DataError

RGB, GREY = Target(3), Target(1)


@pytest.mark.parametrize(
    ("mode", "expected"), [("LA", ["LA to L"]), ("1", ["1 to L"]), ("RGB", ["RGB to L"]), ("L", [])]
)
def test_conversions_to_grey_are_counted(mode: str, expected: list[str]) -> None:
    """Catches a conversion that nobody hears of, and channels weighted alike. Colour: `test_09_odd_images.py`."""
    stored = encode(Image.new("RGB", (5, 4), (204, 51, 102)).convert(mode))
    pixels, conversions = decode(stored, GREY)
    assert conversions == expected
    assert pixels.shape == (4, 5, 1)
    assert pixels.dtype == np.uint8
    if mode != "1":
        assert np.abs(pixels - (0.299 * 204 + 0.587 * 51 + 0.114 * 102)).max() <= 1


def test_centre_square_resizes_the_shorter_side_and_cuts_the_middle() -> None:
    """Catches a stretched picture, a corner instead of the middle, and rows for columns."""
    stripes = np.zeros((30, 60, 3), np.uint8)
    stripes[:, 15:45] = 255  # the middle square
    cut = np.asarray(centre_square(Image.fromarray(stripes), 30))
    assert cut.shape == (30, 30, 3)
    assert cut.min() == 255
    tall = np.asarray(centre_square(Image.fromarray(stripes.transpose(1, 0, 2)), 10))
    assert tall.shape == (10, 10, 3)
    assert tall[1:-1].min() > 200


def test_squash_keeps_all_of_the_picture() -> None:
    """Catches a cut in place of the squash, one that keeps the proportions, and sides that stay as they were."""
    thirds = np.zeros((30, 90, 3), np.uint8)
    for third, channel in enumerate((0, 1, 2)):
        thirds[:, 30 * third : 30 * third + 30, channel] = 255
    pixels, _ = decode(encode(Image.fromarray(thirds)), Target(3, 30, "squash"))
    assert pixels.shape == (30, 30, 3)
    assert [pixels[15, x].argmax() for x in (4, 15, 25)] == [0, 1, 2]
    assert np.abs(pixels[15, 4].astype(int) - (255, 0, 0)).max() < 5
    cut, _ = decode(encode(Image.fromarray(thirds)), Target(3, 30))
    assert (cut[..., 1] > 250).all()


def test_squash_is_pillows_antialiased_bicubic() -> None:
    """Catches sampling without a filter along the side that shrinks more."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (16, 32)))
    assert np.abs(np.asarray(squashed(stripes, 16)).astype(int) - 127).max() < 30


def test_many_are_decoded_in_their_order_and_conversions_add_up() -> None:
    """Catches threads that write into each other's places, a lost last chunk, and counters that overwrite."""
    images = [Image.new("L" if i % 3 else "RGB", (3, 3), i % 256 if i % 3 else (i % 256,) * 3) for i in range(700)]
    pixels, conversions = decode_all([encode(i) for i in images], GREY, "test", str)
    assert pixels[:, 0, 0, 0].tolist() == [i % 256 for i in range(700)]
    assert conversions == {"RGB to L": 234}


def test_the_first_fault_is_reported_whatever_thread_meets_it() -> None:
    """Catches an error from a later chunk, or one that is swallowed in its thread."""
    encoded = [encode(Image.new("L", (3, 3)))] * 1000
    for i in (300, 900):
        encoded[i] = b"broken"
    with pytest.raises(DataError, match=r"^row 300: the image cannot be decoded"):
        decode_all(encoded, GREY, "test", lambda i: f"row {i}")


def test_faults_are_noted_and_left_out_when_asked_for() -> None:
    """Catches holes left where a picture was skipped, pictures moved out of their order, conversions counted for
    pictures that are not there, and a fault that another thread forgets.
    """
    encoded = [encode(Image.new("RGB", (3, 3), (i % 256, 0, 0))) for i in range(600)]
    for i in (0, 299, 300, 599):
        encoded[i] = b"broken"
    encoded[7] = encode(Image.fromarray(np.arange(30000, dtype=np.uint8).reshape(100, 300)), "JPEG")[:900]
    faults = {5: "unreadable"}
    pixels, conversions = decode_all(encoded, Target(3, 3), "test", str, faults)
    assert sorted(faults) == [0, 5, 7, 299, 300, 599]
    assert pixels[:, 0, 0, 0].tolist() == [i % 256 for i in range(600) if i not in faults]
    assert faults[5] == "unreadable"
    assert faults[0] == "0: the image cannot be decoded (no image format that is known here)"
    assert "truncated" in faults[7]
    assert conversions == {}


def test_faults_everywhere_are_an_error() -> None:
    """Catches an empty set that is prepared without a word."""
    with pytest.raises(DataError, match=r"none of 2 pictures can be decoded; the first: row 0: the image"):
        decode_all([b"x", b"y"], GREY, "test", lambda i: f"row {i}", {})
