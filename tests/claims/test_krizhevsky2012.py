"""The checks behind the claims of the AlexNet paper, against examples worked by hand and loops written out."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from repro.claims.checks import krizhevsky2012 as checks
from repro.claims.checks import krizhevsky2012_units as units


def test_kernels_have_the_depth_that_they_read():
    """Catches the layer's inputs in place of the kernel's depth, and numbers counted from 0."""
    assert checks.kernels("alexnet_2012", first=2, last=3) == ["5×5×48", "3×3×256"]
    assert checks.kernels("alexnet_flowers", last=2) == ["11×11×3", "5×5×96"]


def test_follows_counts_layers_with_weights():
    """Catches layers of all kinds counted, and a part of the net that is not kept to."""
    assert checks.follows("alexnet", "Dropout") == [5, 6]
    assert checks.follows("alexnet_2012", "ReLU", part="classifier") == [6, 7]


def test_between_ends_at_the_next_weights():
    """Catches a list that goes on to the next layer, and one that begins with the layer itself."""
    assert checks.between("alexnet_2012_code", "features.conv2") == [
        "ReLU",
        "LocalResponseNorm",
        "ResponseNormWithinMap",
        "MaxPool2d",
    ]
    assert checks.between("alexnet_2012", "features.conv3") == ["ReLU"]


def test_reads_tells_columns():
    """Catches groups taken from the wrong layer: a net of one column reads all everywhere."""
    layers = ["features.conv2", "features.conv3"]
    assert checks.reads("alexnet_2012", layers) == ["own", "all"]
    assert checks.reads("alexnet_one_column", layers) == ["all", "all"]


def test_neurons_by_hand():
    """Catches places left out (a unit for each map), and pooled sizes in place of the convolutions' own."""
    by_hand = [55 * 55 * 48, 27 * 27 * 128, 13 * 13 * 192, 13 * 13 * 192, 13 * 13 * 256, 4096, 4096, 1000]
    assert checks.neurons("alexnet_one_column") == by_hand
    assert checks.all_neurons("alexnet_one_column") == sum(by_hand)


def test_shares_of_parameters_by_hand():
    """Catches a fraction in place of per cent, biases left out, and convolutions missed for their class's name."""
    conv3, total = 9 * 256 * 384 + 384, 60_965_224
    assert checks.largest_convolution("alexnet_2012") == pytest.approx(100 * conv3 / total)
    assert checks.holds_most("alexnet_2012", "classifier.fc6")
    assert not checks.holds_most("alexnet_2012", "classifier.fc7")


def test_size_ratio_by_hand():
    """Catches the fraction upside down."""
    assert checks.size_ratio("alexnet_one_column", "alexnet_2012") == pytest.approx(59_798_312 / 60_965_224)


def test_sides_by_hand():
    """10 pixels, windows of 3 at 2: four places inside, a fifth over the edge. Catches the rules exchanged."""
    assert checks.sides(10, [[3, 2], [2, 2]]) == [4, 2]
    assert checks.sides(10, [[3, 2], [2, 2]], round_up=True) == [5, 3]


def test_positive_at_start_needs_the_biases():
    """Layer 1, 3 and 8 start with biases of 0. Catches a share above 0 for any layer, and inputs after the ReLU."""
    assert checks.positive_at_start(["conv2", "fc6"])
    assert not checks.positive_at_start(["conv3"])


def test_crops_by_hand():
    """A window of 3 in 5: three offsets, so nine windows. Catches (5 − 3)² and reflections forgotten."""
    assert checks.crops_and_reflections(5, 3) == 18


def test_shared_pixels_by_hand():
    """Two of three offsets are 0, 1 or 2 apart in 3, 4 and 2 of nine cases.

    Windows of 3 share 19/27 of a side, (19/27)² = 0.495 of the pixels, and windows of 4 share 28/36, 0.605. Catches one
    side in place of both.
    """
    assert not checks.crops_share_most(5, 3)
    assert checks.crops_share_most(6, 4)


def test_work_of_augmentation_by_hand():
    """AlexNet meets 724,406,816 weights, which are 4,346,440,896 operations a step; a hundredth is nine times 2,197.6².

    Catches one pass of three, one operation for two, and one channel for three.
    """
    assert checks.augmentation_costs_little("alexnet_2012", 2197)
    assert not checks.augmentation_costs_little("alexnet_2012", 2198)


def test_ten_views_by_hand():
    """Catches a centre at the rounded-up place, and mirrored windows at other places."""
    assert checks.ten_test_views(5, 3)[4:6] == ["(1, 1)", "(0, 0) mirrored"]
    assert checks.ten_test_views(5, 3)[:4] == ["(0, 0)", "(0, 2)", "(2, 0)", "(2, 2)"]


