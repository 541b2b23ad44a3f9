"""Two sets that need neither network nor files, so that everything runs everywhere.

`digits`: 1,797 real handwritten digits that scikit-learn carries (Alpaydin and Kaynak's optical recognition set,
UCI, 8×8 pixels in 17 grey levels). `shapes`: ten classes of coloured shapes drawn here, at any size, the same on
every machine up to rounding.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repro.errors import DataError

Pixels = NDArray[np.uint8]

DIGIT_CLASSES = tuple("0123456789")
# Digits come writer by writer; the last sixth as the test set keeps most of its writers out of training.
DIGIT_SPLITS = {"train": slice(0, 1500), "test": slice(1500, 1797)}
DIGIT_BOX, DIGIT_SIZE = (
    20,
    28,
)  # MNIST's frame: a 20×20 box centred in 28×28 (LeCun et al. 1998, section III.A)

SHAPE_CLASSES = (
    "circle", "square", "triangle", "diamond", "pentagon", "hexagon", "star", "cross", "ring", "crescent",
)  # fmt: skip
SHAPE_COUNTS = {"train": 4000, "test": 1000}
SHAPE_SIZE = 32


def digits(split: str, size: int | None = None) -> tuple[Pixels, NDArray[np.int64]]:
    """The digits as uint8 (N, size, size, 1) and their labels.

    At the default 28 they are enlarged (bicubic) to 20×20 and centred, so that a net made for MNIST takes them; size 8
    gives the pixels as they are.
    """
    from sklearn.datasets import load_digits

    size = DIGIT_SIZE if size is None else size
    if size < 8:
        raise DataError(f"digits: size {size} is smaller than the 8×8 pixels they have")
    raw = load_digits()
    part = DIGIT_SPLITS[split]
    small = np.round(raw.images[part] * (255 / 16)).astype(np.uint8)
    if size == 8:
        return small[..., None], raw.target[part].astype(np.int64)
    box = size * DIGIT_BOX // DIGIT_SIZE
    edge = (size - box) // 2
    images = np.zeros((len(small), size, size, 1), np.uint8)
    for image, pixels in zip(images, small, strict=True):
        enlarged = Image.fromarray(pixels).resize((box, box), Image.Resampling.BICUBIC)
        image[edge : edge + box, edge : edge + box, 0] = np.asarray(enlarged)
    return images, raw.target[part].astype(np.int64)


def shapes(split: str, size: int | None = None) -> tuple[Pixels, NDArray[np.int64]]:
    """Coloured shapes on coloured grounds as uint8 (N, size, size, 3), classes in turn.

    Place, scale, rotation and both colours of a picture are drawn from a generator seeded by (split, index) alone, so
    the same picture comes out whatever the number of pictures and at every size.
    """
    size = SHAPE_SIZE if size is None else size
    if size < 8:
        raise DataError(f"shapes: size {size} is too small to tell ten shapes apart; give at least 8")
    count = SHAPE_COUNTS[split]
    labels = np.arange(count, dtype=np.int64) % len(SHAPE_CLASSES)
    salt = list(SHAPE_COUNTS).index(split)
    images = np.stack([_draw(int(label), size, (salt, i)) for i, label in enumerate(labels)])
    return images, labels


def _draw(label: int, size: int, seed: tuple[int, int]) -> Pixels:
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.3, 0.45)
    centre = rng.uniform(-0.12, 0.12, 2)
    # Turned by up to 20°: a diamond has to stay apart from a square.
    turn = rng.uniform(-np.pi / 9, np.pi / 9)
    ground, ink = rng.uniform(0, 1, (2, 3))
    while np.abs(ground - ink).sum() < 0.8:
        ink = rng.uniform(0, 1, 3)
    axis = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(axis - centre[0], axis - centre[1], indexing="ij")
    u = (np.cos(turn) * x + np.sin(turn) * y) / radius
    v = (np.cos(turn) * y - np.sin(turn) * x) / radius
    # `_inside` grows by about 1 per radius across the outline: half a pixel of blur on either side.
    cover = np.clip(_inside(SHAPE_CLASSES[label], u, v) * radius * size + 0.5, 0, 1)[..., None]
    return np.round(255 * (ground + cover * (ink - ground))).astype(np.uint8)


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positive inside the outline, negative outside, in units of the shape's radius; v points down."""
    r = np.hypot(u, v)
    match shape:
        case "circle":
            return 1 - r
        case "ring":
            return 0.22 - np.abs(r - 0.78)
        case "crescent":
            return np.minimum(1 - r, np.hypot(u - 0.45, v) - 0.85)
        case "square":
            return 0.85 - np.maximum(np.abs(u), np.abs(v))
        case "diamond":
            return (1 - np.abs(u) / 0.65 - np.abs(v)) * 0.55
        case "cross":
            arm = np.maximum(np.minimum(0.3 - np.abs(u), 1 - np.abs(v)), np.minimum(0.3 - np.abs(v), 1 - np.abs(u)))
            return arm
        case "star":
            return _polygon(u, v, 5, 0.42) - r
        case _:
            return _polygon(u, v, {"triangle": 3, "pentagon": 5, "hexagon": 6}[shape]) - r


def _polygon(
    u: NDArray[np.float64], v: NDArray[np.float64], corners: int, inner: float | None = None
) -> NDArray[np.float64]:
    """Distance from the centre to the outline of a regular polygon (a corner up), or of a star with `inner` radius."""
    half = np.pi / corners
    angle = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)  # from the nearest corner
    if inner is None:
        inner = np.cos(half)
    # The straight edge from a corner (radius 1, angle 0) to the point (radius `inner`, angle `half`).
    return inner * np.sin(half) / (np.sin(angle) + inner * np.sin(half - angle))
