"""Where windows are cut out of a picture: the places a random crop can have, the centre, and the ten test views.

AlexNet's section 4.1 cuts 224×224 out of 256×256 at random to train, and at the four corners and the centre to test.
"""

import torch
from torch import Tensor

from repro.errors import DataError


def crop_positions(height: int, width: int, crop_height: int, crop_width: int) -> Tensor:
    """Every (top, left) a crop can have, row by row: int64 (P, 2).

    Offsets run from 0 to the difference of the sides inclusive: 33·33 for 224 in 256, where the paper counts 32·32.
    Raises DataError when the crop is larger than the picture.
    """
    rows, columns = offsets(height, crop_height), offsets(width, crop_width)
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def offsets(side: int, crop: int) -> int:
    """How many places a crop has along one side; raises DataError when it is larger."""
    if not 1 <= crop <= side:
        raise DataError(f"a crop of {crop} does not fit into a picture of {side}; give 1…{side}")
    return side - crop + 1


def centre(height: int, width: int, crop_height: int, crop_width: int) -> tuple[int, int]:
    """(top, left) of the crop in the middle; where there is no middle, the one before it."""
    return (offsets(height, crop_height) - 1) // 2, (offsets(width, crop_width) - 1) // 2


def ten_views(height: int, width: int, crop_height: int, crop_width: int) -> list[tuple[int, int, int]]:
    """(top, left, mirrored) of the ten test views: the four corners row by row, the centre, then the five mirrored."""
    bottom, right = offsets(height, crop_height) - 1, offsets(width, crop_width) - 1
    five = [(0, 0), (0, right), (bottom, 0), (bottom, right), centre(height, width, crop_height, crop_width)]
    return [(top, left, mirrored) for mirrored in (0, 1) for top, left in five]
