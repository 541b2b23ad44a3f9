"""What is measured of a set: loss and errors over every sample exactly once, never means of batch means."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from repro.training.parallel.group import Group

TOP = 5  # of the classes a net finds most likely
EVAL_BATCH = 1000
EVAL_VALUES = 2**24  # of the pictures of a batch: 64 MiB, of which the first maps take several times as much


@dataclass
class Sums:
    """Loss and errors added up on the device over the samples seen so far."""

    loss: Tensor
    wrong: Tensor
    outside: Tensor
    """Samples whose class is not among the TOP, where that was asked."""
    count: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        def zero(kind: torch.dtype) -> Tensor:
            return torch.zeros((), dtype=kind, device=device)

        return cls(zero(torch.float64), zero(torch.int64), zero(torch.int64))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss.detach().double() * len(labels)
        self.wrong += (logits.detach().argmax(1) != labels).sum()
        self.count += len(labels)

    def over(self, group: Group) -> "Sums":
        """Those of all ranks together, on each of them."""
        if group.world_size == 1:
            return self
        own = torch.stack([t.double().cpu() for t in (self.loss, self.wrong, self.outside)])  # counts below 2⁵³
        loss, wrong, outside, count = group.total(torch.cat([own, torch.tensor([self.count]).double()]))
        device = self.loss.device
        return Sums(loss.to(device), wrong.long().to(device), outside.long().to(device), int(count))

    def means(self) -> tuple[float, float]:
        return self.loss.item() / self.count, self.wrong.item() / self.count


class Measured(NamedTuple):
    """What a set gave: the mean loss and shares of errors; `top5_error` is None with five classes or fewer."""

    loss: float
    error: float
    top5_error: float | None = None


def outside_top(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the samples are of a class that is not among the TOP with the largest logits (B, K)."""
    return (logits.topk(TOP).indices != labels[:, None]).all(1).sum()


def mean_over_views(logits: Tensor, views: int) -> Tensor:
    """Logits (B · views, K), a picture's views in a row, to the logarithm of their mean softmax, (B, K).

    A logarithm of probabilities is a logit too: its softmax is those probabilities.
    """
    each = logits.double().log_softmax(1).view(-1, views, logits.shape[1])
    return (each.logsumexp(1) - math.log(views)).float()


def eval_batch(values: int) -> int:
    """How many pictures to measure at once when each has so many values, all its views together."""
    return min(EVAL_BATCH, max(1, EVAL_VALUES // values))
