"""The benchmark of receptive fields refuses sides that name other pixels."""

import pytest
import torch
from torch import nn

from benchmarks import receptive_field as benchmark
from repro.receptive_field import receptive_field


class Features(nn.Module):
    """Two convolutions and a pool, under the name that torchvision's nets and ours have."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


def test_other_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison with the field of another unit or net, and maxima left in the gradient's net."""
    monkeypatch.setattr(benchmark, "SIZE", 24)
    model = Features(padding=1)
    layer = "features.4"
    image, unit = benchmark.positive_unit(model, layer)
    found = benchmark.gradient(image, unit)
    assert "pixels" in benchmark.require_same(receptive_field(model, 24), layer, found)
    assert not isinstance(model.features[2], nn.AvgPool2d)
    for wrong in (receptive_field(Features(padding=0), 24), receptive_field(model, 26)):
        with pytest.raises(AssertionError, match="not the same work"):
            benchmark.require_same(wrong, layer, found)
