"""What the long paper on dropout says of its two scales: halved in testing, or doubled in training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repro.claims.checks.registry import check
from repro.models.layers import Dropout2012


def _trained(kind: type[nn.Module], start: float, rate: float, steps: int) -> torch.Tensor:
    """The weights of the layer behind a mask after so many steps, (4, 32).

    At the start they are multiplied by `start`; their rate is 0.1 times `rate`, that of the layer before the mask 0.1.
    """
    torch.default_generator.manual_seed(0)
    into, mask, out_of = nn.Linear(8, 32), kind(0.5), nn.Linear(32, 4, bias=False)
    out_of.weight.data *= start
    groups: list[dict[str, Any]] = [{"params": into.parameters()}, {"params": out_of.parameters(), "lr": 0.1 * rate}]
    sgd = torch.optim.SGD(groups, lr=0.1)
    for step in range(steps):
        torch.default_generator.manual_seed(step)
        x, labels = torch.randn(16, 8), torch.randint(4, (16,))
        sgd.zero_grad()
        F.cross_entropy(out_of(mask(into(x).relu())), labels).backward()
        sgd.step()
    return out_of.weight.detach()


@check
def inverted_trains_alike(start: float, rate: float, steps: int) -> bool:
    """Whether dropout that doubles in training learns the weights of dropout that halves in testing, divided by two.

    For the layer behind the mask starting weights and rate are multiplied by these factors; p = 0.5.
    """
    with torch.random.fork_rng(devices=[]):
        published = _trained(Dropout2012, 1.0, 1.0, steps)
        inverted = _trained(nn.Dropout, start, rate, steps)
    return torch.allclose(2 * inverted, published, rtol=1e-4, atol=1e-6)
