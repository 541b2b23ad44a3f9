"""Batches cut on the device against the same thing written out pixel by pixel."""

from itertools import product

import numpy as np
import pytest
import torch
from helpers import drawn_set
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torchvision.transforms import functional as TF

from repro.data import augmentation as module
from repro.data.augmentation import Augmentation, Batches, Draws, crop_windows
from repro.data.color import ColorPCA
from repro.data.images import ImageSet, mean_image
from repro.data.random import derive_seed, integers
from repro.errors import DataError


def draws(indices: torch.Tensor, places: int, seed: int, epoch: int) -> list[list[int]]:
    """Top, left and mirrored of each picture, drawn as the module says: by (seed, epoch, purpose, index)."""
    high = (places, places, 2)
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
    images = drawn_set(n, height, width, channels)
    batches = Batches(images, (0.4,) * channels, (0.3,) * channels, augmentation=Augmentation(padding, flip))
    indices = torch.arange(n).flip(0)
    found, labels = batches.augmented(indices, seed, epoch)
    tops, lefts, mirrors = draws(indices, 2 * padding + 1, seed, epoch)
    assert found.shape == (n, channels, height, width)
    assert labels.tolist() == indices.tolist()
    for i, index in enumerate(indices.tolist()):
        expected = written_out(images, index, tops[i], lefts[i], mirrors[i] and flip, padding, 0.4, 0.3)
        np.testing.assert_allclose(found[i].numpy(), expected, atol=2e-6)


def test_a_pictures_draw_does_not_depend_on_its_batch() -> None:
    """Catches draws by place in the batch, which change with the batch size and on resume."""
    images, noisy = drawn_set(64, 9, 9, 3), Augmentation(3, True, color_noise=0.1)
    batches = Batches(images, (0.5,) * 3, (0.5,) * 3, augmentation=noisy, pca=ColorPCA.of(images))
    together, _ = batches.augmented(torch.arange(64), 7, 2)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for part in shuffled.split(5):
        torch.rand(3)  # the global generator has no say
        assert torch.equal(batches.augmented(part, 7, 2)[0], together[part])


def test_draws_are_uniform_and_independent() -> None:
    """Catches offsets that never reach an edge, more than half mirrored, and one number used for two draws."""
    indices = torch.arange(20_000)
    tops, lefts, mirrors = draws(indices, 9, seed=11, epoch=5)
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
    images = drawn_set(10, 6, 6, 1)
    batches = Batches(images, (0.25,), (0.5,), augmentation=Augmentation(2, True))
    parts = [batches.plain(start, start + 4) for start in range(0, 10, 4)]
    assert [len(labels) for _, labels in parts] == [4, 4, 2]
    expected = (images.images.permute(0, 3, 1, 2).double() / 255 - 0.25) / 0.5
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).double(), expected, atol=1e-6, rtol=0)
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(10))


def test_border_is_black_and_outside_the_crop() -> None:
    """Catches a border of zeros after standardising: LeNet-5's background must be −0.1, not 0."""
    found, _ = Batches(drawn_set(2, 4, 4, 1), (0.1,), (0.5,), border=2).plain(0, 2)
    assert found.shape == (2, 1, 8, 8)
    assert found[:, :, :2].flatten().tolist() == pytest.approx([-0.2] * 32)


def test_standardised_batches_are_channels_last() -> None:
    """Catches a copy into NCHW, which convolutions would have to turn back."""
    batches = Batches(drawn_set(2, 4, 5, 3), (0.4,) * 3, (0.3,) * 3, augmentation=Augmentation(1, True))
    x, _ = batches.augmented(torch.arange(2), 0, 0)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_impossible_requests_are_data_errors() -> None:
    """Catches means broadcast over the wrong number of channels, and windows that read past a picture."""
    with pytest.raises(DataError, match="3 channels, but 1 means"):
        Batches(drawn_set(1, 4, 4, 3), (0.5,), (0.5,))
    with pytest.raises(DataError, match="5×4 is larger than the picture of 4×4"):
        crop_windows(torch.zeros(1, 4, 4, 1, dtype=torch.uint8), 5, 4)
    with pytest.raises(DataError, match="crop of 5×5 is larger than the picture of 4×6"):
        Batches(drawn_set(1, 4, 6, 1), (0.5,), (0.5,), augmentation=Augmentation(crop=5))
    with pytest.raises(DataError, match="colour noise needs `pca`"):
        Batches(drawn_set(1, 4, 4, 3), (0.5,) * 3, (0.5,) * 3, augmentation=Augmentation(color_noise=0.1))
    with pytest.raises(DataError, match=r"a mean image of \(4, 4, 3\) for pictures of \(5, 5, 3\)"):
        Batches(drawn_set(1, 5, 5, 3), (0.5,) * 3, (0.5,) * 3, mean_image=torch.zeros(4, 4, 3))
    with pytest.raises(DataError, match="cannot be rotated"):
        Batches(
            drawn_set(1, 4, 4, 1), (0.5,), (0.5,), augmentation=Augmentation(rotation=5),
            mean_image=torch.zeros(4, 4, 1), mean_image_cut="crop",
        )  # fmt: skip


