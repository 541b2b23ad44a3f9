"""Resampled batches against homogeneous matrices multiplied out and pixels interpolated one by one."""

import math

import numpy as np
import pytest
import torch
from helpers import drawn_set
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from repro.data.affine import Affine
from repro.data.augmentation import Augmentation, Batches, Draws

NOTHING = {"angle": 0.0, "shear": 0.0, "zoom_x": 1.0, "zoom_y": 1.0, "shift_x": 0.0, "shift_y": 0.0}


def affine(**chosen: float) -> Affine:
    """One picture's transformation; what is not chosen does nothing."""
    return Affine(**{name: torch.tensor([value]) for name, value in (NOTHING | chosen).items()})


def bare(images, augmentation: Augmentation | None = None) -> Batches:
    """Batches whose pictures come out in 0…255."""
    channels = images.images.shape[3]
    return Batches(images, (0.0,) * channels, (1 / 255,) * channels, augmentation=augmentation)


def pixels_of(batches: Batches, draws: Draws) -> np.ndarray:
    """The first picture, (H, W, C) float32."""
    return batches.apply(torch.tensor([0]), draws)[0].permute(1, 2, 0).numpy()


def matrix(p: dict[str, float], height: int, width: int) -> np.ndarray:
    """Centre · rotation · shift · shear · zoom · centre⁻¹ as 3×3 matrices over (x, y, 1)."""
    turn, shear = math.radians(p["angle"]), math.radians(p["shear"])
    cx, cy = (width - 1) / 2, (height - 1) / 2
    factors = [
        [[1, 0, cx], [0, 1, cy], [0, 0, 1]],
        [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]],
        [[1, 0, p["shift_x"] * width], [0, 1, p["shift_y"] * height], [0, 0, 1]],
        [[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]],
        [[p["zoom_x"], 0, 0], [0, p["zoom_y"], 0], [0, 0, 1]],
        [[1, 0, -cx], [0, 1, -cy], [0, 0, 1]],
    ]
    return np.linalg.multi_dot([np.array(f, dtype=float) for f in factors])


def interpolated(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """The bilinear mean of the four pixels around (x, y), those outside replaced by the nearest inside."""
    height, width = picture.shape[:2]
    left, top = math.floor(x), math.floor(y)
    value = np.zeros(picture.shape[2])
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = picture[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            value += down * across * inside
    return value


def written_out(picture: np.ndarray, p: dict[str, float]) -> np.ndarray:
    height, width, channels = picture.shape
    m, result = matrix(p, height, width), np.empty((height, width, channels))
    for i in range(height):
        for j in range(width):
            x, y, _ = m @ (j, i, 1)
            result[i, j] = interpolated(picture.astype(float), x, y)
    return result


ranges = {
    "angle": st.floats(-180, 180), "shear": st.floats(-60, 60),
    "zoom_x": st.floats(0.5, 2), "zoom_y": st.floats(0.5, 2),
    "shift_x": st.floats(-0.6, 0.6), "shift_y": st.floats(-0.6, 0.6),
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(ranges), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3]))
def test_against_matrices_and_interpolation_written_out(p, height, width, channels) -> None:
    """Catches factors in another order, a centre half a pixel off (`align_corners`), a shear in radians or along the
    other axis, x for y, and black instead of the nearest pixel outside.
    """
    images = drawn_set(1, height, width, channels)
    found = pixels_of(bare(images), Draws(affine=affine(**p)))
    np.testing.assert_allclose(found, written_out(images.images[0].numpy(), p), atol=0.02)  # of 255


@pytest.mark.parametrize("angle", [-90.0, 15.0, 180.0])
def test_a_rotation_is_torchvisions(angle: float) -> None:
    """Catches a turn in the other sense: positive angles turn the content counter-clockwise."""
    images = drawn_set(1, 31, 31, 3)
    found = pixels_of(bare(images), Draws(affine=affine(angle=angle)))
    picture = images.images[0].permute(2, 0, 1).float()
    expected = TF.rotate(picture, angle, InterpolationMode.BILINEAR).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found[8:23, 8:23], expected[8:23, 8:23], atol=0.02)  # the corners are filled differently


