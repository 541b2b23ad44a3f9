"""Small rotations, shears, zooms and shifts of whole batches, as Keras' ImageDataGenerator draws and applies them.

The flower report (chapter 8) trains with them; the AlexNet paper does not. A transformation is given the way pictures
are resampled: a matrix that takes each pixel of the result to the place in the picture where its value is read, here
rotation · shift · shear · zoom about the picture's centre. A place between four pixels gets their bilinear mean, a
place outside the nearest pixel of the border.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Affine:
    """What was drawn for a batch, each float (B,): `angle` and `shear` in degrees, `zoom` and `shift` along x and y.

    A zoom is a factor on coordinates, so that 0.8 shows things larger; a shift is a fraction of the picture's width or
    height, and a positive one moves the content to the left or up.
    """

    angle: Tensor
    shear: Tensor
    zoom_x: Tensor
    zoom_y: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def matrices(self, height: int, width: int) -> Tensor:
        """(B, 2, 3): from (x, y, 1), in pixels from the centre of the result, to (x, y) from the picture's centre."""
        angle, shear = torch.deg2rad(self.angle), torch.deg2rad(self.shear)
        cos, sin = angle.cos(), angle.sin()
        dx, dy = self.shift_x * width, self.shift_y * height
        # The shear leaves x as it is and moves each row by its y: (x − y sin s, y cos s).
        x_row = [cos * self.zoom_x, -(cos * shear.sin() + sin * shear.cos()) * self.zoom_y, cos * dx - sin * dy]
        y_row = [sin * self.zoom_x, (cos * shear.cos() - sin * shear.sin()) * self.zoom_y, sin * dx + cos * dy]
        return torch.stack([torch.stack(x_row, 1), torch.stack(y_row, 1)], 1)


def sampling_grid(matrices: Tensor, xs: Tensor, ys: Tensor, height: int, width: int) -> Tensor:
    """Where `F.grid_sample` has to look, (B, h, w, 2), for results with columns at `xs` (B, w) and rows at `ys` (B, h).

    Both are in pixels from the centre; the picture is `height`×`width`.
    """
    grid = matrices.new_empty(*ys.shape, xs.shape[1], 2)
    for axis, side in enumerate((width, height)):
        # −1…1 from the outer edge of the first pixel to that of the last (align_corners=False).
        m = matrices[:, axis, :, None] * (2 / side)  # (B, 3, 1)
        torch.add((m[:, 1] * ys + m[:, 2])[:, :, None], (m[:, 0] * xs)[:, None, :], out=grid[..., axis])
    return grid


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Read uint8 (B, H, W, C) at the places of `grid` (B, h, w, 2), bilinear: float32 (B, h, w, C), 0…255."""
    nchw = images.permute(0, 3, 1, 2).to(torch.float32)
    found = F.grid_sample(nchw, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.permute(0, 2, 3, 1)


def from_centre(starts: Tensor, length: int, side: int, reverse: Tensor | None = None) -> Tensor:
    """Places of `length` pixels from `starts` (B,) on, counted from the centre of `side` pixels: float32 (B, length).

    Where `reverse` (B,) is 1 they run backwards: a mirrored picture.
    """
    steps = torch.arange(length, device=starts.device)
    if reverse is None:
        return starts[:, None] + steps - (side - 1) / 2
    return starts[:, None] + torch.where(reverse[:, None] == 1, steps.flip(0), steps) - (side - 1) / 2