def test_greyness_is_not_that_of_the_mean():
    """Catches the smallest component in place of the first, and the uncentred moments."""
    from sklearn.datasets import load_sample_images
    from sklearn.decomposition import PCA

    pixels = torch.cat([torch.tensor(image).reshape(-1, 3) for image in load_sample_images().images]).double()
    first = PCA(1).fit(pixels.numpy()).components_[0]
    assert checks.greyness_of_first_colour() == pytest.approx(abs(first.sum()) / 3**0.5)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (91, 40)])
def test_prepared_is_square(width, height):
    """Catches the longer side brought to the size, and small pictures left small."""
    assert checks.prepared(width, height, 64) == [64, 64]


def test_exchanges():
    """Catches normalisations that stay within their column counted, and those that do not overlooked."""
    assert checks.exchanging_layers("alexnet_2012_code") == ["conv3", "fc6", "fc7", "fc8"]
    assert "norm2" in checks.exchanging_layers("alexnet_2012")


def test_slopes_by_hand():
    """Catches values in place of derivatives."""
    assert units.slopes("relu", [-1.0, 2.0]) == [0.0, 1.0]
    assert units.slopes("tanh", [1.0]) == pytest.approx([1 - 0.7615941559557649**2])


def test_scale_matters_to_tanh_alone():
    """Catches a check that no function can fail."""
    assert units.slope_ignores_scale("relu", [0.1, 10.0])
    assert not units.slope_ignores_scale("tanh", [0.1, 10.0])


def test_relu_learns_where_positive(monkeypatch):
    """Catches a check that passes whatever has a gradient: with a leaky ReLU every unit learns."""
    assert units.learns_where_positive()
    monkeypatch.setattr(torch, "relu", torch.nn.functional.leaky_relu)
    assert not units.learns_where_positive()


def test_epochs_ratio_pairs_seeds(monkeypatch):
    """Ratios 5, 3 and 2, with 10/3 in the mean; seed 9 has no partner.

    Catches the ratio of means (3.2), runs paired by their order, and a verdict on no runs.
    """
    epochs = {"slow": {9: 1, 2: 20, 1: 30, 0: 30}, "fast": {0: 6, 1: 10, 2: 10}}

    def load(recipe):
        return [SimpleNamespace(seed=s, last=SimpleNamespace(epoch=e)) for s, e in epochs[recipe].items()]

    monkeypatch.setattr(units.records, "load", load)
    ratio = units.epochs_ratio("slow", "fast")
    assert ratio is not None
    assert (ratio.mean, ratio.n, ratio.min, ratio.max) == (pytest.approx(10 / 3), 3, 2, 5)
    epochs["slow"] = {9: 1}
    assert units.epochs_ratio("slow", "fast") is None


@pytest.mark.parametrize(
    ("errors", "right"), [((0.5, 0.4, 0.6), True), ((0.5, 0.4, 0.3), False), ((0.3, 0.4, 0.6), False)]
)
def test_best_rate_is_inside_its_sweep(monkeypatch, errors, right):
    """Catches the largest error taken for the best, and a best rate at the end of a sweep let pass."""
    start = "cifar10-relu+epochs=4+optimizer.learning_rate="
    runs = [
        SimpleNamespace(recipe=f"{start}{rate}", last=SimpleNamespace(train_error=error))
        for rate, error in zip((0.002, 0.004, 0.008), errors, strict=True)
    ]
    monkeypatch.setattr(units.records, "load_all", lambda: runs)
    assert units.at_their_best_rates(["cifar10-relu"]) is right


def test_lrn_constants_in_the_papers_letters():
    """PyTorch's layer divides α by n. Catches a division forgotten or made twice, and a radius taken for n."""
    assert units.lrn_constants("alexnet_2012") == [5, 2.0, 1e-4, 0.75]
    assert units.lrn_constants("alexnet_2012_code") == pytest.approx([5, 2.0, 2e-5, 0.75])
    assert units.lrn_constants("alexnet_flowers") == [11, 1.0, 1e-4, 0.75]


def test_two_maps_on_either_side_of_the_border():
    """A window of five reaches two maps far. Catches a border that nothing crosses in either net."""
    assert units.maps_at_border("alexnet_2012_code") == 4
    assert units.maps_at_border("alexnet_2012") == 0


