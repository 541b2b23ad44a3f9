"""Where the pictures of a batch come from: memory, or shards on disk that threads decode ahead of the net.

Threads, not processes: the decoders give up the interpreter's lock while they work, and hold it for some microseconds
of a picture's half millisecond, so that dozens of them could run at once; pictures need not be sent between processes,
and a decoder's error arrives where the picture was asked for.
"""

import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repro.data.images import ImageSet
from repro.data.shards import ShardSet
from repro.data.windows import Held, Ragged, Taken, crop_windows, pad_images
from repro.errors import DataError

try:
    import simplejpeg
except ImportError:  # Pillow decodes to the same pixels, in nearly twice the time
    simplejpeg = None

CHUNK = 16  # pictures a thread decodes before it takes the next ones
BATCHES_AHEAD = 2  # at least


class Memory:
    """Pictures of one size that rest on the device."""

    waited_s = 0.0
    """Nothing is waited for."""

    def __init__(self, images: ImageSet, device: torch.device, padding: int, height: int, width: int) -> None:
        self.pixels = pad_images(images.images.to(device), padding).contiguous()
        self.windows = crop_windows(self.pixels, height, width)

    def expect(self, batches: Iterable[Tensor]) -> None:
        """Everything is here already."""

    def take(self, indices: Tensor) -> Taken:
        """The pictures at `indices` (B,)."""
        return Held(self.pixels, self.windows, indices.to(self.pixels.device))

    def close(self) -> None:
        """There are no threads to end."""


@dataclass
class _Ahead:
    """A batch that is being decoded."""

    indices: Tensor
    pictures: Any  # uint8 (B, H, W, C), or a list of (H, W, C) where sizes differ
    parts: list[Future[None]]


class Stream:
    """The pictures of a `ShardSet`, decoded by `workers` threads.

    `expect` says which batches will be asked for and in which order; up to BATCHES_AHEAD of them, or enough to keep
    the threads busy, are decoded before they are. Any other batch can be asked for and is decoded then and there;
    one that was expected later drops those before it.
    """

    def __init__(
        self, images: ShardSet, device: torch.device, padding: int, height: int, width: int, workers: int | None = None
    ) -> None:
        self.images, self.device, self.padding, self.height, self.width = images, device, padding, height, width
        self.workers = workers or usable_cores()
        self.waited_s = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._coming: Iterator[Tensor] = iter(())
        self._ahead: deque[_Ahead] = deque()

    def expect(self, batches: Iterable[Tensor]) -> None:
        """Forget what was expected, and start on these: index tensors (B,), read no further ahead than needed."""
        self._drop(len(self._ahead))
        self._coming = iter(batches)
        self._fill()

    def take(self, indices: Tensor) -> Taken:
        """The pictures at `indices` (B,). Raises DataError naming shard and row of one that cannot be decoded."""
        indices = indices.cpu()
        found = self._expected(indices) or self._submit(indices)
        self._fill()
        start = time.perf_counter()
        for part in found.parts:
            part.result()
        self.waited_s += time.perf_counter() - start
        if self.images.fit == "shorter":
            return Ragged(found.pictures, self.height, self.width, self.device)
        pixels = found.pictures.to(self.device, non_blocking=True)
        pixels = pad_images(pixels, self.padding)
        places = torch.arange(len(indices), device=self.device)
        return Held(pixels, crop_windows(pixels, self.height, self.width), places)

    def close(self) -> None:
        """End the threads; whoever asks again starts new ones."""
        self._coming = iter(())
        self._drop(len(self._ahead))
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _expected(self, indices: Tensor) -> _Ahead | None:
        for k, batch in enumerate(self._ahead):
            if torch.equal(batch.indices, indices):
                self._drop(k)
                return self._ahead.popleft()
        return None

    def _drop(self, count: int) -> None:
        for _ in range(count):
            for part in self._ahead.popleft().parts:
                part.cancel()

    def _fill(self) -> None:
        """Keep as many batches coming as the threads need."""
        while len(self._ahead) < BATCHES_AHEAD or sum(len(a.parts) for a in self._ahead) < 2 * self.workers:
            if (indices := next(self._coming, None)) is None:
                return
            self._ahead.append(self._submit(indices.cpu()))

    def _submit(self, indices: Tensor) -> _Ahead:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "decoding")
        places = self.images.locate(indices.tolist())
        if self.images.fit == "shorter":
            pictures: Any = [None] * len(places)
            target: Any = pictures
        else:
            _, height, width = self.images.input_size
            shape = (len(places), height, width, 3)
            pictures = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            target = pictures.numpy()
        starts = range(0, len(places), CHUNK)
        parts = [self._pool.submit(decode_rows, self.images, places[s : s + CHUNK], target, s) for s in starts]
        return _Ahead(indices, pictures, parts)


def decode_rows(images: ShardSet, places: list[tuple[int, int]], target: Any, start: int) -> None:
    """Put the samples at `places` (shard, row) into `target[start]` and after: an array, or a list of tensors."""
    for k, (shard, row) in enumerate(places, start):
        opened = images.shard(shard)
        if images.encoding == "raw":
            target[k] = opened.pixels[row]
            continue
        try:
            if isinstance(target, list):
                target[k] = torch.from_numpy(decode_jpeg(opened.encoded(row)))
            else:
                decode_jpeg(opened.encoded(row), target[k])
        except (ValueError, OSError, SyntaxError) as e:
            place = f"{images.folder / images.files[shard].file}: row {row}"
            raise DataError(f"{place}: the picture cannot be decoded ({e}); prepare the split again") from e


def decode_jpeg(encoded: memoryview | bytes, target: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A colour JPEG file as uint8 (H, W, 3), into `target` if there is one; ValueError or OSError if damaged."""
    if simplejpeg is not None:
        if target is None:
            return np.asarray(simplejpeg.decode_jpeg(encoded))
        decoded = simplejpeg.decode_jpeg(encoded, buffer=target)
    else:
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            decoded = np.array(image)
        if target is None:
            return decoded
    if decoded.shape != target.shape:
        raise ValueError(f"{decoded.shape} pixels, expected {target.shape}")
    if simplejpeg is None:
        target[:] = decoded
    return target


def usable_cores() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
