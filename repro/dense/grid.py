"""Where the outputs of a fully convolutional net lie in the picture: the arithmetic of strides and windows.

The output at (i, j) stands for the crop of the native size whose top left corner is at (i, j) times the net's stride:
a padding moves a unit's window in the crop and in the picture alike, so none of it enters. It decides instead what the
window finds beyond the crop: zeros when the crop is run alone, the picture's own pixels in the dense run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseGrid:
    """The outputs of a fully convolutional net for a picture; pairs are (down, across), in pixels unless said."""

    picture: tuple[int, int]
    native: tuple[int, int]
    """The size of a crop, at which the net has one output."""
    stride: tuple[int, int]
    """From one crop's corner to the next one's."""
    shape: tuple[int, int]
    """Outputs."""

    @property
    def boxes(self) -> Tensor:
        """The crop that each output stands for: int64 (h, w, 4), top, left, bottom and right, the last two exclusive.

        Where windows are rounded up, the last crops may end beyond the picture: they find zeros there. So may a crop
        whose last pixels no window reads.
        """
        tops, lefts = (torch.arange(n) * s for n, s in zip(self.shape, self.stride, strict=True))
        corners = torch.cartesian_prod(tops, lefts).view(*self.shape, 2)
        return torch.cat([corners, corners + torch.tensor(self.native)], 2)

    @property
    def inside(self) -> Tensor:
        """Which of the crops lie wholly in the picture: bool (h, w)."""
        return (self.boxes[..., 2:] <= torch.tensor(self.picture)).all(2)

    @property
    def centers(self) -> tuple[Tensor, Tensor]:
        """The centres of the crops, rows and columns, float64; the centre of pixel 0 is 0.0."""
        rows, columns = (
            torch.arange(n, dtype=torch.float64) * s + (side - 1) / 2
            for n, s, side in zip(self.shape, self.stride, self.native, strict=True)
        )
        return rows, columns

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top for matplotlib's `imshow`, so that each output covers its crop's centre."""
        (rows, columns), (down, across) = self.centers, self.stride
        left, right = float(columns[0]) - across / 2, float(columns[-1]) + across / 2
        return left, right, float(rows[-1]) + down / 2, float(rows[0]) - down / 2
