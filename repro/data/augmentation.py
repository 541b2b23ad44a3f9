"""Augmentation of whole batches, on the net's device, each picture's draw a function of (seed, epoch, index).

Pictures stay uint8 until the last moment; `Batches` cuts, mirrors and standardises a batch in a handful of tensor
operations. Chapter 7 teaches what the operations are for; `torchvision.transforms`, one picture at a time, is the
reference they are tested against.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.data import views
from repro.data.affine import Affine, from_centre, sample, sampling_grid
from repro.data.color import ColorPCA, Convention
from repro.data.images import ImageSet
from repro.data.random import derive_seed, integers, normal, uniform
from repro.errors import DataError

# Which draw a random number is for: two draws for one picture must not be the same number.
_TOP, _LEFT, _MIRROR, _ANGLE, _SHEAR, _ZOOM_X, _ZOOM_Y, _SHIFT_X, _SHIFT_Y, _COLOR = range(10)
# A CPU works through a batch of large pictures in parts of so many values that each stays in its cache from the first
# operation to the last: one picture of 224×224×3. All at once, the same work takes three times as long. A batch of
# small pictures, 128 of 32×32×3, is faster whole: then there is enough in each operation for every thread.
_PART, _WHOLE = 2**17, 2**19


@dataclass(frozen=True)
class Augmentation:
    """What is done to training pictures, in this order: affine transformation, crop, reflection, colour noise.

    The defaults do nothing. Ranges are to either side and drawn uniformly.
    """

    crop_padding: int = 0
    """Zeros added on every side before the crop."""
    flip: bool = False
    """Mirror half of the pictures."""
    crop: int | None = None
    """Side of the square cut out at random; None: the picture's own size, so that without padding nothing is cut."""
    crop_chunk: int = 1
    """So many consecutive pictures of a batch share crop and reflection: 32 in the 2012 code."""
    color_noise: float = 0.0
    """Deviation of the α of `repro.data.color`."""
    color_noise_convention: Convention = "paper"
    rotation: float = 0.0
    """Degrees, like `shear`: see `repro.data.affine`."""
    shear: float = 0.0
    zoom: float = 0.0
    """As a fraction of the size, along x and y apart."""
    shift: float = 0.0
    """As a fraction of the width and of the height."""

    @property
    def is_affine(self) -> bool:
        return any((self.rotation, self.shear, self.zoom, self.shift))


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of B pictures; None where nothing is done. Made by hand, it shows one thing alone.

    `top` and `left`, int64 (B,), place the window in the padded picture (None: in its middle); `mirrored`, int64 (B,),
    is 1 or 0; `color`, float32 (B, C), is added to the channels, in units of 0…1.
    """

    top: Tensor | None = None
    left: Tensor | None = None
    mirrored: Tensor | None = None
    affine: Affine | None = None
    color: Tensor | None = None

    def part(self, which: slice) -> "Draws":
        """Those of some of the pictures."""
        affine = self.affine and Affine(*(getattr(self.affine, f.name)[which] for f in fields(Affine)))
        top, left, mirrored, color = (x if x is None else x[which] for x in self._tensors())
        return Draws(top, left, mirrored, affine, color)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.top, self.left, self.mirrored, self.color


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


class Batches:
    """A set of pictures on a device, ready to be cut into standardised batches.

    `border` adds zeros around every picture for good (LeNet-5 wants MNIST's 28×28 in 32×32). `mean` and `std` are in
    units of 0…1 per channel: pass those of the training split, for every split. `mean_image`, float (H, W, C) as
    `repro.data.images.mean_image` computes it, is subtracted pixel by pixel instead of `mean`: its centre whatever the
    crop (`"centre"`, the 2012 code), or cut and mirrored with the picture (`"crop"`, subtracted before all else).
    `pca` is needed for colour noise.
    """

    def __init__(
        self,
        images: ImageSet,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        border: int = 0,
        mean_image: Tensor | None = None,
        mean_image_cut: Literal["centre", "crop"] = "centre",
        pca: ColorPCA | None = None,
    ) -> None:
        self.augmentation = a = augmentation or Augmentation()
        self.labels = images.labels.to(device)
        pixels = pad_images(images.images.to(device), border)
        own_height, own_width, channels = pixels.shape[1:]
        if not len(mean) == len(std) == channels:
            raise DataError(f"{images.name}: {channels} channels, but {len(mean)} means and {len(std)} deviations")
        if a.color_noise and pca is None:
            raise DataError(f"{images.name}: colour noise needs `pca`, the ColorPCA of the training split")
        if a.is_affine and mean_image is not None and mean_image_cut == "crop":
            raise DataError(f"{images.name}: a mean image cut along with the picture cannot be rotated with it")
        self.height, self.width = (a.crop, a.crop) if a.crop else (own_height, own_width)
        self.pixels = pad_images(pixels, a.crop_padding).contiguous()
        self.windows = crop_windows(self.pixels, self.height, self.width)
        self.pca, self.std = pca, torch.tensor(std, device=device)
        # Over whole rows: with the few channels as its inner loop a sum takes six times as long.
        self.scale = (1 / (255 * self.std)).repeat(self.width)
        self.offset = (-torch.tensor(mean, device=device) / self.std).repeat(self.width)
        self.mean_image_cut = mean_image_cut
        self.offset_windows = None if mean_image is None else self._offset_windows(images, mean_image, border)

    def _offset_windows(self, images: ImageSet, mean_image: Tensor, border: int) -> Tensor:
        if mean_image.shape != images.images.shape[1:]:
            found, wanted = tuple(mean_image.shape), tuple(images.images.shape[1:])
            raise DataError(f"{images.name}: a mean image of {found} for pictures of {wanted}")
        offset = pad_images(-mean_image[None].to(self.std) / self.std, border + self.augmentation.crop_padding)
        return crop_windows(offset.contiguous(), self.height, self.width)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def plain(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Pictures start…stop−1 in their own order, centre crop, no augmentation: (B, C, H, W) float32, labels (B,)."""
        indices = torch.arange(len(self), device=self.labels.device)[start:stop]
        return self.apply(indices, Draws()), self.labels[start:stop]

    def ten_views(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The ten test views of pictures start…stop−1, in the order of `repro.data.views.ten_views`, and their labels.

        (B, 10, C, H, W) float32; without a crop smaller than the picture the first five are the same.
        """
        indices = torch.arange(len(self), device=self.labels.device)[start:stop]
        height, width = self.pixels.shape[1:3]
        places = views.ten_views(height, width, self.height, self.width)
        seen, each = self._room(len(indices), len(places)), torch.ones_like(indices)
        for i, (top, left, mirrored) in enumerate(places):
            self._fill(seen[:, i], indices, Draws(top * each, left * each, each if mirrored else None))
        return seen.unflatten(3, (self.width, -1)).permute(0, 1, 4, 2, 3), self.labels[start:stop]

    def augmented(self, indices: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The pictures at `indices` (B,), augmented for this epoch: (B, C, H, W) float32 and labels (B,)."""
        return self.apply(indices, self.draw(indices, seed, epoch)), self.labels[indices]

    def draw(self, indices: Tensor, seed: int, epoch: int) -> Draws:
        """What happens to the pictures at `indices` (B,) in this epoch."""
        a, (rows, columns) = self.augmentation, self.windows.shape[1:3]
        chunks = torch.arange(len(indices), device=indices.device) // a.crop_chunk * a.crop_chunk
        shared = indices[chunks]  # a chunk's draws are those of its first picture
        moved = rows * columns > 1
        return Draws(
            integers(rows, derive_seed(seed, epoch, _TOP), shared) if moved else None,
            integers(columns, derive_seed(seed, epoch, _LEFT), shared) if moved else None,
            integers(2, derive_seed(seed, epoch, _MIRROR), shared) if a.flip else None,
            self._draw_affine(indices, seed, epoch) if a.is_affine else None,
            self._draw_color(indices, seed, epoch, self.pca) if a.color_noise and self.pca else None,
        )

    def _draw_affine(self, indices: Tensor, seed: int, epoch: int) -> Affine:
        def to_either_side(limit: float, purpose: int) -> Tensor:
            return limit * (2 * uniform(derive_seed(seed, epoch, purpose), indices) - 1)

        a = self.augmentation
        return Affine(
            to_either_side(a.rotation, _ANGLE),
            to_either_side(a.shear, _SHEAR),
            1 + to_either_side(a.zoom, _ZOOM_X),
            1 + to_either_side(a.zoom, _ZOOM_Y),
            to_either_side(a.shift, _SHIFT_X),
            to_either_side(a.shift, _SHIFT_Y),
        )

    def _draw_color(self, indices: Tensor, seed: int, epoch: int, pca: ColorPCA) -> Tensor:
        seeds = [derive_seed(seed, epoch, _COLOR, i) for i in range(len(pca.eigenvalues))]
        alphas = torch.stack([normal(s, indices) for s in seeds], 1) * self.augmentation.color_noise
        return pca.shifts(alphas, self.augmentation.color_noise_convention)

    def _centre(self) -> tuple[int, int]:
        height, width = self.pixels.shape[1:3]
        return views.centre(height, width, self.height, self.width)

    def apply(self, indices: Tensor, draws: Draws) -> Tensor:
        """The pictures at `indices` (B,) as the net sees them with these draws: (B, C, H, W) float32, channels-last."""
        result = self._room(len(indices))
        self._fill(result, indices, draws)
        return result.unflatten(2, (self.width, -1)).permute(0, 3, 1, 2)

    def _room(self, *shape: int) -> Tensor:
        width = self.width * self.pixels.shape[3]
        return torch.empty(*shape, self.height, width, device=self.pixels.device)

    def _fill(self, result: Tensor, indices: Tensor, draws: Draws) -> None:
        """Write the pictures into `result`, (B, H, W·C) float32."""
        whole = result.device.type != "cpu" or result.numel() <= _WHOLE
        size = max(1, len(indices) if whole else _PART // result.shape[1:].numel())
        for start in range(0, len(indices), size):
            part = slice(start, start + size)
            chosen = draws.part(part)
            self._standardize(self._cut(indices[part], chosen), chosen, result[part])

    def visible(self, batch: Tensor, draws: Draws) -> Tensor:
        """What `apply` gave for these draws as pictures to look at: uint8 (B, H, W, C), the mean added again."""
        rows = batch.permute(0, 2, 3, 1).flatten(2)  # (B, H, W·C)
        shown = (rows - self._offset(draws)) / self.scale
        return shown.round().clamp(0, 255).to(torch.uint8).view(batch.permute(0, 2, 3, 1).shape)

    def _cut(self, indices: Tensor, draws: Draws) -> Tensor:
        """Windows (B, H, W, C): uint8, or float32 in 0…255 where they had to be interpolated."""
        top, left = draws.top, draws.left
        if draws.affine is None:
            if top is None or left is None:
                rows = self.windows[:, *self._centre()].index_select(0, indices)
            else:
                rows = cut_windows(self.windows, indices, top, left)
            cut = rows.unflatten(2, (self.width, -1))
            return cut if draws.mirrored is None else mirror(cut, draws.mirrored)
        height, width = self.pixels.shape[1:3]
        if top is None or left is None:
            top, left = (torch.full_like(indices, x) for x in self._centre())
        xs = from_centre(left, self.width, width, draws.mirrored)
        ys = from_centre(top, self.height, height)
        grid = sampling_grid(draws.affine.matrices(height, width).float(), xs, ys, height, width)
        return sample(self.pixels.index_select(0, indices), grid)

    def _standardize(self, pixels: Tensor, draws: Draws, result: Tensor) -> None:
        """(pixels/255 − mean + colour) / std into `result` (B, H, W·C); the code's noise then divides by 1 + σ."""
        offset, a = self._offset(draws), self.augmentation
        if draws.color is not None:
            offset = offset + (draws.color / self.std).repeat(1, self.width)[:, None]
        result.copy_(pixels.flatten(2))
        torch.addcmul(offset, result, self.scale, out=result)
        if draws.color is not None and a.color_noise_convention == "code":
            result /= 1 + a.color_noise

    def _offset(self, draws: Draws) -> Tensor:
        """−mean/std: (W·C,) for a mean per channel, (H, W·C) for an image's centre, (B, H, W·C) when it is cut."""
        if self.offset_windows is None:
            return self.offset
        if self.mean_image_cut == "centre":
            return self.offset_windows[0, *self._centre()]
        if draws.top is None or draws.left is None:
            cut = self.offset_windows[:, *self._centre()]
        else:
            cut = cut_windows(self.offset_windows, torch.zeros_like(draws.top), draws.top, draws.left)
        if draws.mirrored is None:
            return cut
        cut = cut.expand(len(draws.mirrored), -1, -1).unflatten(2, (self.width, -1))
        return mirror(cut, draws.mirrored).flatten(2)
