"""A set of pictures in memory: what every other room of the package trains on, looks at and measures.

Pictures rest as uint8 in the order (N, H, W, C). Seen through `permute(0, 3, 1, 2)` that is exactly PyTorch's
channels-last layout of (N, C, H, W), so no copy is ever made for it. Chapter 1 shows the layout.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from repro.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """One split of a named set of labelled pictures.

    `images` is uint8 (N, H, W, C) with values 0…255, `labels` int64 (N,) with values 0…len(classes)−1.
    `mean` and `std` are per channel, over all pixels of this split, in units of 0…1. `digest` is a sha256 over the
    contents that does not depend on their order (`repro.data.cache.content_digest`); `conversions` counts
    pictures that were stored in another mode, for example CMYK, and had to be converted; `skipped` names the files of
    a folder that could not be read, with the reason.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    conversions: dict[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        n, h, w, c = self.images.shape
        return (
            f"{self.name} {self.split}: {n:,} images {h}×{w}×{c}, {len(self.classes)} classes "
            f"(digest {self.digest[:8]}, {self.source}{f', {len(self.skipped)} files skipped' if self.skipped else ''})"
        )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W), the order in which nets state their input."""
        _, h, w, c = self.images.shape
        return c, h, w

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures (B, H, W, C), uint8, and labels (B,) at `indices`."""
        return self.images[indices], self.labels[indices]

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with pictures and labels on `device`, copied once and whole."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor) -> "ImageSet":
        """Some of the pictures, copied, with mean, deviation and digest computed for them alone."""
        from repro.data.cache import content_digest

        images, labels = self.batch(indices)
        mean, std = channel_statistics(images)
        digest = content_digest(images, labels, self.classes)
        return replace(self, images=images, labels=labels, mean=mean, std=std, digest=digest)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, H, W, C), in units of 0…1.

    Exact: from integer counts of the 256 values, with the population's deviation (divided by n, not n − 1).
    """
    if images.shape[0] == 0:
        raise DataError("image set: no pictures, so no mean; give at least one")
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[3]):
        counts = torch.zeros(256, dtype=torch.float64)
        for chunk in images[..., channel].split(4096):
            counts += torch.bincount(chunk.reshape(-1), minlength=256)
        share = counts / counts.sum()
        mean = (share * values).sum()
        means.append(mean.item())
        deviations.append(((share * (values - mean) ** 2).sum()).sqrt().item())
    return tuple(means), tuple(deviations)


def mean_image(images: ImageSet) -> Tensor:
    """The mean of a set's pictures at each pixel: float32 (H, W, C) in units of 0…1. Pass the training split."""
    if len(images) == 0:
        raise DataError(f"{images.name}: no pictures, so no mean image; give at least one")
    total = torch.zeros(images.images.shape[1:], dtype=torch.int64, device=images.images.device)
    for chunk in images.images.split(256):
        total += chunk.sum(0, dtype=torch.int32)
    return (total.double() / (255 * len(images))).float()
