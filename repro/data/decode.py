"""From encoded image files to one uint8 tensor: modes, orientation and size, each picture accounted for.

What is done to a picture is never silent: a conversion of mode (CMYK, grey, palette, transparency) or of
orientation (EXIF) is counted by name, and what cannot be shown faithfully in 8 bits is refused.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from repro.errors import DataError
from repro.progress import track

CHUNK = 256  # pictures a thread decodes before it reports
# Pillow frees the interpreter while it decodes. For files smaller than this on average that is too short: two threads
# that hand the interpreter to and fro were slower than one over MNIST's digits, and faster over photographs.
WORTH_A_THREAD = 1024  # bytes
# Photographs and what is traded beside them. Not all that Pillow knows: EPS would start another program, and 16 bits of
# JPEG 2000 or 10 of AVIF become 8 without a word.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
WIDE = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow would cut these to 8 bits by saturation
ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(2, 9)  # its values for pictures that lie otherwise than they should be shown
EXIF_IN_PNG = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow finds it

Pixels = NDArray[np.uint8]
Fit = Literal["cut", "squash"]


@dataclass(frozen=True)
class Target:
    """What every decoded picture is to be: `channels` 1 or 3; `size` the side of a square, or None.

    With a size, `fit="cut"` resizes the shorter side to it (bicubic, antialiased) and cuts out the centre square, as
    the AlexNet paper does (section 2); `fit="squash"` resizes both sides to it whatever the picture's shape, as Keras
    does; `fit="shorter"` resizes the shorter side and cuts nothing, as the VGG paper does to cut at random in training.
    Without, pictures keep their own size and must agree.
    """

    channels: int
    size: int | None = None
    fit: Fit | Literal["shorter"] = "cut"


def decode(encoded: bytes, target: Target) -> tuple[Pixels, list[str]]:
    """One image file as uint8 (H, W, C), and the names of the conversions that were needed.

    Raises DataError (or Pillow's error) when the bytes are no picture or have more than 8 bits per channel.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        several = ["first of several frames"] if getattr(opened, "is_animated", False) else []
        pixels, conversions = as_pixels(opened, target)
    return pixels, several + conversions


def as_pixels(opened: Image.Image, target: Target) -> tuple[Pixels, list[str]]:
    """An opened picture as uint8 (H, W, C), and the names of the conversions that were needed.

    Raises DataError where it has more than 8 bits per channel.
    """
    conversions, image = [], opened
    if image.mode in WIDE or _stored_wide(opened):
        raise DataError(f"more than 8 bits per channel (opened as mode {image.mode})")
    if _load_turned(opened):
        image = ImageOps.exif_transpose(image)
        conversions.append("EXIF orientation")
    mode = MODES[target.channels]
    if image.mode != mode:
        conversions.append(f"{image.mode} to {mode}")
        image = image.convert(mode)
    if target.size is not None and image.size != (target.size, target.size):
        image = {"cut": centre_square, "squash": squashed, "shorter": shorter_side}[target.fit](image, target.size)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], target.channels), conversions


def _load_turned(image: Image.Image) -> bool:
    """Load the pixels; whether EXIF says that they lie otherwise than they should be shown."""
    if image.format == "PNG":
        image.load()  # EXIF may follow the pixels; without any the question would cost as much as decoding
        return bool(EXIF_IN_PNG & image.info.keys()) and image.getexif().get(ORIENTATION) in TURNED
    turned = image.getexif().get(ORIENTATION) in TURNED
    image.load()  # Pillow turns a TIFF while it loads, and then forgets that it did
    return turned


def _stored_wide(image: Image.Image) -> bool:
    """Whether the file holds 16 bits per channel: Pillow opens such colour pictures as 8 bits without a word."""
    for codec, _, _, args in getattr(image, "tile", ()):
        if ";16" in str(args) and "BGR;16" not in str(args):  # that one has 16 bits for all three channels
            return True
        if codec in ("ppm", "ppm_plain") and args[-1] > 255:  # the greatest value
            return True
    return False


def shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic, antialiased), the other in proportion."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic, antialiased) and cut the centre square."""
    image = shorter_side(image, size)
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def squashed(image: Image.Image, size: int) -> Image.Image:
    """Resize both sides to `size` (bicubic, antialiased): all of the picture is kept, its proportions are not."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def decode_all(
    encoded: Sequence[bytes],
    target: Target,
    what: str,
    place: Callable[[int], str],
    faults: dict[int, str] | None = None,
) -> tuple[Pixels, dict[str, int]]:
    """Decode image files, large ones in parallel, into uint8 (N, H, W, C); `place(i)` names the i-th in messages.

    Returns the pictures and how often each conversion was needed. Raises DataError for the first picture that
    cannot be decoded or whose size differs from the first one's. With `faults` (picture: what is wrong), pictures that
    cannot be decoded are entered there and left out, as are those that are in it already.
    """
    first = _first(encoded, target, place, faults)
    images = np.empty((len(encoded), *first.shape), np.uint8)

    def work(start: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for i in range(start, min(start + CHUNK, len(encoded))):
            decoded = _decode_or_note(encoded, i, target, place, faults)
            if decoded is None:
                continue
            pixels, conversions = decoded
            if pixels.shape != first.shape:
                h, w = pixels.shape[:2]
                raise DataError(
                    f"{place(i)}: {h}×{w} pixels, but the first picture has {first.shape[0]}×{first.shape[1]}; "
                    "give `size` to bring all to one size"
                )
            images[i] = pixels
            seen.update(conversions)
        return seen

    total: Counter[str] = Counter()
    large = sum(map(len, encoded)) >= WORTH_A_THREAD * len(encoded)
    chunks = (_in_threads if large else map)(work, range(0, len(encoded), CHUNK))
    for seen in track(chunks, len(encoded), what, weight=CHUNK):
        total.update(seen)
    if faults:
        kept = [i for i in range(len(encoded)) if i not in faults]
        for new, old in enumerate(kept):  # in place: a set may fill half the memory
            images[new] = images[old]
        images = images[: len(kept)]
    return images, dict(sorted(total.items()))


def _in_threads(work: Callable[[int], Counter[str]], starts: range) -> Iterator[Counter[str]]:
    """`map` over threads that stops at the first error."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield from pool.map(work, starts)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_named(
    encoded: Sequence[bytes], i: int, target: Target, place: Callable[[int], str]
) -> tuple[Pixels, list[str]]:
    try:
        return decode(encoded[i], target)
    except Exception as e:  # Pillow raises a dozen kinds for damaged files
        why = "no image format that is known here" if isinstance(e, UnidentifiedImageError) else e
        raise DataError(f"{place(i)}: the image cannot be decoded ({why})") from e


def _decode_or_note(
    encoded: Sequence[bytes], i: int, target: Target, place: Callable[[int], str], faults: dict[int, str] | None
) -> tuple[Pixels, list[str]] | None:
    if faults is None:
        return _decode_named(encoded, i, target, place)
    if i in faults:
        return None
    try:
        return _decode_named(encoded, i, target, place)
    except DataError as e:
        faults[i] = str(e)
        return None


def _first(
    encoded: Sequence[bytes], target: Target, place: Callable[[int], str], faults: dict[int, str] | None
) -> Pixels:
    """The first picture that can be decoded; raises DataError when there is none."""
    for i in range(len(encoded)):
        if decoded := _decode_or_note(encoded, i, target, place, faults):
            return decoded[0]
    raise DataError(f"none of {len(encoded):,} pictures can be decoded; the first: {(faults or {}).get(0)}")
