"""The logs of 2012 against the paper's tables, and what the code of 2012 does where the paper says something else."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import torch
from torch import Tensor, nn

from repro.claims.checks.krizhevsky2012 import between
from repro.claims.checks.registry import check
from repro.training.optim import SGD2012


@check
def rounded(numbers: Sequence[float], digits: int) -> list[float]:
    """Numbers with so many digits behind the point, a half rounded up as on paper."""
    unit = Decimal(1).scaleb(-digits)
    return [float(Decimal(str(number)).quantize(unit, ROUND_HALF_UP)) for number in numbers]


@check
def rounded_differences(first: Sequence[float], second: Sequence[float], digits: int) -> list[float]:
    """The first less the second, pair by pair, a half rounded up."""
    exact = [Decimal(str(a)) - Decimal(str(b)) for a, b in zip(first, second, strict=True)]
    return rounded([float(difference) for difference in exact], digits)


@check
def stage(model: str, layer: str) -> list[str]:
    """What stands between a layer and the next one with weights, in the words of `repro compare`."""
    words = {"LocalResponseNorm": "LRN", "MaxPool2d": "max-pooling", "ResponseNormWithinMap": "within-map LRN"}
    return [words.get(kind, kind) for kind in between(model, layer)]


def _places(optimizer: type[torch.optim.Optimizer], drop: float) -> Tensor:
    """Where a weight is after each of 40 steps, (40,); after the twentieth the rate is multiplied by `drop`."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    walk = optimizer([weight], lr=0.01, momentum=0.9, weight_decay=0.0005)  # type: ignore[call-arg]
    places = []
    for step in range(40):
        walk.param_groups[0]["lr"] = 0.01 * (1 if step < 20 else drop)
        weight.grad = torch.sin(3 * weight.detach()) + step % 3
        walk.step()
        places.append(weight.detach().clone())
    return torch.cat(places)


@check
def same_steps_after_drop(drop: float) -> bool:
    """Whether the update of 2012 and PyTorch's make the same steps when the rate is multiplied by `drop` in between."""
    return torch.allclose(_places(SGD2012, drop), _places(torch.optim.SGD, drop), rtol=1e-9)
