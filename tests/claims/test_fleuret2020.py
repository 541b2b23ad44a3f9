"""The checks of the slides' claims: each against an example worked by hand, or a case that has to fail."""

import pytest
import torch
import torchvision
from torch import nn

from repro.claims.checks import fleuret2020


def test_parameters_of_blocks_by_hand() -> None:
    """Catches lost biases, and groups that do not divide the weights."""
    assert fleuret2020.block_parameters([(4, 8, 3)]) == 4 * 8 * 9 + 8
    assert fleuret2020.block_parameters([(4, 8, 3, 2), (8, 2, 1)]) == 2 * 8 * 9 + 8 + 8 * 2 + 2


def test_googlenet_has_the_widths_of_the_library_and_the_published_count() -> None:
    """Catches a slip in the table of widths; the library's 5×5 branches have 3×3 kernels, so its count is no oracle."""
    modules = [m for m in fleuret2020.library_net("googlenet").children() if type(m).__name__ == "Inception"]
    widths = [tuple(m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)) for module in modules]
    assert widths == list(fleuret2020.INCEPTION)
    of_3a = 192 * (64 + 96 + 16 + 32) + 9 * 96 * 128 + 25 * 16 * 32 + (64 + 96 + 128 + 16 + 32 + 32)
    assert fleuret2020.inception_parameters(192, fleuret2020.INCEPTION[0]) == of_3a == 163_696
    assert fleuret2020.googlenet_parameters() == 6_998_552  # of the Caffe model without auxiliary classifiers
    assert fleuret2020.times_googlenet("alexnet_2012") == pytest.approx(60_965_224 / 6_998_552)


def test_library_ratios_by_published_counts() -> None:
    """Catches a ratio the wrong way round."""
    assert fleuret2020.library_ratio("alexnet", than=61_100_840) == 1
    assert fleuret2020.library_ratio("resnet18", "resnet34") == pytest.approx(11_689_512 / 21_797_672)
    assert fleuret2020.times_smaller("resnet18", "resnet34") == pytest.approx(21_797_672 / 11_689_512)
    assert (fleuret2020.library_pathways("resnet18"), fleuret2020.library_pathways("resnext101_64x4d")) == (1, 64)


def test_printed_layers_say_what_the_layers_are() -> None:
    """Catches channels the wrong way round, a lost stride or padding, and a count that leaves ReLUs out."""
    first = ["conv 3-64 11x11 stride 4 pad 2", "maxpool 3x3 stride 2", "conv 64-192 5x5 stride 1 pad 2"]
    assert fleuret2020.library_layers("alexnet", "features", count=5) == first  # conv, ReLU, pool, conv, ReLU
    assert fleuret2020.library_layers("alexnet", "classifier", count=2) == ["dropout 0.5", "linear 9216-4096"]


def test_counts_and_order_of_layers() -> None:
    """Catches counted norms, and a net without linear layers that passes for one with them."""
    assert fleuret2020.convolutions_and_linear("lenet5_modern") == [2, 3]
    assert fleuret2020.normalisations("alexnet_2012_code") == 3  # two across maps, one within
    assert fleuret2020.normalisations("alexnet") == 0
    assert fleuret2020.convolutions_first(["lenet5_modern", "vgg11"])


def test_linear_before_a_convolution_is_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an order that is not looked at: the layers of a net, turned round."""
    rows = [*fleuret2020.layer_table(fleuret2020.unbuilt("lenet5_modern"), (1, 28, 28))]
    turned = type("Rows", (), {"layers_with_weights": lambda self: [r for r in rows[::-1] if r.multiply_adds]})
    monkeypatch.setattr(fleuret2020, "layer_table", lambda *_: turned())
    assert not fleuret2020.convolutions_first(["lenet5_modern"])


def test_a_linear_layer_is_the_pointwise_convolution_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison that is true of any weights: with the biases left out it is not."""
    assert fleuret2020.linear_is_pointwise(6, 4)
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(fleuret2020.F, "conv2d", lambda x, weight, bias: convolve(x, weight))
    assert not fleuret2020.linear_is_pointwise(6, 4)


def test_a_conversion_that_changes_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that never looks at the outputs."""
    assert fleuret2020.conversion_changes_nothing("lenet5_modern")
    convolutionize = fleuret2020.dense.convolutionize
    monkeypatch.setattr(fleuret2020.dense, "convolutionize", lambda net: nn.Sequential(convolutionize(net), nn.ReLU()))
    assert not fleuret2020.conversion_changes_nothing("lenet5_modern")


def test_adaptive_pooling_stops_the_sliding_of_linear_layers() -> None:
    """Catches a pooling that is taken out though it should stay, and one place that passes for several."""
    assert not fleuret2020.linear_layers_suffice("vgg11", 448)
    assert fleuret2020.linear_layers_suffice("vgg11", 448, pooling=False)
    assert not fleuret2020.linear_layers_suffice("vgg11", 224, pooling=False)
    converted = nn.Sequential(torchvision.models.vgg11().features, nn.AdaptiveAvgPool2d(7), nn.Conv2d(512, 1, 7))
    with torch.no_grad():
        assert converted(torch.rand(1, 3, 256, 256)).shape[2:] == (1, 1)


def test_a_picture_smaller_than_a_crop_has_no_answer() -> None:
    """Catches an error that is swallowed as an answer, and a larger picture that is refused."""
    assert [fleuret2020.takes_picture("lenet5_modern", side) for side in (20, 28, 29)] == [False, True, True]


def test_answers_lie_as_far_apart_as_the_strides_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that is true of every net: LeNet's answers are four pixels apart, those of no pooling one."""
    assert fleuret2020.answers_are_coarser("lenet5_modern")
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 2))
    convolutionize = fleuret2020.dense.convolutionize
    monkeypatch.setattr(fleuret2020, "unbuilt", lambda model: plain)
    monkeypatch.setattr(fleuret2020.dense, "convolutionize", lambda net: convolutionize(net, 28))
    assert not fleuret2020.answers_are_coarser("plain")


def test_nothing_is_saved_on_a_picture_of_one_crop() -> None:
    """Catches a comparison that counts the linear layers once for all places, or never."""
    assert not fleuret2020.dense_run_saves("lenet5_modern", 28, 28)
    assert fleuret2020.dense_run_saves("lenet5_modern", 28, 32)  # two places


def test_stride_1_alone_is_overfeat_only_for_a_classifier_of_one_unit() -> None:
    """Catches scores in another order: where nothing overlaps, both ways are one."""
    assert fleuret2020.stride_1_pooling_is_overfeat(units=20, pool=3, reads=1)
    assert not fleuret2020.stride_1_pooling_is_overfeat(units=20, pool=3, reads=5)


def test_averaging_does_not_commute_with_a_nonlinearity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that is true of any last layer."""
    assert fleuret2020.averaging_commutes(4, 3, 5)
    linear = nn.Linear
    monkeypatch.setattr(fleuret2020.nn, "Linear", lambda *sizes: nn.Sequential(linear(*sizes), nn.ReLU()))
    assert not fleuret2020.averaging_commutes(4, 3, 5)
