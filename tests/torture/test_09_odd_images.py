"""Row 9: odd pictures, each with the outcome that is promised: these pixels and these conversions, or a refusal.

Expected pixels are laid out by hand, or for JPEG, which loses some, are what Pillow makes of the file before anything
is turned or converted; the conversions are written out here once more.
"""

import io
import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import in_a_fork
from helpers import encode
from PIL import Image, ImageCms
from tier import Finding

from repro.data import load
from repro.data.decode import Target, decode, decode_all
from repro.data.imagenet import prepare_imagenet
from repro.errors import DataError

ORIENTATION = 0x0112
# 2 rows of 3, all different: where each pixel has to be after turning.
SCENE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
PHOTO = np.kron(SCENE, np.ones((8, 8, 1), np.uint8))
GREY = SCENE[..., 0]
LIMIT = "exceeds limit of"
UNKNOWN = "no image format that is known here"
WIDE = "more than 8 bits per channel"
ROOM = 2**26  # bytes; 20000×20000 pixels in colour are 1.2 GB


@dataclass(frozen=True)
class Odd:
    """A file, and the pixels (H, W, 3) with the conversions, or words of the refusal, that it has to give."""

    name: str
    content: bytes
    pixels: np.ndarray | None
    conversions: tuple[str, ...] = ()
    refusal: str = ""


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF standard's table: what the stored array looks like when shown as it should be."""
    transposed = stored.transpose(1, 0, 2)
    return {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }.get(orientation, stored)


def saved(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    return encode(image.convert(mode) if mode else image, kind, **options)


def seen(content: bytes) -> np.ndarray:
    """What Pillow opens, neither turned nor converted."""
    return np.asarray(Image.open(io.BytesIO(content)))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


def turned() -> list[Odd]:
    """Each orientation, and two that do not exist, in each format that has EXIF."""
    found = []
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        for orientation in (*range(1, 9), 0, 9):
            options = {"lossless": True} if kind == "WEBP" else {}
            content = saved(PHOTO if kind == "JPEG" else SCENE, kind, exif=exif(orientation), **options)
            lies = seen(content) if kind == "JPEG" else SCENE
            counted = ("EXIF orientation",) if 2 <= orientation <= 8 else ()
            found.append(Odd(f"exif{orientation}.{suffix}", content, upright(lies, orientation), counted))
    return found


def from_cmyk(stored: np.ndarray) -> np.ndarray:
    """(1 − ink)(1 − black) of each channel, as Pillow rounds it."""
    ink, light = stored[..., :3].astype(int), 255 - stored[..., 3:].astype(int)
    product = ink * light + 128
    return np.clip(light - ((product >> 8) + product >> 8), 0, 255).astype(np.uint8)


def of_modes() -> list[Odd]:
    """Colour spaces, palettes and transparency: what is not shown is dropped, and counted."""
    inks = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 10
    cmyk_tif = encode(Image.fromarray(inks, "CMYK"), "TIFF")
    cmyk_jpg = saved(PHOTO, "JPEG", "CMYK")
    clear = np.dstack([SCENE, np.full((2, 3), 7, np.uint8)])
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    palette.putpalette(SCENE.tobytes())
    black = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    grey_jpg = saved(np.kron(GREY, np.ones((8, 8), np.uint8)), "JPEG")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        Odd("cmyk.tif", cmyk_tif, from_cmyk(inks), ("CMYK to RGB",)),
        Odd("cmyk.jpg", cmyk_jpg, from_cmyk(seen(cmyk_jpg)), ("CMYK to RGB",)),
        Odd("grey.png", saved(GREY), grey(GREY), ("L to RGB",)),
        Odd("grey.jpg", grey_jpg, grey(seen(grey_jpg)), ("L to RGB",)),
        Odd("la.png", saved(np.dstack([GREY, 255 - GREY])), grey(GREY), ("LA to RGB",)),
        Odd("rgba.png", saved(clear), SCENE, ("RGBA to RGB",)),
        Odd("rgba.webp", saved(clear, "WEBP", lossless=True, exact=True), SCENE, ("RGBA to RGB",)),
        Odd("palette.png", encode(palette), SCENE, ("P to RGB",)),
        Odd("palette.gif", encode(palette, "GIF"), SCENE, ("P to RGB",)),
        Odd("palette.bmp", encode(palette, "BMP"), SCENE, ("P to RGB",)),
        Odd("clear-palette.png", encode(palette, transparency=2), SCENE, ("P to RGB",)),
        Odd("clear-colour.png", saved(SCENE, transparency=(0, 14, 28)), SCENE),
        Odd("black.png", encode(Image.fromarray(black).convert("1")), grey(black), ("1 to RGB",)),
        Odd("black.tif", encode(Image.fromarray(black).convert("1"), "TIFF"), grey(black), ("1 to RGB",)),
        Odd("profile.png", saved(SCENE, icc_profile=profile), SCENE),
    ]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bmp_of_16_bits(array: np.ndarray) -> bytes:
    """Five bits for each channel."""
    b, g, r = (array[::-1, :, c].astype(int) >> 3 for c in (2, 1, 0))
    rows = b"".join(struct.pack("<3H2x", *row) for row in (r << 10 | g << 5 | b).tolist())
    head = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + head + rows


