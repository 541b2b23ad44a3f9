"""Augmentation of whole batches, on the net's device, each picture's draw a function of (seed, epoch, index).

Pictures stay uint8 until the last moment; `Batches` cuts, mirrors and standardises a batch in a handful of tensor
operations. Chapter 7 teaches what the operations are for; `torchvision.transforms`, one picture at a time, is the
reference they are tested against.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.data.images import ImageSet
from repro.data.random import derive_seed, integers
from repro.errors import DataError

# Which draw a random number is for: two draws for one picture must not be the same number.
_TOP, _LEFT, _MIRROR = range(3)


@dataclass(frozen=True)
class Augmentation:
    """`crop_padding`: zeros added on every side before a random crop back to size; `flip`: mirror half of them."""

    crop_padding: int = 0
    flip: bool = False


def pad_images(images: Tensor, border: int) -> Tensor:
    """uint8 (N, H, W, C) with `border` rows and columns of zeros on every side."""
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


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """uint8 (N, H, W, C) with left and right exchanged in the pictures where `chosen` (int64, (N,)) is 1, not 0."""
    n, h, w, c = images.shape
    columns = torch.arange(w * c, device=images.device).view(w, c)
    # One gather of bytes from each row: half the time of flipping every picture and choosing, and no wait on a GPU.
    order = torch.stack([columns, columns.flip(0)]).view(2, 1, w * c)[chosen]  # (N, 1, W·C)
    return images.reshape(n, h, w * c).gather(2, order.expand(n, h, w * c)).view(n, h, w, c)


def standardize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W), channels-last, (x/255 − mean) / std per channel."""
    width = images.shape[2]
    # Over whole rows: with the few channels as its inner loop the same operation takes six times as long.
    rows = images.flatten(2).to(torch.float32)  # (N, H, W·C)
    offset, scale = (-mean / std).repeat(width), (1 / (255 * std)).repeat(width)
    torch.addcmul(offset, rows, scale, out=rows)  # a second buffer would cost more, in fresh pages, than the sum
    return rows.view(images.shape).permute(0, 3, 1, 2)


class Batches:
    """A set of pictures on a device, ready to be cut into standardised batches.

    `border` adds zeros around every picture for good (LeNet-5 wants MNIST's 28×28 in 32×32). `mean` and `std` are in
    units of 0…1 per channel: pass those of the training split, for every split.
    """

    def __init__(
        self,
        images: ImageSet,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        border: int = 0,
    ) -> None:
        self.augmentation = augmentation or Augmentation()
        self.labels = images.labels.to(device)
        pixels = pad_images(images.images.to(device), border)
        self.height, self.width, channels = pixels.shape[1:]
        if not len(mean) == len(std) == channels:
            raise DataError(f"{images.name}: {channels} channels, but {len(mean)} means and {len(std)} deviations")
        self.pixels = pad_images(pixels, self.augmentation.crop_padding).contiguous()
        self.windows = crop_windows(self.pixels, self.height, self.width)
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def plain(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Pictures start…stop−1 in their own order without augmentation: (B, C, H, W) float32 and labels (B,)."""
        p = self.augmentation.crop_padding
        pixels = self.pixels[start:stop, p : p + self.height, p : p + self.width]
        return standardize(pixels, self.mean, self.std), self.labels[start:stop]

    def augmented(self, indices: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The pictures at `indices` (B,), augmented for this epoch: (B, C, H, W) float32 and labels (B,)."""
        pixels = self._cut(indices, seed, epoch)
        if self.augmentation.flip:
            pixels = mirror(pixels, integers(2, derive_seed(seed, epoch, _MIRROR), indices))
        return standardize(pixels, self.mean, self.std), self.labels[indices]

    def _cut(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        p = self.augmentation.crop_padding
        if p == 0:
            return self.pixels.index_select(0, indices)
        top = integers(2 * p + 1, derive_seed(seed, epoch, _TOP), indices)
        left = integers(2 * p + 1, derive_seed(seed, epoch, _LEFT), indices)
        return self.windows[indices, top, left].view(len(indices), self.height, self.width, -1)