@pytest.mark.parametrize(("side", "crop"), [(20, 9), (240, 224)])  # parts of a batch, and one picture at a time
def test_random_crops_are_torchvisions(side: int, crop: int) -> None:
    """Catches a crop that leaves the mirror to the other side, an offset of one, and a fast path that differs."""
    images = drawn_set(6, side, side + 3, 3)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    batches = Batches(images, mean, std, augmentation=Augmentation(crop=crop, flip=True))
    indices = torch.tensor([4, 0, 3, 1, 5, 2])
    found, _ = batches.augmented(indices, 5, 1)
    drawn = batches.draw(indices, 5, 1)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    assert drawn.mirrored.unique().tolist() == [0, 1]
    for k, i in enumerate(indices):
        cut = TF.crop(images.images[i].permute(2, 0, 1), int(drawn.top[k]), int(drawn.left[k]), crop, crop)
        expected = TF.normalize((TF.hflip(cut) if drawn.mirrored[k] else cut).double() / 255, mean, std)
        torch.testing.assert_close(found[k].double(), expected, atol=2e-6, rtol=0)


def test_the_evaluations_crop_is_the_centre() -> None:
    """Catches a corner, or an augmented picture, in the test set's place."""
    images = drawn_set(3, 16, 12, 3)
    batches = Batches(images, (0.0,) * 3, (1 / 255,) * 3, augmentation=Augmentation(crop=8, flip=True, rotation=9))
    found, _ = batches.plain(1, 3)
    expected = TF.center_crop(images.images[1:3].permute(0, 3, 1, 2), [8, 8])
    torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=0)


def test_224_of_256_has_33_times_33_places_on_each_side() -> None:
    """Catches offsets 0…31, of which the paper's 2048 speaks: all 33 have to occur, as often as each other."""
    batches = Batches(drawn_set(1, 256, 256, 1), (0.5,), (0.5,), augmentation=Augmentation(crop=224, flip=True))
    drawn = batches.draw(torch.arange(40_000), 1, 2)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    for offsets in (drawn.top, drawn.left):
        counts = np.bincount(offsets, minlength=33)
        assert len(counts) == 33
        assert chisquare(counts).pvalue > 1e-3
    together = (drawn.top * 33 + drawn.left) * 2 + drawn.mirrored
    assert chisquare(np.bincount(together, minlength=2178)).pvalue > 1e-3


