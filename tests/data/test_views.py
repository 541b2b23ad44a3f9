"""Places of windows, counted and listed."""

import pytest

from repro.data.views import centre, crop_positions, ten_views
from repro.errors import DataError


def test_all_places_of_a_crop() -> None:
    """Catches the paper's 32·32, and columns before rows."""
    places = crop_positions(256, 256, 224, 224).tolist()
    assert len(places) * 2 == 2178
    assert (places[0], places[-1]) == ([0, 0], [32, 32])
    assert crop_positions(4, 3, 3, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert crop_positions(5, 5, 5, 5).tolist() == [[0, 0]]


def test_the_five_places_and_their_reflections() -> None:
    """Catches corners off by one, and views of 2012 at random places."""
    five = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert ten_views(256, 256, 224, 224) == [(*p, 0) for p in five] + [(*p, 1) for p in five]
    assert ten_views(6, 5, 4, 4)[3] == (2, 1, 0)


def test_a_centre_between_two_places_is_the_first() -> None:
    """Catches rounding that differs from place to place."""
    assert centre(6, 7, 3, 3) == (1, 2)


@pytest.mark.parametrize("crop", [0, 6, -1])
def test_a_crop_that_does_not_fit(crop: int) -> None:
    """Catches a window that would start before the picture or end after it."""
    with pytest.raises(DataError, match=f"a crop of {crop} does not fit into a picture of 5; give 1…5"):
        centre(5, 5, crop, crop)
