"""Statistics of a set against NumPy over all of it at once."""

import numpy as np
import pytest
from helpers import drawn_set

from repro.data.images import mean_image
from repro.errors import DataError


def test_the_mean_image_is_numpys() -> None:
    """Catches sums that wrap at 256, a last chunk weighted like a whole one, and a mean over pixels too."""
    images = drawn_set(700, 3, 4, 3)
    found = mean_image(images)
    assert found.shape == (3, 4, 3)
    np.testing.assert_allclose(found, images.images.double().numpy().mean(0) / 255, atol=1e-7)


def test_no_pictures_have_no_mean() -> None:
    """Catches NaN for a mean."""
    with pytest.raises(DataError, match="no mean image"):
        mean_image(drawn_set(0, 2, 2, 3))
