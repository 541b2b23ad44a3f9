"""Checks for Krizhevsky's paper of 2014: where a net has its arithmetic, and where its weights."""

from repro.claims.checks.nets import multiply_adds, parameters
from repro.claims.checks.registry import check


@check
def work_in(part: str, models: list[str]) -> list[float]:
    """Of each net: per cent of the multiply-adds that are done in the layers whose names begin with `part`."""
    return [100 * multiply_adds(model, part) / multiply_adds(model) for model in models]


@check
def parameters_in(part: str, models: list[str]) -> list[float]:
    """Of each net: per cent of the parameters that are in a part of it."""
    return [100 * parameters(model, part) / parameters(model) for model in models]
