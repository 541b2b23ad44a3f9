"""Pictures of every mode and orientation, against Pillow asked directly or against pixels laid out by hand."""

import struct
import zlib

import numpy as np
import pytest
from helpers import encode
from PIL import Image

from repro.data.decode import Target, centre_square, decode, decode_all, squashed
from repro.errors import DataError

RGB, GREY = Target(3), Target(1)
ORIENTATION = 0x0112
# 2 rows of 3, all different: where each pixel has to be after turning.
SCENE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF standard's table: what the stored array looks like when shown as it should be."""
    transposed = stored.transpose(1, 0, 2)
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }[orientation]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_counted(orientation: int, kind: str) -> None:
    """Catches EXIF ignored (Pillow's default), or looked for in JPEGs alone, and a turn in the wrong sense."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pixels, conversions = decode(encode(Image.fromarray(SCENE), kind, exif=exif, **lossless), RGB)
    np.testing.assert_array_equal(pixels, upright(SCENE, orientation))
    assert conversions == ([] if orientation == 1 else ["EXIF orientation"])


def test_jpeg_orientation_is_applied() -> None:
    """Catches a reader that asks for EXIF only after the size was taken."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    halves = np.zeros((16, 32, 3), np.uint8)
    halves[:, 16:] = 255  # the right half is bright; turned by 90° clockwise the lower half is
    pixels, conversions = decode(encode(Image.fromarray(halves), "JPEG", exif=exif, quality=95), RGB)
    assert pixels.shape == (32, 16, 3)
    assert pixels[:12].max() < 60
    assert pixels[20:].min() > 200
    assert conversions == ["EXIF orientation"]


@pytest.mark.parametrize(
    ("mode", "kind", "target", "expected"),
    [
        ("CMYK", "JPEG", RGB, ["CMYK to RGB"]),
        ("L", "PNG", RGB, ["L to RGB"]),
        ("P", "PNG", RGB, ["P to RGB"]),
        ("RGBA", "PNG", RGB, ["RGBA to RGB"]),
        ("LA", "PNG", GREY, ["LA to L"]),
        ("1", "PNG", GREY, ["1 to L"]),
        ("RGB", "PNG", GREY, ["RGB to L"]),
        ("RGB", "PNG", RGB, []),
        ("L", "PNG", GREY, []),
    ],
)
def test_conversions_of_mode_are_counted(mode: str, kind: str, target: Target, expected: list[str]) -> None:
    """Catches a CMYK or palette picture taken for RGB, and a conversion that nobody hears of."""
    image = Image.new("RGB", (5, 4), (204, 51, 102)).convert(mode)
    stored = encode(image, kind)
    pixels, conversions = decode(stored, target)
    assert conversions == expected
    assert pixels.shape == (4, 5, target.channels)
    assert pixels.dtype == np.uint8
    if mode != "1":
        grey = 0.299 * 204 + 0.587 * 51 + 0.114 * 102
        wanted = np.array([grey] * target.channels if mode in ("L", "LA") or target is GREY else [204, 51, 102])
        assert np.abs(pixels.reshape(-1, target.channels) - wanted).max() <= 8


def png_of_16_bits(colour_type: int, channels: int) -> bytes:
    """A 2×2 PNG with 16 bits per channel, chunk by chunk."""
    rows = b"".join(b"\0" + bytes(range(2 * channels * 2)) for _ in range(2))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_refused_in_grey_and_colour(colour_type: int, channels: int) -> None:
    """Catches the saturation of grey to 8 bits, and colour, of which Pillow drops the lower byte without a word."""
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        decode(png_of_16_bits(colour_type, channels), RGB)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(mode: str) -> None:
    """Catches integers and floats cut to 0…255."""
    with pytest.raises(DataError, match=f"opened as mode {mode}"):
        decode(encode(Image.new(mode, (2, 2)), "TIFF"), GREY)


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


def test_resizing_is_antialiased() -> None:
    """Catches sampling without a filter: fine stripes have to become grey."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    pixels, _ = decode(encode(Image.fromarray(stripes)), Target(1, 16))
    assert np.abs(pixels.astype(int) - 127).max() < 30


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
