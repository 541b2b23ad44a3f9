"""The words for a layer."""

import pytest
from torch import nn

from repro.models.describe import describe
from repro.models.layers import SparseConv2d, TrainableSubsampling
from repro.models.normalization import LocalResponseNorm, ResponseNormWithinMap
from repro.models.summary import layer_calls


def words(layer: nn.Module, side: int = 12) -> str:
    """The words for a layer that reads 8 maps."""
    *_, call = layer_calls(nn.Sequential(nn.Conv2d(8, 8, 1), layer), (8, side, side))
    return str(describe(call.layer, call))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(8, 4, (3, 1), stride=(2, 1), padding=(0, 2)), "convolution 3×1, stride 2×1, padding 0×2"),
        (nn.Conv2d(8, 4, 5, padding="same", dilation=2), "convolution 5×5, padding 4, dilation 2"),
        (SparseConv2d(8, ((0, 1), (7,)), 3), "convolution 3×3, 3 of 16 kernels"),
        (nn.MaxPool2d(3), "max-pooling 3×3, stride 3"),
        (TrainableSubsampling(8), "subsampling 2×2, stride 2, coefficient and bias"),
        (nn.AdaptiveAvgPool2d(6), "average-pooling to 6×6"),
        (nn.BatchNorm2d(8), "BatchNorm2d"),
        (nn.Dropout(0.2), "dropout p = 0.2, the rest × 1.25 in training"),
        (nn.Dropout(1.0), "dropout p = 1, the rest × ∞ in training"),
        (nn.Softmax2d(), "Softmax2d"),
        (ResponseNormWithinMap(3, 9e-3, k=2), "within-map LRN 3×3, k = 2, α = 0.001, β = 0.75"),
    ],
)
def test_constants_are_the_layer_s_own(layer: nn.Module, expected: str) -> None:
    """Catches one axis standing for two, a stride of PyTorch's default left out, α not divided by the window."""
    assert words(layer) == expected


@pytest.mark.parametrize(("convention", "expected"), [("paper", "n = 5"), ("code", "n = 4 (2 before, 1 after)")])
def test_an_even_window_is_counted_as_it_is_summed(convention: str, expected: str) -> None:
    """Catches the paper's n = 4, which adds five squares, shown as the code's 4."""
    assert words(LocalResponseNorm(4, convention=convention)).startswith(f"LRN {expected}, k = 2, α = ")


@pytest.mark.parametrize(("side", "rounded"), [(12, True), (13, False)])
def test_rounding_up_is_told_where_it_happens(side: int, rounded: bool) -> None:
    """Catches a mode of the layer shown where it changes nothing, and a window over the border that goes unseen."""
    assert words(nn.MaxPool2d(3, 2, ceil_mode=True), side).endswith("rounded up") == rounded