def of_depths() -> list[Odd]:
    """More bits than eight are refused; fewer are stretched to eight."""
    refused = [
        Odd(f"wide{colour_type}.png", png(2, 2, 16, colour_type, (b"\0" + bytes(range(4 * c))) * 2), None, refusal=WIDE)
        for colour_type, c in ((0, 1), (2, 3), (4, 2), (6, 4))
    ]
    refused += [
        Odd(f"wide-{mode}.tif", encode(Image.new(mode, (2, 2)), "TIFF"), None, refusal=f"opened as mode {mode}")
        for mode in ("I", "F", "I;16")
    ]
    refused += [
        Odd("wide.ppm", b"P6 2 1 65535\n" + bytes(range(12)), None, refusal=WIDE),
        Odd("wide.pgm", b"P5 2 1 65535\n" + bytes(range(4)), None, refusal=WIDE),
        Odd("wide-text.ppm", b"P3 1 1 4095\n1 2 4095\n", None, refusal=WIDE),
    ]
    five_bits = ((SCENE.astype(int) >> 3) * 255 // 31).astype(np.uint8)
    return [
        *refused,
        Odd("four-bits.ppm", b"P6 3 2 15\n" + bytes(range(15)) + b"\1\2\3", np.frombuffer(
            bytes(range(0, 255, 17)) + b"\x11\x22\x33", np.uint8).reshape(2, 3, 3)),
        Odd("four-bits.png", png(4, 1, 4, 0, b"\0\x01\x2f"), grey(np.array([[0, 17, 34, 255]], np.uint8)),
            ("L to RGB",)),
        Odd("five-bits.bmp", bmp_of_16_bits(SCENE), five_bits),
    ]  # fmt: skip


def of_frames() -> list[Odd]:
    """Of several frames or pages the first is taken, and that is counted."""
    pages = [Image.fromarray(a) for a in (SCENE, 255 - SCENE, SCENE[::-1])]
    photos = [Image.fromarray(a) for a in (PHOTO, 255 - PHOTO)]
    options: dict[str, Any] = {"save_all": True, "append_images": pages[1:]}
    first = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    second = Image.fromarray(np.arange(6, dtype=np.uint8)[::-1].reshape(2, 3), "P")
    first.putpalette(SCENE.tobytes())
    second.putpalette(SCENE.tobytes())
    mpo = encode(photos[0], "MPO", save_all=True, append_images=photos[1:])
    several = "first of several frames"
    return [
        Odd("frames.png", encode(pages[0], "PNG", **options), SCENE, (several,)),
        Odd("frames.gif", encode(first, "GIF", save_all=True, append_images=[second]), SCENE, (several, "P to RGB")),
        Odd("frames.webp", encode(pages[0], "WEBP", lossless=True, **options), SCENE, (several,)),
        Odd("frames.tif", encode(pages[0], "TIFF", **options), SCENE, (several,)),
        Odd("frames.jpg", mpo, seen(mpo), (several,)),
    ]


def of_sizes() -> list[Odd]:
    long = np.random.default_rng(9).integers(0, 256, (1, 10_000, 3), dtype=np.uint8)
    return [
        Odd("one.png", saved(SCENE[:1, :1]), SCENE[:1, :1]),
        Odd("one.gif", saved(GREY[:1, 1:2], "GIF"), grey(GREY[:1, 1:2]), ("P to RGB",)),
        Odd("wide.png", saved(long), long),
        Odd("high.png", saved(long.transpose(1, 0, 2)), long.transpose(1, 0, 2)),
    ]


def huge() -> list[Odd]:
    """Files of some hundred bytes that say they hold 20000×20000 pixels."""
    side, photo, small = 20_000, saved(PHOTO, "JPEG"), saved(SCENE, "TIFF")
    at = photo.index(b"\xff\xc0") + 5
    for tag, value in ((256, 3), (257, 2)):
        entry = next(e for e in (struct.pack("<HHI", tag, kind, 1) for kind in (3, 4)) if e in small)
        small = small.replace(entry + struct.pack("<I", value), entry + struct.pack("<I", side))
    sides = struct.pack("<HH", side, side)
    gif = saved(GREY, "GIF").replace(struct.pack("<HH", 3, 2), sides)
    bmp = saved(SCENE, "BMP").replace(struct.pack("<ii", 3, 2), struct.pack("<ii", side, side))
    files = {
        "huge.png": png(side, side, 8, 2, b"\0" * 100),
        "huge.jpg": photo[:at] + struct.pack(">HH", side, side) + photo[at + 4 :],
        "huge.gif": gif,
        "huge.bmp": bmp,
        "huge.tif": small,
        "huge.ppm": b"P6 20000 20000 255\n" + bytes(100),
    }
    return [Odd(name, content, None, refusal=LIMIT) for name, content in files.items()]


def misnamed() -> list[Odd]:
    """Names that say another format than the content, and formats that are not read."""
    gif = saved(GREY, "GIF")
    return [
        Odd("png.JPEG", saved(SCENE), SCENE),
        Odd("gif.jpg", gif, grey(GREY), ("P to RGB",)),
        Odd("jpeg.png", saved(PHOTO, "JPEG"), seen(saved(PHOTO, "JPEG"))),
        Odd("progressive.jpg", saved(PHOTO, "JPEG", progressive=True), seen(saved(PHOTO, "JPEG", progressive=True))),
        Odd("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None, refusal=UNKNOWN),
        Odd("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", None, refusal=UNKNOWN),
        Odd("icon.png", saved(PHOTO, "ICO"), None, refusal=UNKNOWN),
        Odd("empty.png", b"", None, refusal=UNKNOWN),
    ]


ODD = [*turned(), *of_modes(), *of_depths(), *of_frames(), *of_sizes(), *huge(), *misnamed()]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_outcome(odd: Odd) -> None:
    """Catches EXIF ignored, which is Pillow's default, looked for in JPEG alone, or applied in the wrong sense; CMYK
    taken for inverted RGB; 16 bits saturated or cut to 8 in silence; a palette's indices taken for grey; the second
    frame of several; a format judged by the name of its file; and an EPS file, for which Pillow starts a program.
    """
    if odd.pixels is None:
        with pytest.raises(DataError, match=rf"^{odd.name}: the image cannot be decoded .*{odd.refusal}"):
            decode_all([odd.content], Target(3), "test", lambda i: odd.name)
        return
    pixels, conversions = decode(odd.content, Target(3))
    np.testing.assert_array_equal(pixels, odd.pixels)
    assert tuple(conversions) == odd.conversions


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """The shorter side brought to `side`, and the middle cut out."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


def test_prepared_together(data: Path, cache: Path, finding: Finding) -> None:
    """Catches conversions that are lost between the picture and the set, counted for pictures that are left out, or
    forgotten when the set comes from the cache; and a picture left out that nobody hears of.
    """
    folder = data / "odd" / "train" / "kind"
    folder.mkdir(parents=True)
    for odd in ODD:
        (folder / odd.name).write_bytes(odd.content)
    kept, refused = ([o for o in ODD if (o.pixels is None) == left_out] for left_out in (False, True))
    kept.sort(key=lambda odd: odd.name)
    expected = np.stack([fitted(odd.pixels, 8) for odd in kept if odd.pixels is not None])
    counts = Counter(c for odd in kept for c in odd.conversions)
    for _ in range(2):  # decoded, then from the cache
        found = load("odd", size=8)
        np.testing.assert_array_equal(found.images.numpy(), expected)
        assert found.conversions == counts
        assert sorted(Path(s.partition(": ")[0]).name for s in found.skipped) == sorted(o.name for o in refused)
    [shards] = prepare_imagenet(data / "odd", size=8, encoding="raw", workers=1, partial=True)
    names = [Path(name).name for name in shards.shard(0).column("name")]
    order = [[odd.name for odd in kept].index(name) for name in names]
    np.testing.assert_array_equal(shards.shard(0).pixels, expected[order])
    assert sorted(names) == [odd.name for odd in kept]
    assert shards.conversions == counts | {"PNG named .JPEG": 1, "GIF named .jpg": 1}
    assert len(shards.skipped) == len(refused)
    finding(
        f"{len(ODD)} odd images: EXIF 0–9 in four formats, {len(of_modes())} colour modes, {len(of_depths())} depths, "
        f"{len(of_frames())} with several frames, {len(of_sizes()) + len(huge())} sizes, {len(misnamed())} misnamed",
        f"{len(kept)} with the expected pixels, {counts.total()} conversions counted in the prepared set, "
        f"{len(refused)} refused by name",
    )


def test_twenty_thousand_squared(finding: Finding) -> None:
    """Catches memory taken for as many pixels as a header states, before anything shows that they are there."""

    def refusals() -> list[str]:
        faults: dict[int, str] = {}
        with pytest.raises(DataError, match="none of 6 pictures"):
            decode_all([odd.content for odd in huge()], Target(3), "test", lambda i: huge()[i].name, faults)
        return [faults[i] for i in sorted(faults)]

    said, taken = in_a_fork(refusals, ROOM)
    assert [line.partition(":")[0] for line in said] == [odd.name for odd in huge()]
    assert all("(400000000 pixels) exceeds limit" in line for line in said)
    assert taken < ROOM
    finding(
        f"{len(said)} headers of 20000×20000 pixels", f"refused; {taken / 2**20:.0f} MiB taken where 1,144 are stated"
    )
