"""The registry of nets, and the check of the shape they are given."""

import inspect

import pytest
import torch
from torch import nn

from repro.errors import ReproError, UnknownName
from repro.models import get_model, list_models, model_info, register
from repro.models.registry import OptionError

LEARNING_RATE = 0.1
# A step of each of the eleven VGGs would take minutes; these have every kind of layer between them.
VGGS = "vgg11", "vgg11_lrn", "vgg16_bn"
STEPPED = [name for name in list_models() if not name.startswith("vgg") or name in VGGS]


@pytest.fixture(scope="module", params=list_models())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(name: str) -> nn.Module:
    """Each net is built once, whatever asks for it: the largest hold 61 million weights."""
    torch.manual_seed(0)
    return get_model(name).eval()


def classes(name: str) -> int:
    return model_info(name).options.get("num_classes", 10)


def test_every_registered_net_answers_its_own_input_size(name: str, net: nn.Module) -> None:
    """Catches an `input_size` in the decorator that the net does not accept, or logits of another shape."""
    with torch.inference_mode():
        logits = net(torch.zeros(2, *model_info(name).input_size))
    assert logits.shape == (2, classes(name))
    assert model_info(name).source


def test_wrong_channels_and_wrong_size_name_expected_and_found(name: str, net: nn.Module) -> None:
    """Catches a net that fails deep inside (or broadcasts) when the image has another shape."""
    channels, height, width = model_info(name).input_size
    for shape in [(2, channels + 1, height, width), (2, channels, height - 4, width - 4), (channels, height, width)]:
        with pytest.raises(ReproError) as failure:
            net(torch.zeros(shape))
        assert f"N×{channels}×{height}×{width}" in str(failure.value)
        assert "×".join(map(str, shape)) in str(failure.value)
        assert isinstance(failure.value, ValueError)


def test_every_net_says_what_it_takes_what_it_gives_and_where_it_is_from(name: str) -> None:
    """Catches a net that stands in the list without a word on its shapes."""
    info = model_info(name)
    assert info.build.__doc__ is not None
    assert len(info.source) > 10
    described = info.build.__doc__ + str(inspect.getdoc(type(get_on_meta(name))))
    assert f"`(N, {info.input_size[0]}, " in described
    assert "logits `(N, " in described


def get_on_meta(name: str) -> nn.Module:
    """The net without its weights, to look at."""
    with torch.device("meta"):
        return get_model(name)


@pytest.mark.parametrize("name", STEPPED, scope="module")
def test_a_bf16_step_in_channels_last_layout_reaches_every_parameter(name: str, net: nn.Module) -> None:
    """Catches a layer cut off from the loss, and one that has no bfloat16 or channels-last path."""
    x = torch.randn(2, *model_info(name).input_size)
    if name.startswith(("alexnet_2012", "alexnet_one", "cuda")):
        x *= 60  # these start with weights for pixels 0…255 less their mean
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x.contiguous(memory_format=torch.channels_last))
    nn.functional.cross_entropy(logits.float(), torch.arange(2)).backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert (parameter - LEARNING_RATE * parameter.grad != parameter).any(), parameter_name
        parameter.grad = None  # 61 million floats are not kept for longer than they are needed


def test_unknown_model_offers_the_nearest() -> None:
    """Catches a bare KeyError, or an error that lists nothing."""
    with pytest.raises(UnknownName, match=r"'lenet_5'.*lenet5"):
        get_model("lenet_5")


def test_unknown_option_offers_the_nearest() -> None:
    """Catches options passed on blindly, which end in Python's TypeError without a hint."""
    with pytest.raises(UnknownName, match=r"lenet5_modern has no option 'num_clases'.*num_classes"):
        get_model("lenet5_modern", num_clases=3)


@pytest.mark.parametrize(
    ("name", "option", "value", "allowed"),
    [
        ("alexnet_2012", "num_classes", 0, "a whole number from 1 on"),
        ("alexnet_2012", "num_classes", True, "a whole number from 1 on"),
        ("lenet5_modern", "num_classes", 10.0, "a whole number from 1 on"),
        ("alexnet_2012", "lrn", "papre", "one of 'paper', 'code', 'library', 'none'"),
        ("alexnet_2012", "lrn", True, "one of 'paper', 'code', 'library', 'none'"),
        ("alexnet_flowers", "lrn", "no", "true or false"),
        ("alexnet_flowers", "lrn", 1, "true or false"),
        ("alexnet_2012", "middle_init_std", -0.01, "a number from 0 on"),
        ("alexnet_2012", "middle_init_std", "0.03", "a number from 0 on"),
        ("cuda_convnet_18pct", "activation", "sigmoid", "one of 'relu', 'tanh'"),
    ],
)
def test_a_value_that_an_option_does_not_take_names_what_it_takes(
    name: str, option: str, value: object, allowed: str
) -> None:
    """Catches `lrn = "no"` taken for true, `true` for one class, and a net without classes."""
    with pytest.raises(OptionError) as failure:
        get_model(name, **{option: value})
    assert str(failure.value) == f"{name}: option {option} is {allowed}, found {value!r}"


def test_whole_numbers_will_do_for_fractions() -> None:
    """Catches a check of kinds that refuses `dropout = 0` in a recipe."""
    get_model("alexnet_cifar10", dropout=0)


def test_options_reach_the_net() -> None:
    """Catches a registry that accepts an option and drops it."""
    assert get_model("lenet5_modern", num_classes=3)(torch.zeros(1, 1, 28, 28)).shape == (1, 3)
    dropouts = [m.p for m in get_model("alexnet_cifar10", dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.25, 0.25]


def test_a_name_is_given_once() -> None:
    """Catches a second registration silently replacing the first."""
    with pytest.raises(ValueError, match="lenet5"):
        register("lenet5", input_size=(1, 32, 32), source="")(lambda: nn.Identity())
