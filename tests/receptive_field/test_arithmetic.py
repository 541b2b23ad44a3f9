"""The arithmetic of sizes, held against PyTorch's own layers and against sizes that papers print."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro.receptive_field import ReceptiveField, effective_kernel_size, output_size


def test_every_small_setting_agrees_with_torch():
    """Catches rounding up, padding counted once, and a dilation that stretches k instead of k - 1.

    Where torch refuses the layer, output_size has to refuse it too.
    """
    settings = itertools.product(range(1, 10), range(1, 6), range(1, 5), range(4), range(1, 4))
    impossible = 0
    for n, k, s, p, d in settings:
        x, weight = torch.zeros(1, 1, n), torch.zeros(1, 1, k)
        try:
            expected = F.conv1d(x, weight, stride=s, padding=p, dilation=d).shape[-1]
        except RuntimeError:
            impossible += 1
            with pytest.raises(ValueError, match="does not fit"):
                output_size(n, k, s, p, d)
        else:
            assert output_size(n, k, s, p, d) == expected, (n, k, s, p, d)
    assert impossible > 0


def test_pooling_follows_the_same_arithmetic():
    """Catches a size that holds for convolutions only, or PyTorch's ceil_mode taken for the default."""
    for n, k, s in itertools.product(range(5, 15), (2, 3), (2, 3)):
        assert output_size(n, k, s) == nn.MaxPool1d(k, s)(torch.zeros(1, 1, n)).shape[-1]


@pytest.mark.parametrize(
    ("setting", "published"),
    [
        ((32, 5), 28),  # LeNet-5, C1 (LeCun et al. 1998, section II.B)
        ((28, 2, 2), 14),  # LeNet-5, S2
        ((227, 11, 4), 55),  # AlexNet's first layer, at the input size that gives the paper's 55
        ((224, 3, 1, 1), 224),  # VGG keeps the size (Simonyan and Zisserman 2015, section 2.1)
    ],
)
def test_sizes_that_papers_print(setting, published):
    """Catches arguments in another order than input, kernel, stride, padding."""
    assert output_size(*setting) == published


def test_effective_kernel_size_is_the_span_of_the_taps():
    """Catches d * k, and d * (k - 1) without the first tap."""
    for k, d in itertools.product(range(1, 8), range(1, 5)):
        taps = [i * d for i in range(k)]
        assert effective_kernel_size(k, d) == taps[-1] - taps[0] + 1


@pytest.mark.parametrize("setting", [(0, 1), (5, 0), (5, 3, 0), (5, 3, 1, -1), (5, 3, 1, 0, 0)])
def test_nonsense_is_refused(setting):
    """Catches a division by zero, and a negative padding that quietly crops."""
    with pytest.raises(ValueError, match="at least 1"):
        output_size(*setting)
    if setting[0]:
        with pytest.raises(ValueError, match="at least 1"):
            ReceptiveField().through(*setting[1:])


LAYER = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))


@given(st.lists(LAYER, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_fields_are_the_pixels_with_a_gradient(layers):
    """Catches a stride applied to its own layer, padding not scaled by the stride below, dilation forgotten.

    The oracle is autograd: with kernels of ones, the gradient is positive from the first pixel read to the last.
    """
    x = torch.zeros(1, 1, 1200, dtype=torch.float64, requires_grad=True)  # so wide that the middle unit sees no padding
    field, y = ReceptiveField(), x
    for k, s, p, d in layers:
        field = field.through(k, s, p, d)
        y = F.conv1d(y, torch.ones(1, 1, k, dtype=torch.float64), stride=s, padding=p, dilation=d)
    unit = y.shape[-1] // 2
    (gradient,) = torch.autograd.grad(y[0, 0, unit], x)
    read = gradient.flatten().nonzero().flatten()
    first = field.start + unit * field.stride
    assert (int(read[0]), int(read[-1]) + 1) == (first, first + field.size)


def test_fields_of_lenet_5_by_hand():
    """Catches a chain that starts with a stride of 0 or a size of 0: the first layers, worked out with pencil."""
    c1 = ReceptiveField().through(5)
    s2 = c1.through(2, stride=2)
    c3 = s2.through(5)
    assert c1 == ReceptiveField(5, 1, 0)
    assert s2 == ReceptiveField(6, 2, 0)  # two neighbouring fields of 5
    assert c3 == ReceptiveField(14, 2, 0)  # five fields of 6, each 2 further on