def test_a_chunk_shares_crop_and_reflection() -> None:
    """Catches a chunk counted over the epoch instead of the batch's order, one that shares the transformation or the
    colour too, a last, shorter chunk lost, and chunks that all share one draw.
    """
    images = drawn_set(100, 12, 12, 3)
    noisy = Augmentation(crop=5, flip=True, crop_chunk=32, color_noise=0.1, rotation=5)
    batches = Batches(images, (0.5,) * 3, (0.5,) * 3, augmentation=noisy, pca=ColorPCA.of(images))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    drawn, own = batches.draw(order, 1, 0), draws(order, 8, 1, 0)
    for found, first in zip((drawn.top, drawn.left, drawn.mirrored), own, strict=True):
        assert found is not None
        assert found.tolist() == [first[k // 32 * 32] for k in range(100)]
    assert drawn.color is not None
    assert drawn.affine is not None
    assert len(drawn.color[:, 0].unique()) == 100
    assert len(drawn.affine.angle.unique()) == 100
    again = batches.draw(order[32:64], 1, 0)  # as after a resume: the batch that starts with this chunk
    assert again.top is not None
    assert drawn.top is not None
    assert again.top.tolist() == drawn.top[32:64].tolist()


@pytest.mark.parametrize("cut", ["centre", "crop"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [9, 230])
def test_mean_images_against_the_two_orders_written_out(cut: str, flip: bool, side: int) -> None:
    """Catches the centre of the mean image where it should move with the crop or the other way round, one mirrored
    where it should not be, and padding whose mean is not 0.
    """
    images, crop, padding = drawn_set(5, side, side, 3), side - 3, 1
    mean = mean_image(images)
    batches = Batches(
        images, (9.0,) * 3, (0.5,) * 3, augmentation=Augmentation(padding, flip, crop),
        mean_image=mean, mean_image_cut=cut,
    )  # fmt: skip
    indices = torch.arange(5)
    found, _ = batches.augmented(indices, 3, 0)
    tops, lefts, mirrors = draws(indices, 6, 3, 0)

    def padded(picture: torch.Tensor) -> np.ndarray:
        return np.pad(picture.double().numpy(), ((padding, padding), (padding, padding), (0, 0)))

    for i in range(5):
        y, x, c = tops[i], lefts[i], 2  # the centre of the 6 places is the third
        picture, average = padded(images.images[i]) / 255, padded(mean)
        average = average[c : c + crop, c : c + crop] if cut == "centre" else average[y : y + crop, x : x + crop]
        picture = picture[y : y + crop, x : x + crop]
        if flip and mirrors[i]:
            picture = picture[:, ::-1]
            average = average[:, ::-1] if cut == "crop" else average
        np.testing.assert_allclose(found[i].permute(1, 2, 0).numpy(), (picture - average) / 0.5, atol=2e-6)
        shown = batches.visible(found, batches.draw(indices, 3, 0))[i]
        np.testing.assert_array_equal(shown.numpy(), np.round(picture * 255))


@pytest.mark.parametrize(("convention", "divisor"), [("paper", 1.0), ("code", 1.1)])
def test_the_order_of_2012(convention: str, divisor: float) -> None:
    """Catches noise that is divided by the mean's order: the code subtracts the mean, adds the noise, then divides all
    by 1 + σ; and a colour that depends on the pixel.
    """
    images = drawn_set(5, 8, 8, 3)
    mean, pca = mean_image(images), ColorPCA.of(images)
    noisy = Augmentation(color_noise=0.1, color_noise_convention=convention)
    batches = Batches(images, (0.5,) * 3, (0.25,) * 3, augmentation=noisy, mean_image=mean, pca=pca)
    indices = torch.arange(5)
    found, _ = batches.augmented(indices, 1, 0)
    color = batches.draw(indices, 1, 0).color
    assert color is not None
    assert color.abs().amax(1).min() > 0
    expected = (images.images.double() / 255 - mean + color[:, None, None]) / divisor / 0.25
    torch.testing.assert_close(found.permute(0, 2, 3, 1).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("side", "crop"), [(16, 10), (15, 15)])
def test_ten_views_are_torchvisions(side: int, crop: int) -> None:
    """Catches views chosen at random, the mirrored ones first, rows for columns, and labels that are repeated."""
    images = drawn_set(7, side, side, 3)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    batches = Batches(images, mean, std, augmentation=Augmentation(crop=crop))
    found, labels = batches.ten_views(2, 9)
    assert labels.tolist() == [2, 3, 4, 5, 6]
    assert found.shape == (5, 10, 3, crop, crop)
    assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    five = TF.five_crop(images.images[2:].permute(0, 3, 1, 2), [crop, crop])
    expected = torch.stack([*five, *map(TF.hflip, five)], 1)
    torch.testing.assert_close(found, TF.normalize(expected / 255, mean, std), atol=2e-6, rtol=0)


def test_draws_made_by_hand_show_one_thing_alone() -> None:
    """Catches a gallery that shows other pictures than the net gets, and a mean that is not added again."""
    images = drawn_set(2, 6, 6, 3)
    batches = Batches(images, images.images.double().mean((0, 1, 2)).div(255).tolist(), (0.3,) * 3)
    mirrored = Draws(mirrored=torch.tensor([0, 1]))
    shown = batches.visible(batches.apply(torch.tensor([0, 1]), mirrored), mirrored)
    assert torch.equal(shown, torch.stack([images.images[0], images.images[1].flip(1)]))
    cropped = Batches(images, (0.0,) * 3, (1.0,) * 3, augmentation=Augmentation(crop=2))
    shown = cropped.visible(cropped.apply(torch.tensor([0, 1]), mirrored), mirrored)
    assert torch.equal(shown, torch.stack([images.images[0], images.images[1].flip(1)])[:, 2:4, 2:4])
    red = Draws(color=torch.tensor([[0.2, 0.0, 0.0]]))
    shown = batches.visible(batches.apply(torch.tensor([0]), red), red).int()
    assert torch.equal(shown, (images.images[:1].int() + torch.tensor([51, 0, 0])).clamp(max=255))


@pytest.mark.parametrize(("affine", "crop"), list(product([0.0, 10.0], [None, 7])))
def test_parts_of_a_batch_do_not_show(affine: float, crop: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches draws taken from the start for every part, and a last part that is lost."""
    images = drawn_set(11, 10, 10, 3)
    augmentation = Augmentation(crop=crop, flip=True, rotation=affine, color_noise=0.1)
    batches = Batches(images, (0.5,) * 3, (0.5,) * 3, augmentation=augmentation, pca=ColorPCA.of(images))
    indices = torch.arange(11).flip(0)
    whole, _ = batches.augmented(indices, 0, 0)
    for values in (1, 3 * 300):
        monkeypatch.setattr(module, "_PART", values)
        torch.testing.assert_close(batches.augmented(indices, 0, 0)[0], whole, atol=1e-5, rtol=0)
    assert batches.augmented(indices[:0], 0, 0)[0].shape == (0, 3, crop or 10, crop or 10)
