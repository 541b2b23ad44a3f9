"""Batches cut on the device against the same thing written out pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from repro.data.augmentation import Augmentation, Batches, crop_windows
from repro.data.images import ImageSet
from repro.data.random import derive_seed, integers
from repro.errors import DataError


def image_set(n: int, height: int, width: int, channels: int) -> ImageSet:
    """`n` pictures with every pixel drawn; labels are the indices."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return ImageSet("drawn", "train", images, torch.arange(n), ("a",), "", "", (), ())


def draws(indices: torch.Tensor, padding: int, seed: int, epoch: int) -> list[list[int]]:
    """Top, left and mirrored of each picture, drawn as the module says: by (seed, epoch, purpose, index)."""
    high = (2 * padding + 1, 2 * padding + 1, 2)
    return [integers(h, derive_seed(seed, epoch, use), indices).tolist() for use, h in enumerate(high)]


def written_out(images: ImageSet, index: int, top: int, left: int, mirrored: int, p: int, mean: float, std: float):
    """One augmented picture, (C, H, W) float64, one pixel at a time."""
    source = images.images[index].numpy()
    height, width, channels = source.shape
    result = np.empty((channels, height, width))
    for y in range(height):
        for x in range(width):
            row, column = top + y - p, left + (width - 1 - x if mirrored else x) - p
            inside = 0 <= row < height and 0 <= column < width
            for c in range(channels):
                value = source[row, column, c] if inside else 0
                result[c, y, x] = (value / 255 - mean) / std
    return result


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]), st.integers(0, 4), st.booleans(),
    st.integers(0, 2**31), st.integers(0, 100),
)  # fmt: skip
def test_crop_flip_and_standardise_against_a_loop(n, height, width, channels, padding, flip, seed, epoch) -> None:
    """Catches rows and columns exchanged, a window off by one, a mirror along the wrong axis, BGR for RGB, 0…255 for
    0…1, and padding after standardising (a border of mean instead of black).
    """
    images = image_set(n, height, width, channels)
    batches = Batches(images, (0.4,) * channels, (0.3,) * channels, augmentation=Augmentation(padding, flip))
    indices = torch.arange(n).flip(0)
    found, labels = batches.augmented(indices, seed, epoch)
    tops, lefts, mirrors = draws(indices, padding, seed, epoch)
    assert found.shape == (n, channels, height, width)
    assert labels.tolist() == indices.tolist()
    for i, index in enumerate(indices.tolist()):
        expected = written_out(images, index, tops[i], lefts[i], mirrors[i] and flip, padding, 0.4, 0.3)
        np.testing.assert_allclose(found[i].numpy(), expected, atol=2e-6)


def test_a_pictures_draw_does_not_depend_on_its_batch() -> None:
    """Catches draws by place in the batch, which change with the batch size and on resume."""
    batches = Batches(image_set(64, 9, 9, 3), (0.5,) * 3, (0.5,) * 3, augmentation=Augmentation(3, True))
    together, _ = batches.augmented(torch.arange(64), 7, 2)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for part in shuffled.split(5):
        torch.rand(3)  # the global generator has no say
        assert torch.equal(batches.augmented(part, 7, 2)[0], together[part])


def test_epochs_and_seeds_differ() -> None:
    """Catches the same augmentation in every epoch (a generator kept in the data set)."""
    batches = Batches(image_set(64, 9, 9, 1), (0.5,), (0.5,), augmentation=Augmentation(3, True))
    one, other_epoch, other_seed = (batches.augmented(torch.arange(64), *x)[0] for x in ((0, 0), (0, 1), (1, 0)))
    for other in (other_epoch, other_seed):
        same = (one == other).flatten(1).all(1).float().mean()
        assert same < 0.1  # 1 in 98 by chance


def test_draws_are_uniform_and_independent() -> None:
    """Catches offsets that never reach an edge, more than half mirrored, and one number used for two draws."""
    indices = torch.arange(20_000)
    tops, lefts, mirrors = draws(indices, 4, seed=11, epoch=5)
    for values, high in ((tops, 9), (lefts, 9), (mirrors, 2)):
        assert chisquare(np.bincount(values, minlength=high)).pvalue > 1e-3
    for a, b in ((tops, lefts), (tops, mirrors), (lefts, mirrors), (tops[:-1], tops[1:])):
        assert chi2_contingency(np.histogram2d(a, b, bins=(max(a) + 1, max(b) + 1))[0]).pvalue > 1e-3


def test_every_offset_and_both_sides_are_seen_in_the_pictures() -> None:
    """Catches draws that are made and then not used, or used for each other's axis: a bright pixel's places."""
    images = torch.zeros(3000, 5, 5, 1, dtype=torch.uint8)
    images[:, 2, 1] = 255
    lit = ImageSet("lit", "train", images, torch.zeros(3000, dtype=torch.int64), ("a",), "", "", (), ())
    seen, _ = Batches(lit, (0.0,), (1.0,), augmentation=Augmentation(2, True)).augmented(torch.arange(3000), 0, 0)
    counts = (seen[:, 0] == 1).sum(0).numpy()
    # Row 2 moves to rows 0…4; column 1 to −1…3, mirrored to 5…1: one place in five is outside.
    expected = 3000 / 5 * np.tile([0.1, 0.2, 0.2, 0.2, 0.1], (5, 1))
    lost = [3000 - counts.sum()], [3000 - expected.sum()]
    assert chisquare(np.append(counts, lost[0]), np.append(expected, lost[1])).pvalue > 1e-3


def test_plain_leaves_out_augmentation_and_keeps_order() -> None:
    """Catches evaluation on augmented pictures, and a last batch that is dropped or padded."""
    images = image_set(10, 6, 6, 1)
    batches = Batches(images, (0.25,), (0.5,), augmentation=Augmentation(2, True))
    parts = [batches.plain(start, start + 4) for start in range(0, 10, 4)]
    assert [len(labels) for _, labels in parts] == [4, 4, 2]
    expected = (images.images.permute(0, 3, 1, 2).double() / 255 - 0.25) / 0.5
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).double(), expected, atol=1e-6, rtol=0)
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(10))


def test_border_is_black_and_outside_the_crop() -> None:
    """Catches a border of zeros after standardising: LeNet-5's background must be −0.1, not 0."""
    found, _ = Batches(image_set(2, 4, 4, 1), (0.1,), (0.5,), border=2).plain(0, 2)
    assert found.shape == (2, 1, 8, 8)
    assert found[:, :, :2].flatten().tolist() == pytest.approx([-0.2] * 32)


def test_standardised_batches_are_channels_last() -> None:
    """Catches a copy into NCHW, which convolutions would have to turn back."""
    batches = Batches(image_set(2, 4, 5, 3), (0.4,) * 3, (0.3,) * 3, augmentation=Augmentation(1, True))
    x, _ = batches.augmented(torch.arange(2), 0, 0)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_impossible_requests_are_data_errors() -> None:
    """Catches means broadcast over the wrong number of channels, and windows that read past a picture."""
    with pytest.raises(DataError, match="3 channels, but 1 means"):
        Batches(image_set(1, 4, 4, 3), (0.5,), (0.5,))
    with pytest.raises(DataError, match="5×4 is larger than the picture of 4×4"):
        crop_windows(torch.zeros(1, 4, 4, 1, dtype=torch.uint8), 5, 4)
