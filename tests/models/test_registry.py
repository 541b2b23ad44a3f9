"""The registry of nets, and the check of the shape they are given."""

import pytest
import torch
from torch import nn

from repro.errors import ReproError, UnknownName
from repro.models import get_model, list_models, model_info, register


@pytest.mark.parametrize("name", list_models())
def test_every_registered_net_answers_its_own_input_size(name: str) -> None:
    """Catches an `input_size` in the decorator that the net does not accept, or logits of another shape."""
    logits = get_model(name).eval()(torch.zeros(2, *model_info(name).input_size))
    assert logits.shape == (2, 10)
    assert model_info(name).source


@pytest.mark.parametrize("name", list_models())
def test_wrong_channels_and_wrong_size_name_expected_and_found(name: str) -> None:
    """Catches a net that fails deep inside (or broadcasts) when the image has another shape."""
    channels, height, width = model_info(name).input_size
    for shape in [(2, channels + 1, height, width), (2, channels, height - 4, width - 4), (channels, height, width)]:
        with pytest.raises(ReproError) as failure:
            get_model(name)(torch.zeros(shape))
        assert f"N×{channels}×{height}×{width}" in str(failure.value)
        assert "×".join(map(str, shape)) in str(failure.value)
        assert isinstance(failure.value, ValueError)


def test_unknown_model_offers_the_nearest() -> None:
    """Catches a bare KeyError, or an error that lists nothing."""
    with pytest.raises(UnknownName, match=r"'lenet_5'.*lenet5"):
        get_model("lenet_5")


def test_unknown_option_offers_the_nearest() -> None:
    """Catches options passed on blindly, which end in Python's TypeError without a hint."""
    with pytest.raises(UnknownName, match=r"lenet5_modern has no option 'num_clases'.*num_classes"):
        get_model("lenet5_modern", num_clases=3)


def test_options_reach_the_net() -> None:
    """Catches a registry that accepts an option and drops it."""
    assert get_model("lenet5_modern", num_classes=3)(torch.zeros(1, 1, 28, 28)).shape == (1, 3)
    dropouts = [m.p for m in get_model("alexnet_cifar10", dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.25, 0.25]


def test_a_name_is_given_once() -> None:
    """Catches a second registration silently replacing the first."""
    with pytest.raises(ValueError, match="lenet5"):
        register("lenet5", input_size=(1, 32, 32), source="")(lambda: nn.Identity())