def test_lrn_apart_fades_with_the_activities():
    """Catches a difference that is not relative: for small activities both nets only multiply by 2^−0.75."""
    assert units.lrn_apart("alexnet_2012", "alexnet_2012", 50.0) == 0
    assert units.lrn_apart("alexnet_2012", "alexnet_2012_code", 0.1) < 0.001
    assert units.lrn_apart("alexnet_2012", "alexnet_2012_code", 50.0) > 1


def test_lrn_only_inhibits(monkeypatch):
    """Catches a check that nothing can fail: without inhibition, or with excitation, it is false."""
    assert units.only_inhibits()
    for layer in (lambda a: a, lambda a: a * a.sum(1, keepdim=True)):
        monkeypatch.setattr(units, "LocalResponseNorm", lambda layer=layer: layer)
        assert not units.only_inhibits()


def test_only_the_loud_lose_by_hand():
    """Five at a leave (1 + 5a²/20,000)^−0.75: 99.5 % at 5, 17 % at 200, 94 % at 18, 65 % at 55."""
    assert units.only_the_loud_lose(5.0, 200.0, 5)
    assert not units.only_the_loud_lose(18.0, 200.0, 5)
    assert not units.only_the_loud_lose(5.0, 55.0, 5)


def test_loudest_gains_where_it_does(monkeypatch):
    """Catches a check that is false whatever the layer does: squares give the loudest more than its share."""
    assert not units.loudest_gains()
    monkeypatch.setattr(units, "LocalResponseNorm", lambda: torch.square)
    assert units.loudest_gains()


def test_growth_has_its_limits():
    """Quiet activities double; of loud ones b goes with 1/√a. Catches the ratio upside down."""
    assert units.growth_under_lrn(2.0, 0.1) == pytest.approx(2, abs=1e-3)
    assert units.growth_under_lrn(4.0, 1e6) == pytest.approx(0.5, abs=0.01)
    assert units.lrn_lessens(4.0, 1e6, than=0.52)
    assert not units.lrn_lessens(4.0, 1e6, than=0.48)


def test_points_taken_off_pair_seeds(monkeypatch):
    """By hand: 30 − 28 and 20 − 21 points; seed 7 has no partner. Catches the sign, shares, and unpaired runs."""
    errors = {"plain": {0: 0.30, 1: 0.20}, "normed": {7: 0.9, 1: 0.21, 0: 0.28}}

    def load(recipe):
        return [SimpleNamespace(seed=s, last=SimpleNamespace(test_error=e)) for s, e in errors[recipe].items()]

    monkeypatch.setattr(units.records, "load", load)
    points = units.points_taken_off("plain", "normed")
    assert points is not None
    assert (points.n, points.min, points.max) == (2, pytest.approx(-1), pytest.approx(2))
    errors["normed"] = {7: 0.9}
    assert units.points_taken_off("plain", "normed") is None


def test_dropped_units():
    """Catches the units of the layer below: torchvision's net drops what comes out of the last pool."""
    assert units.dropped_units("alexnet") == [9216, 4096]
    assert units.dropped_units("alexnet_2012", dropout="none") == []


def test_dropped_units_get_no_gradient(monkeypatch):
    """Catches a check that looks at units which were kept: what only shrinks a unit leaves it a gradient."""
    assert units.dropped_gradient() == 0

    class Leaky(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * (torch.arange(len(x)) % 2)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    monkeypatch.setattr(units, "Dropout2012", lambda p: Leaky.apply)
    assert units.dropped_gradient() > 0


def test_different_masks():
    """Two units have only four masks. Catches a mask shared by the batch, and pictures counted."""
    assert units.different_masks(200, 2) == 4


def test_half_against_a_loop_over_all_nets():
    """Catches the arithmetic mean, masks shared by both layers, and a half left out."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(3, dtype=torch.float64, generator=made).abs()
    second = torch.randn(3, 3, dtype=torch.float64, generator=made) / 3**0.5
    out = torch.randn(4, 3, dtype=torch.float64, generator=made) / 3**0.5
    masks = [torch.tensor(m, dtype=torch.float64) for m in product((0, 1), repeat=3)]
    together = torch.ones(4, dtype=torch.float64)
    for first_mask, second_mask in product(masks, masks):
        together *= (out @ (second_mask * (second @ (first_mask * x)).relu())).softmax(0) ** (1 / 64)
    halved = (out @ (0.5 * (second @ (0.5 * x)).relu())).softmax(0)
    by_loop = (together / together.sum() - halved).abs().max().item()
    assert units.half_against_all_nets(3) == pytest.approx(by_loop, rel=1e-9)
    assert units.half_is_near_all_nets(3, within=1.01 * by_loop)
    assert not units.half_is_near_all_nets(3, within=0.99 * by_loop)
