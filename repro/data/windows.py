"""Windows of pictures, cut and mirrored a whole batch at a time: the operations beneath `repro.data.augmentation`."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.data import views
from repro.errors import DataError


def pad_images(images: Tensor, border: int) -> Tensor:
    """(N, H, W, C) with `border` rows and columns of zeros on every side."""
    return F.pad(images, (0, 0, border, border, border, border)) if border else images


def crop_windows(images: Tensor, height: int, width: int) -> Tensor:
    """A view of every height×width window of contiguous (N, H, W, C): (N, H−height+1, W−width+1, height, width·C).

    Nothing is copied; indexing it with (picture, top, left) cuts one window for each picture.
    """
    n, h, w, c = images.shape
    if height > h or width > w:
        raise DataError(f"crop of {height}×{width} is larger than the picture of {h}×{w}")
    shape = (n, h - height + 1, w - width + 1, height, width * c)
    return images.as_strided(shape, (h * w * c, w * c, c, w * c, 1))


def cut_windows(windows: Tensor, indices: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """One window of `crop_windows` for each picture: (B, height, width·C)."""
    if len(indices) == 1 and windows.device.type == "cpu":
        # A view: gathering its bytes would take half of all the time.
        return windows[int(indices), int(top), int(left)][None]
    return windows[indices, top, left]


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """(N, H, W, C) with left and right exchanged in the pictures where `chosen` (int64, (N,)) is 1, not 0."""
    n, h, w, c = images.shape
    if n == 1 and images.device.type == "cpu":  # six times as fast as below, where no other picture has to be kept
        return images.flip(2) if chosen.item() else images
    columns = torch.arange(w * c, device=images.device).view(w, c)
    # One gather of bytes from each row: half the time of flipping every picture and choosing, and no wait on a GPU.
    order = torch.stack([columns, columns.flip(0)]).view(2, 1, w * c)[chosen]  # (N, 1, W·C)
    return images.reshape(n, h, w * c).gather(2, order.expand(n, h, w * c)).view(n, h, w, c)


class Taken(Protocol):
    """The pictures of one batch before anything is cut out of them."""

    def part(self, which: slice) -> "Taken":
        """Some of them."""

    def cut(self, top: Tensor | None, left: Tensor | None) -> Tensor:
        """One window of each, uint8 (B, height, width, C) on the device, at `top` and `left` (int64, (B,)); the
        middle one where they are None.
        """

    def whole(self) -> Tensor:
        """All of each picture, (B, H, W, C)."""


@dataclass(frozen=True)
class Held:
    """Pictures of one size: those at `indices` (B,) of `pixels` (N, H, W, C), seen through `crop_windows` of them."""

    pixels: Tensor
    windows: Tensor
    indices: Tensor

    def part(self, which: slice) -> "Held":
        return Held(self.pixels, self.windows, self.indices[which])

    def cut(self, top: Tensor | None, left: Tensor | None) -> Tensor:
        channels = self.pixels.shape[3]
        if top is None or left is None:
            _, height, width, _ = self.pixels.shape
            places = views.centre(height, width, self.windows.shape[3], self.windows.shape[4] // channels)
            rows = self.windows[:, *places].index_select(0, self.indices)
        else:
            device = self.pixels.device
            rows = cut_windows(self.windows, self.indices, top.to(device), left.to(device))
        return rows.unflatten(2, (-1, channels))

    def whole(self) -> Tensor:
        return self.pixels.index_select(0, self.indices)


@dataclass(frozen=True)
class Ragged:
    """Pictures of any size, in the memory of the CPU; the windows go to `device`."""

    pictures: list[Tensor]
    height: int
    width: int
    device: torch.device

    def part(self, which: slice) -> "Ragged":
        return Ragged(self.pictures[which], self.height, self.width, self.device)

    def cut(self, top: Tensor | None, left: Tensor | None) -> Tensor:
        if top is None or left is None:
            places = [views.centre(p.shape[0], p.shape[1], self.height, self.width) for p in self.pictures]
        else:
            places = list(zip(top.tolist(), left.tolist(), strict=True))
        channels = self.pictures[0].shape[2] if self.pictures else 3
        pinned = self.device.type == "cuda"
        cut = torch.empty(len(self.pictures), self.height, self.width, channels, dtype=torch.uint8, pin_memory=pinned)
        target = cut.numpy()
        for k, (picture, (y, x)) in enumerate(zip(self.pictures, places, strict=True)):
            target[k] = picture.numpy()[y : y + self.height, x : x + self.width]
        return cut.to(self.device, non_blocking=True)

    def whole(self) -> Tensor:
        raise DataError("pictures of different sizes have no common frame: give a crop, and no affine transformation")
