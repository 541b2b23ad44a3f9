"""The checks behind the claims of the flower report, against examples worked by hand."""

import pytest

from repro.claims.checks import nammi2024 as checks
from repro.errors import UnknownName


def test_classes_are_whole_words_of_the_competitions_names():
    """Catches a search for parts of words ("hen" in "kitchen"), one that keeps capitals, and ImageNet's 22,000."""
    assert checks.named_in_imagenet(["daisy", "hen", "angora"]) == 3
    assert checks.named_in_imagenet(["tulip", "itche", "dais"]) == 0


def test_augmentation_names_what_is_on():
    """Catches settings at their default being listed: only the first of these recipes changes its pictures."""
    assert checks.augmentation("alexnet-2012-code") == [
        "color_noise",
        "color_noise_convention",
        "crop",
        "crop_chunk",
        "flip",
    ]
    assert checks.augmentation("flowers-dropout") == []


def test_settings_in_the_order_asked_for():
    """Catches another recipe's values and fields mixed up; a field that there is not is an error, not a zero."""
    assert checks.settings("alexnet-2012", ["epochs", "optimizer.weight_decay", "batch_size"]) == [90, 0.0005, 128]
    with pytest.raises(UnknownName):
        checks.settings("alexnet-2021", ["epochs"])
    with pytest.raises(AttributeError):
        checks.settings("alexnet-2012", ["optimizer.wheight_decay"])


def test_differing_layers_by_hand():
    """torchvision's net differs in all convolutions, the report's in these and in the layer that reads 5×5 for 6×6.

    Catches a comparison by only one of parameters and shape: conv5 of the one differs in parameters alone, conv1 of the
    other in its shape.
    """
    assert checks.differing_layers("alexnet_2012", "alexnet") == 5
    assert checks.differing_layers("alexnet_2012", "alexnet_flowers", num_classes=5) == 6
    assert checks.differing_layers("alexnet_2012", "alexnet_2012_code") == 0


def test_strides():
    """Catches the kernel's size in place of its stride."""
    assert checks.strides("alexnet_2012", ["features.conv1", "features.conv5"]) == [4, 1]


def test_pools_with_and_without_overlap():
    """Catches options that do not reach the net, and the stride left out."""
    assert checks.pools("alexnet_2012", overlapping=False) == ["2×2, stride 2"] * 3
    assert checks.pools("alexnet_flowers") == ["3×3, stride 2"] * 3


def test_dropout_probabilities():
    """Catches dropout counted where a net has none, and torchvision's, which is another layer, overlooked."""
    assert checks.dropout_probabilities("alexnet_2012", dropout="none") == []
    assert checks.dropout_probabilities("alexnet", dropout=0.3) == [0.3, 0.3]
