"""A split as it comes from its source, before anything of it is kept."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from repro.data import cache
from repro.errors import DataError


@dataclass(frozen=True)
class Decoded:
    """A split fresh from its source: uint8 (N, H, W, C), int64 (N,), and where it came from."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    conversions: dict[str, int]
    skipped: tuple[str, ...] = ()

    def digest(self) -> str:
        """Of the contents, whatever their order: see `cache.content_digest`."""
        return cache.content_digest(torch.from_numpy(self.images), torch.from_numpy(self.labels), self.classes)

    def require_labels(self, what: str) -> None:
        """Raise DataError for a label that is none of a class: −100 would not even be noticed by `cross_entropy`."""
        if len(outside := self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]):
            raise DataError(
                f"{what}: label {outside[0]} is out of range; expected 0…{len(self.classes) - 1}; copy the set again"
            )
