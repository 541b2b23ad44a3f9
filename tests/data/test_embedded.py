"""The two sets that need no file."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from repro.data import embedded
from repro.errors import DataError


def test_digits_at_size_8_are_scikit_learns_pixels_in_order() -> None:
    """Catches shuffled labels, a wrong scale (16 levels to 255) and train and test that overlap or leave one out."""
    raw = load_digits()
    train, test = embedded.digits("train", 8), embedded.digits("test", 8)
    assert (len(train[0]), len(test[0])) == (1500, 297)
    together = np.concatenate([train[0], test[0]])[..., 0]
    np.testing.assert_allclose(together, raw.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), raw.target)


def test_digits_lie_in_mnists_frame() -> None:
    """Catches digits that fill the picture or sit off centre, which a net for MNIST would see otherwise."""
    images, _ = embedded.digits("train")
    assert images.shape == (1500, 28, 28, 1)
    border = images.copy()
    border[:, 4:24, 4:24] = 0
    assert border.max() == 0
    ink = images[..., 0].astype(float).mean(0)
    centre = (ink.sum(1) @ np.arange(28) / ink.sum(), ink.sum(0) @ np.arange(28) / ink.sum())
    assert centre == pytest.approx((13.5, 13.5), abs=0.6)


def test_a_nearest_mean_tells_digits_apart() -> None:
    """Catches labels that do not belong to their pictures: nine in ten are right by the nearest class mean alone."""
    (train, labels), (test, truth) = embedded.digits("train"), embedded.digits("test")
    means = np.stack([train[labels == k].reshape(-1, 784).mean(0) for k in range(10)])
    distances = ((test.reshape(-1, 1, 784) - means) ** 2).sum(2)
    assert (distances.argmin(1) == truth).mean() > 0.8


def test_shapes_are_the_same_everywhere_and_at_every_size() -> None:
    """Catches a generator that carries state from picture to picture, or from size to size."""
    images, labels = embedded.shapes("test", 16)
    again, _ = embedded.shapes("test", 16)
    np.testing.assert_array_equal(images, again)
    large, _ = embedded.shapes("test", 64)
    shrunk = large.reshape(1000, 16, 4, 16, 4, 3).mean((2, 4))
    assert np.abs(shrunk - images).mean() < 4
    assert labels.tolist() == [i % 10 for i in range(1000)]
    train, _ = embedded.shapes("train", 16)
    assert not (train[:1000] == images).all((1, 2, 3)).any()


def test_shapes_are_pinned() -> None:
    """Catches a change of the drawing, which would change every number measured on it: means to a thousandth."""
    images, _ = embedded.shapes("test", 8)
    assert images.mean((0, 1, 2)) / 255 == pytest.approx([0.4957, 0.4948, 0.4951], abs=1e-3)
    assert len({hashlib.sha256(i.tobytes()).digest() for i in images}) == 1000


def test_every_shape_differs_from_every_other() -> None:
    """Catches two classes drawn alike: outlines of one size and place, drawn for each class, overlap little enough."""
    axis = (np.arange(64) + 0.5) / 32 - 1
    v, u = np.meshgrid(axis * 1.2, axis * 1.2, indexing="ij")
    masks = np.stack([embedded._inside(shape, u, v) > 0 for shape in embedded.SHAPE_CLASSES])
    for i, a in enumerate(masks):
        assert 0.1 < a.mean() < 0.8
        for b in masks[:i]:
            assert (a & b).sum() / (a | b).sum() < 0.96


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_sizes_too_small_are_refused(name: str) -> None:
    """Catches an empty box, or a picture of nothing."""
    with pytest.raises(DataError, match="size 7"):
        getattr(embedded, name)("train", 7)
