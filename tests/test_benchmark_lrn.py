"""What the benchmarks of response normalisation rest on: both sides compute the same, or there is no comparison."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import alexnet_2012_step, lrn
from repro.models.normalization import LocalResponseNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_constants_are_refused(dtype: torch.dtype) -> None:
    """Catches a library that is given the paper's α undivided, and a baseline with a cheaper window."""
    maps = (torch.randn(2, 16, 5, 5) * lrn.LOUD).relu().to(dtype)
    grad = torch.randn(2, 16, 5, 5).to(dtype)
    ours, library = lrn.layers()
    lrn.require_same(ours, library, maps, grad)
    for wrong in (LocalResponseNorm(convention="code"), LocalResponseNorm(size=3)):
        with pytest.raises(AssertionError, match="not the same work"):
            lrn.require_same(wrong, library, maps, grad)
    with pytest.raises(AssertionError, match="not the same work"):
        lrn.require_same(ours, partial(F.local_response_norm, size=5), maps, grad)


def test_nets_that_differ_in_their_normalisation_are_refused() -> None:
    """Catches a rival without normalisation, dropout left on in the comparison, and a net not put back to training."""

    def net(norm: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Dropout(), nn.Flatten(), nn.Linear(8 * 6 * 6, 1000))

    images, labels = alexnet_2012_step.draw(4, (3, 8, 8))
    rivals = LocalResponseNorm(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.Identity()
    right, same, other = (alexnet_2012_step.Loss(net(norm), "float32") for norm in rivals)
    alexnet_2012_step.require_same(right, same, images, labels)
    assert right.model.training
    with pytest.raises(AssertionError, match="not the same work"):
        alexnet_2012_step.require_same(right, other, images, labels)