def test_each_parameter_by_hand() -> None:
    """Catches a shift to the other side, a zoom that is inverted, and x for y: where a bright pixel goes."""
    images = drawn_set(1, 9, 9, 1)
    images.images.zero_()
    images.images[0, 4, 6] = 200  # on the middle row, two to the right of the centre

    def place(**chosen: float) -> list[list[int]]:
        found = pixels_of(bare(images), Draws(affine=affine(**chosen)))[..., 0]
        return np.argwhere(found > 199).tolist()

    assert place() == [[4, 6]]
    assert place(shift_x=1 / 9) == [[4, 5]]
    assert place(shift_y=1 / 9) == [[3, 6]]
    assert place(zoom_x=2.0) == [[4, 5]]
    assert place(zoom_x=0.5) == [[4, 8]]
    assert place(zoom_y=2.0) == [[4, 6]]
    assert place(angle=90.0) == [[2, 4]]
    assert place(shear=45.0) == [[4, 6]]


@pytest.mark.parametrize("side", [12, 240])  # a part of a batch, and a single picture at a time
def test_crop_and_mirror_come_after(side: int) -> None:
    """Catches a crop whose own centre is the centre of rotation, and a mirrored picture cut on the other side."""
    images = drawn_set(1, side, side + 2, 3)
    p = {"angle": 10.0, "shear": 5.0, "zoom_x": 0.9, "zoom_y": 1.1, "shift_x": 0.05, "shift_y": -0.1}
    whole = pixels_of(bare(images), Draws(affine=affine(**p)))
    batches = bare(images, Augmentation(crop=side - 5))
    top, left = torch.tensor([3]), torch.tensor([1])
    cut = whole[3 : side - 2, 1 : side - 4]
    np.testing.assert_allclose(pixels_of(batches, Draws(top, left, affine=affine(**p))), cut, atol=0.05)
    mirrored = pixels_of(batches, Draws(top, left, torch.tensor([1]), affine(**p)))
    np.testing.assert_allclose(mirrored, cut[:, ::-1], atol=0.05)
    plain = batches.apply(torch.tensor([0]), Draws(top, left)).permute(0, 2, 3, 1)[0].numpy()
    np.testing.assert_allclose(pixels_of(batches, Draws(top, left, affine=affine())), plain, atol=0.01)


def test_draws_reach_their_limits_on_both_sides_and_are_independent() -> None:
    """Catches ranges to one side only, degrees for radians, the same zoom along both axes, one number for two draws."""
    images = drawn_set(1, 4, 4, 1)
    limits = Augmentation(rotation=15, shear=0.2, zoom=0.3, shift=0.1)
    drawn = bare(images, limits).draw(torch.arange(4000), 3, 1).affine
    assert drawn is not None
    found = {name: getattr(drawn, name).numpy() for name in NOTHING}
    expected = {"angle": 15, "shear": 0.2, "zoom_x": 0.3, "zoom_y": 0.3, "shift_x": 0.1, "shift_y": 0.1}
    for name, limit in expected.items():
        centred = (found[name] - NOTHING[name]) / limit
        assert np.abs(centred).max() <= 1 + 1e-5
        assert centred.min() < -0.99 < 0.99 < centred.max()
        assert abs(centred.mean()) < 4 / math.sqrt(3 * 4000)  # four standard errors
    correlations = np.corrcoef([*found.values()]) - np.eye(6)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(4000)


def test_a_pictures_transformation_does_not_depend_on_its_batch() -> None:
    """Catches draws by place in the batch, and a result that depends on its neighbours in one call."""
    augmentation = Augmentation(rotation=15, shear=0.2, zoom=0.2, shift=0.2, flip=True)
    batches = bare(drawn_set(20, 16, 16, 3), augmentation)
    together, _ = batches.augmented(torch.arange(20), 7, 2)
    for part in torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(3):
        assert torch.equal(batches.augmented(part, 7, 2)[0], together[part])
    assert not torch.equal(batches.augmented(torch.arange(20), 7, 3)[0], together)
