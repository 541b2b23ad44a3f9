"""Any picture as one net takes it, and back: resized, cut, and standardised with the figures of its training.

Chapter 16 uses it: what a net is asked about must look to it like what it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from repro.data.decode import Fit, Target, as_pixels, decode
from repro.errors import DataError


@dataclass(frozen=True)
class Preparation:
    """From a picture to standardised floats (1, C, H, W), and back to what can be shown.

    A picture is brought to a square of `size` as `fit` says (see `repro.data.decode.Target`), its centre of `crop`
    pixels is cut out, or zeros are added around it up to `crop`, and each pixel becomes (value / 255 − mean) / std.
    `mean` and `std` are (C, 1, 1), in units of 0…1.
    """

    size: int
    crop: int
    mean: Tensor
    std: Tensor
    fit: Fit = "cut"

    @property
    def channels(self) -> int:
        return self.mean.shape[0]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of what comes out."""
        return self.channels, self.crop, self.crop

    def __call__(self, picture: Any) -> Tensor:
        """A picture, or a sequence of them, as standardised floats (N, C, H, W).

        A picture is the path or the bytes of an image file, a PIL image of any mode, or an array or tensor of uint8:
        grey (H, W), or (H, W, C) with 1, 3 or 4 channels; (N, H, W, C) is a sequence. It is turned as EXIF says. Raises
        `DataError` for anything else: pictures of more than 8 bits per channel, floats (whose range nothing states).
        """
        pictures = self._several(picture)
        pixels = np.stack([self._pixels(one) for one in pictures])
        return self.standardize(torch.from_numpy(pixels))

    def standardize(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, C) of `size` or `crop` pixels to standardised float32 (N, C, crop, crop)."""
        images = images.permute(0, 3, 1, 2)
        side = images.shape[2]
        offset = abs(side - self.crop) // 2
        if side > self.crop:
            images = images[:, :, offset : offset + self.crop, offset : offset + self.crop]
        elif side < self.crop:
            images = torch.nn.functional.pad(images, (offset, self.crop - side - offset) * 2)
        return (images.float() / 255 - self.mean) / self.std

    def show(self, images: Tensor) -> Tensor:
        """Standardised images (N, C, H, W) as floats (N, H, W, C) of 0…1, what lies outside cut off."""
        return (images.detach().cpu().float() * self.std + self.mean).clamp(0, 1).permute(0, 2, 3, 1)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """What black and white are for the net: (1, C, 1, 1) each."""
        return (-self.mean / self.std)[None], ((1 - self.mean) / self.std)[None]

    @staticmethod
    def _several(picture: Any) -> Sequence[Any]:
        if isinstance(picture, Tensor):
            picture = picture.numpy(force=True)
        if isinstance(picture, np.ndarray):
            return list(picture) if picture.ndim == 4 else [picture]
        found = picture if isinstance(picture, Sequence) and not isinstance(picture, str | bytes) else [picture]
        if not found:
            raise DataError("picture: the sequence is empty; give at least one")
        return found

    def _pixels(self, picture: Any) -> np.ndarray:
        target = Target(self.channels, self.size, self.fit)
        if isinstance(picture, Tensor):
            picture = picture.numpy(force=True)
        try:
            if isinstance(picture, str | Path):
                return decode(Path(picture).read_bytes(), target)[0]
            if isinstance(picture, bytes):
                return decode(picture, target)[0]
            if isinstance(picture, np.ndarray):
                picture = _opened(picture)
            if isinstance(picture, Image.Image):
                return as_pixels(picture, target)[0]
        except (OSError, UnidentifiedImageError, DataError, ValueError, SyntaxError) as e:
            name = str(picture) if isinstance(picture, str | Path) else "picture"
            raise DataError(f"{name}: cannot be used: {e}; give a picture of 8 bits per channel") from e
        raise DataError(f"picture: {type(picture).__name__} is not one; give a file, a PIL image or uint8 (H, W, C)")


def _opened(array: np.ndarray) -> Image.Image:
    """uint8 (H, W) or (H, W, 1, 3 or 4) as a PIL image."""
    if array.dtype != np.uint8:
        raise DataError(f"{array.dtype} values, whose range nothing states; scale them to uint8 0…255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(f"shape {array.shape} is no picture; (H, W) or (H, W, C) with 1, 3 or 4 channels is")
    return Image.fromarray(array)
