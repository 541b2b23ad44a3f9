"""The arithmetic of sizes, held against PyTorch's own layers and against sizes that papers print."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro.receptive_field import effective_kernel_size, output_size


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
