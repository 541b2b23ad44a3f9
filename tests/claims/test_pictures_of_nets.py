"""The checks of filters, ways back, attributions and dreams: each on a case worked by hand, or one that has to fail."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from repro.claims.checks import attributions, dreams, first_filters, leibe2017, photographs, way_back
from repro.visualization.dream import Dream


def test_squares_are_cut_side_by_side() -> None:
    """Catches squares that overlap, channels taken for rows, and a photograph that is left out."""
    cut = photographs.squares(213, 213)
    assert cut.shape == (2 * 2 * 3, 213, 213, 3)
    assert torch.equal(cut[1], photographs.photographs()[0, :213, 213:426])
    assert torch.equal(cut[9], photographs.photographs()[1, 213:426, :213])


def test_the_way_back_has_all_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that compares the deconvnet with itself: without rectifying the pattern is another."""
    assert way_back.way_back_in_three_steps()
    net, image = way_back._small_net(), way_back._image()
    pattern, unit = way_back._written_out(net, image)
    monkeypatch.setattr(way_back, "_written_out", lambda net, image: (pattern.clamp(min=0), unit))
    assert not way_back.way_back_in_three_steps()


def test_maxima_return_to_their_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches values that are put back into the corner of their window."""
    assert way_back.unpooling_restores_maxima(2)
    assert way_back.unpooling_restores_maxima(3)

    def into_corners(model: nn.Module, maps: Tensor, *args: object, **options: object) -> SimpleNamespace:
        pixels = torch.zeros_like(maps)
        pixels[..., ::2, ::2] = nn.functional.max_pool2d(maps, 2)
        return SimpleNamespace(pixels=pixels)

    monkeypatch.setattr(way_back, "deconvnet", into_corners)
    assert not way_back.unpooling_restores_maxima(2)


def test_only_relus_part_deconvnet_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that is content with equality, or with difference, alone."""
    assert way_back.deconvnet_is_gradient_but_for_relus()
    for always in (True, False):
        monkeypatch.setattr(way_back, "_is_gradient", lambda net, image, always=always: always)
        assert not way_back.deconvnet_is_gradient_but_for_relus()


def test_guided_is_not_either_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rule for guided backpropagation that asks for one of the two conditions."""
    assert way_back.guided_passes_what_both_pass()
    for other in ("gradient", "deconvnet"):
        monkeypatch.setitem(way_back.RULES, "guided", way_back.RULES[other])
        assert not way_back.guided_passes_what_both_pass()


def test_own_picture_has_to_be_the_likest() -> None:
    """Catches patterns held against each other: of three, two go best with their own."""
    images = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    patterns = 5 * images[[0, 1, 1]] + 2
    assert way_back.own_comes_first(patterns, images) == pytest.approx(2 / 3)


def test_pairs_are_of_units_or_of_pictures() -> None:
    """Catches the two kinds of pairs exchanged: here all units have one pattern in a picture."""
    generator = torch.Generator().manual_seed(0)
    by_picture = torch.randn(1, 3, 500, generator=generator).expand(3, 3, 500)
    of_units, of_pictures = way_back.likeness_of_pairs(by_picture)
    assert of_units == pytest.approx(1)
    assert abs(of_pictures) < 0.2


def test_a_move_is_measured_against_other_pictures() -> None:
    """Catches a distance without its unit: maps that move by 1 where the next picture is 2 away move by a half."""
    before = torch.tensor([0.0, 2]).view(2, 1, 1, 1)
    assert way_back.moved(before, before + 1) == pytest.approx(0.5)


def test_sums_miss_the_rise_by_their_share() -> None:
    """Catches the score in the place of its rise: a linear net's sums are exact, and half of them miss by a half."""
    net, image = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2)
    one = attributions.attribute(net, image, 0, "integrated", steps=5)
    assert attributions._gap(net, one, torch.zeros_like(image)) < 1e-4
    halved = SimpleNamespace(maps=one.maps / 2, score=one.score, target=one.target)
    assert attributions._gap(net, halved, torch.zeros_like(image)) == pytest.approx(0.5, abs=1e-4)  # type: ignore[arg-type]
    assert not attributions.path_adds_up(steps=3, within=0.01)


