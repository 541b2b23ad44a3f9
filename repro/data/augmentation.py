"""Augmentation of whole batches, on the net's device, each picture's draw a function of (seed, epoch, index).

Pictures stay uint8 until the last moment; `Batches` cuts, mirrors and standardises a batch in a handful of tensor
operations. Chapter 7 teaches what the operations are for; `torchvision.transforms`, one picture at a time, is the
reference they are tested against.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from repro.data import views
from repro.data.affine import Affine, from_centre, sample, sampling_grid
from repro.data.color import ColorPCA, Convention
from repro.data.images import ImageSet
from repro.data.random import derive_seed, integers, normal, uniform
from repro.data.shards import ShardSet
from repro.data.stream import Memory, Stream
from repro.data.windows import Taken, crop_windows, cut_windows, mirror, pad_images
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
        return self._each(lambda x: x[which])

    def to(self, device: torch.device) -> "Draws":
        """The same on a device."""
        if device.type == "cpu":  # where they are already: nothing is worth asking each of them
            return self
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, of: Callable[[Tensor], Tensor]) -> "Draws":
        affine = self.affine and Affine(*(of(getattr(self.affine, f.name)) for f in fields(Affine)))
        tensors = self.top, self.left, self.mirrored, self.color
        top, left, mirrored, color = (x if x is None else of(x) for x in tensors)
        return Draws(top, left, mirrored, affine, color)


class Batches:
    """A set of pictures, ready to be cut into standardised batches on a device.

    An `ImageSet` rests on the device; the pictures of a `ShardSet` are decoded by `workers` threads (None: one for each
    processor) and the windows cut on the device, or where sizes differ (`fit="shorter"`) before they go there: from the
    same pixels come the same bits.

    `border` adds zeros around every picture for good (LeNet-5 wants MNIST's 28×28 in 32×32). `mean` and `std` are in
    units of 0…1 per channel: pass those of the training split, for every split. `mean_image`, float (H, W, C) as
    `repro.data.images.mean_image` computes it, is subtracted pixel by pixel instead of `mean`: its centre whatever the
    crop (`"centre"`, the 2012 code), or cut and mirrored with the picture (`"crop"`, subtracted before all else).
    `pca` is needed for colour noise.
    """

    def __init__(
        self,
        images: ImageSet | ShardSet,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        border: int = 0,
        mean_image: Tensor | None = None,
        mean_image_cut: Literal["centre", "crop"] = "centre",
        pca: ColorPCA | None = None,
        workers: int | None = None,
    ) -> None:
        self.augmentation = a = augmentation or Augmentation()
        self.device = torch.device(device)
        self.labels = images.labels.to(self.device)
        channels, own_height, own_width = images.input_size
        if not len(mean) == len(std) == channels:
            raise DataError(f"{images.name}: {channels} channels, but {len(mean)} means and {len(std)} deviations")
        if a.color_noise and pca is None:
            raise DataError(f"{images.name}: colour noise needs `pca`, the ColorPCA of the training split")
        if a.is_affine and mean_image is not None and mean_image_cut == "crop":
            raise DataError(f"{images.name}: a mean image cut along with the picture cannot be rotated with it")
        self.padding = border + a.crop_padding
        self.height, self.width = (a.crop,) * 2 if a.crop else (own_height + 2 * border, own_width + 2 * border)
        frame = own_height + 2 * self.padding, own_width + 2 * self.padding
        if a.crop and a.crop > min(frame):
            raise DataError(
                f"{images.name}: crop of {a.crop}×{a.crop} is larger than the picture of {frame[0]}×{frame[1]}"
            )
        self.frame: tuple[int, int] | Tensor = frame
        """Height and width of every picture as the crop finds it, or (N, 2) where they differ."""
        where = self.device, self.padding, self.height, self.width
        if isinstance(images, ShardSet):
            if images.sizes is not None:
                self._require_windows_alone(images.name, mean_image)
                self.frame = images.sizes
            self.source: Memory | Stream = Stream(images, *where, workers)
        else:
            self.source = Memory(images, *where)
        self.channels, self.pca, self.std = channels, pca, torch.tensor(std, device=self.device)
        # Over whole rows: with the few channels as its inner loop a sum takes six times as long.
        self.scale = (1 / (255 * self.std)).repeat(self.width)
        self.offset = (-torch.tensor(mean, device=self.device) / self.std).repeat(self.width)
        self.mean_image_cut = mean_image_cut
        own = own_height, own_width, channels
        self.offset_windows = None if mean_image is None else self._offset_windows(images.name, own, mean_image)

    def _require_windows_alone(self, name: str, mean_image: Tensor | None) -> None:
        if self.augmentation.crop is None or self.padding or self.augmentation.is_affine or mean_image is not None:
            raise DataError(
                f"{name}: its pictures differ in size, so they need a crop, and can have no border, padding, affine "
                'transformation or mean image; fit="cut" gives them one size'
            )

    def _offset_windows(self, name: str, wanted: tuple[int, ...], mean_image: Tensor) -> Tensor:
        if mean_image.shape != wanted:
            raise DataError(f"{name}: a mean image of {tuple(mean_image.shape)} for pictures of {wanted}")
        offset = pad_images(-mean_image[None].to(self.std) / self.std, self.padding)
        return crop_windows(offset.contiguous(), self.height, self.width)

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for pictures to be decoded, so far."""
        return self.source.waited_s

    def expect(self, batches: Iterable[Tensor]) -> None:
        """Say which pictures will be asked for next and in which order, one index tensor (B,) for each call to come.

        Those of a `ShardSet` are then decoded ahead, some batches at a time. It replaces what was expected before.
        Other batches may be asked for in between: they come out right, but are waited for.
        """
        self.source.expect(batches)

    def close(self) -> None:
        """End the threads that decode; a later batch starts new ones."""
        self.source.close()

    def plain(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Pictures start…stop−1 in their own order, centre crop, no augmentation: (B, C, H, W) float32, labels (B,)."""
        return self.apply(self._range(start, stop), Draws()), self.labels[start:stop]

    def ten_views(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The ten test views of pictures start…stop−1, in the order of `repro.data.views.ten_views`, and their labels.

        (B, 10, C, H, W) float32; without a crop smaller than the picture the first five are the same.
        """
        indices = self._range(start, stop)
        frames = [self.frame] * len(indices) if isinstance(self.frame, tuple) else self.frame[indices].tolist()
        places = torch.tensor([views.ten_views(h, w, self.height, self.width) for h, w in frames], dtype=torch.int64)
        places = places.view(len(indices), 10, 3).permute(1, 2, 0)  # (10, 3, B)
        seen, taken = self._room(len(indices), len(places)), self.source.take(indices)
        for i, (top, left, mirrored) in enumerate(places):
            self._fill(seen[:, i], taken, Draws(top, left, mirrored if mirrored.any() else None))
        return seen.unflatten(3, (self.width, -1)).permute(0, 1, 4, 2, 3), self.labels[start:stop]

    def augmented(self, indices: Tensor, seed: int, epoch: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The pictures at `indices` (B,), augmented for this epoch: (B, C, H, W) float32 and labels (B,).

        With `part`, only those of the batch, which are the same as if all had been asked for: the share of one of
        several processes. Indices may rest on the CPU, and should for a `ShardSet`: bringing them there from a GPU
        waits for it.
        """
        draws = self.draw(indices, seed, epoch).part(part)
        mine = indices[part]
        return self.apply(mine, draws), self.labels[mine.to(self.device)]

    def draw(self, indices: Tensor, seed: int, epoch: int) -> Draws:
        """What happens to the pictures at `indices` (B,) in this epoch."""
        a, (height, width) = self.augmentation, self._frames(indices)
        rows, columns = height - self.height + 1, width - self.width + 1
        chunks = torch.arange(len(indices), device=indices.device) // a.crop_chunk * a.crop_chunk
        shared = indices[chunks]  # a chunk's draws are those of its first picture
        moved = isinstance(rows, Tensor) or isinstance(columns, Tensor) or rows * columns > 1
        return Draws(
            integers(rows, derive_seed(seed, epoch, _TOP), shared) if moved else None,
            integers(columns, derive_seed(seed, epoch, _LEFT), shared) if moved else None,
            integers(2, derive_seed(seed, epoch, _MIRROR), shared) if a.flip else None,
            self._draw_affine(indices, seed, epoch) if a.is_affine else None,
            self._draw_color(indices, seed, epoch, self.pca) if a.color_noise and self.pca else None,
        )

    def _frames(self, indices: Tensor) -> tuple[int, int] | tuple[Tensor, Tensor]:
        """Height and width of the pictures as the crop finds them: one of each, or (B,) where they differ."""
        if isinstance(self.frame, tuple):
            return self.frame
        height, width = self.frame[indices.cpu()].to(indices.device).unbind(1)
        return height, width

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

    def apply(self, indices: Tensor, draws: Draws) -> Tensor:
        """The pictures at `indices` (B,) as the net sees them with these draws: (B, C, H, W) float32, channels-last."""
        result = self._room(len(indices))
        self._fill(result, self.source.take(indices), draws)
        return result.unflatten(2, (self.width, -1)).permute(0, 3, 1, 2)

    def _range(self, start: int, stop: int) -> Tensor:
        return torch.arange(*slice(start, stop).indices(len(self)))

    def _room(self, *shape: int) -> Tensor:
        return torch.empty(*shape, self.height, self.width * self.channels, device=self.device)

    def _fill(self, result: Tensor, taken: Taken, draws: Draws) -> None:
        """Write the pictures into `result`, (B, H, W·C) float32."""
        whole = result.device.type != "cpu" or result.numel() <= _WHOLE
        count = len(result)
        size = max(1, count if whole else _PART // result.shape[1:].numel())
        for start in range(0, count, size):
            part = slice(start, start + size)
            chosen = draws.part(part)
            self._standardize(self._cut(taken.part(part), chosen), chosen.to(self.device), result[part])

    def visible(self, batch: Tensor, draws: Draws) -> Tensor:
        """What `apply` gave for these draws as pictures to look at: uint8 (B, H, W, C), the mean added again."""
        rows = batch.permute(0, 2, 3, 1).flatten(2)  # (B, H, W·C)
        shown = (rows - self._offset(draws)) / self.scale
        return shown.round().clamp(0, 255).to(torch.uint8).view(batch.permute(0, 2, 3, 1).shape)

    def _cut(self, taken: Taken, draws: Draws) -> Tensor:
        """Windows (B, H, W, C): uint8, or float32 in 0…255 where they had to be interpolated."""
        if draws.affine is None:
            cut = taken.cut(draws.top, draws.left)
            return cut if draws.mirrored is None else mirror(cut, draws.mirrored.to(self.device))
        draws = draws.to(self.device)
        assert draws.affine is not None
        pixels = taken.whole()
        height, width = pixels.shape[1:3]
        top, left = draws.top, draws.left
        if top is None or left is None:
            places = views.centre(height, width, self.height, self.width)
            top, left = (torch.full((len(pixels),), x, device=pixels.device) for x in places)
        xs = from_centre(left, self.width, width, draws.mirrored)
        ys = from_centre(top, self.height, height)
        grid = sampling_grid(draws.affine.matrices(height, width).float(), xs, ys, height, width)
        return sample(pixels, grid)

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
        if self.offset_windows is None or not isinstance(self.frame, tuple):
            return self.offset
        centre = views.centre(*self.frame, self.height, self.width)
        if self.mean_image_cut == "centre":
            return self.offset_windows[0, *centre]
        if draws.top is None or draws.left is None:
            cut = self.offset_windows[:, *centre]
        else:
            cut = cut_windows(self.offset_windows, torch.zeros_like(draws.top), draws.top, draws.left)
        if draws.mirrored is None:
            return cut
        cut = cut.expand(len(draws.mirrored), -1, -1).unflatten(2, (self.width, -1))
        return mirror(cut, draws.mirrored).flatten(2)
