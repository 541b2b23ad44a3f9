"""The style that all figures share."""

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from repro.visualization import figures


@pytest.fixture(autouse=True)
def _restore_style():
    mpl.use("agg")
    with mpl.rc_context():
        yield
    plt.close("all")


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, 0 for black and 1 for white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_curves_differ_in_more_than_colour():
    """Catches a style whose curves melt into each other in grey print or for colour-blind readers."""
    figures.use_book_style()
    _, ax = plt.subplots()
    curves = [ax.plot([0, 1], [i, i])[0] for i in range(5)]
    assert len({to_hex(curve.get_color()) for curve in curves}) == 5
    assert len({str(curve._unscaled_dash_pattern) for curve in curves}) == 5


def test_the_ground_is_opaque_and_light():
    """Catches a transparent figure, whose black axes vanish on a dark page."""
    figures.use_book_style()
    figure, ax = plt.subplots()
    assert figure.get_facecolor()[3] == 1
    assert luminance(figure.get_facecolor()[:3]) - luminance(ax.spines["left"].get_edgecolor()[:3]) > 0.9


def test_show_images_draws_each_image_under_its_title():
    """Catches a missing picture: one title too few must not pass silently."""
    _, axes = plt.subplots(1, 2)
    images = [torch.zeros(4, 4), torch.eye(4)]
    figures.show_images(axes, images, ["blank", "diagonal"])
    assert [ax.get_title() for ax in axes] == ["blank", "diagonal"]
    assert axes[1].images[0].get_array().sum() == 4
    with pytest.raises(ValueError, match="zip"):
        figures.show_images(axes, images, ["blank"])