def test_glass_takes_a_share_away() -> None:
    """Catches a share that stays in the place of one that goes, and windows that add up over copies."""
    net, image = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False)), torch.ones(1, 1, 4, 4)
    nn.init.ones_(net[1].weight)  # type: ignore[arg-type]
    boxes = [(0, 0, 2, 2), (2, 0, 4, 4)]
    falls = attributions._falls(net, image, 0, boxes, 0.25)
    assert falls.tolist() == pytest.approx([1, 2])  # a quarter of 4 and of 8 pixels


def test_likeness_is_of_the_topmost_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mean over all layers, and one method that answers for the others."""
    fading = torch.tensor([[0.9, 0.9], [0.8, 0.8], [0.0, 0.0]])
    found = {"guided": fading, "saliency": fading / 3, "gradcam": -fading}
    monkeypatch.setattr(attributions, "_likeness", lambda net, layer: found)
    assert attributions.maps_survive("net", "guided", 2, 0.7, "layer")
    assert not attributions.maps_survive("net", "guided", 3, 0.7, "layer")
    assert attributions.maps_change("net", ["saliency", "gradcam"], 2, 0.5, "layer")
    assert not attributions.maps_change("net", ["saliency", "guided"], 2, 0.5, "layer")


def test_rivals_are_held_down_by_the_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches own and other class, or score and probability, the wrong way round."""
    monkeypatch.setattr(dreams, "_climbed", lambda net, prior: ((9.0, 4.0), (6.0, 2.0)))
    assert dreams.score_takes_class_higher("net", "l2", 2)
    assert not dreams.score_takes_class_higher("net", "l2", 3)
    assert dreams.probability_holds_rivals_down("net", "l2", 1)
    assert not dreams.probability_holds_rivals_down("net", "l2", 2)


def test_a_prior_has_to_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches dreams with and without the prior exchanged; two of three are recognised with it, one without."""
    images = {"none": torch.eye(3)[[0, 0, 0]], "spectrum": torch.eye(3)[[0, 1, 1]]}

    def made(net: str, prior: str) -> Dream:
        return Dream([0], images[prior], images[prior], torch.zeros(1), torch.zeros(1), torch.zeros(1))

    monkeypatch.setattr(leibe2017, "_dreams", made)
    monkeypatch.setattr(leibe2017.weights, "load", lambda name: SimpleNamespace(model=lambda x: x))
    assert leibe2017.prior_helps_another_net("net", "other", "spectrum")
    images["none"] = images["spectrum"]
    assert not leibe2017.prior_helps_another_net("net", "other", "spectrum")


@pytest.mark.parametrize(("second", "differ"), [(0.0, True), (1.0, False)])
def test_columns_differ_where_one_is_grey(monkeypatch: pytest.MonkeyPatch, second: float, differ: bool) -> None:
    """Catches halves that are interleaved, and the share of divisions that differ less."""
    colour = torch.cat([torch.ones(8), torch.full((8,), second)]) + 1e-3 * torch.arange(16).remainder(2)
    structure = SimpleNamespace(structure=SimpleNamespace(colour=colour))
    monkeypatch.setattr(first_filters, "filters", lambda model, layer: structure)
    monkeypatch.setattr(first_filters.weights, "load", lambda name: SimpleNamespace(model=None))
    assert first_filters.columns_differ_in_colour("net", "layer", 0.05) is differ


def test_photographs_are_no_noise() -> None:
    """Catches a slope of the wrong sign, and one over pixels in the place of frequencies."""
    assert -2 < dreams.slope_of_photographs() < -0.5
