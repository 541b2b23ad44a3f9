"""What the recorded studies of transfer found: trained features against pixels and random weights, layer by layer."""

from collections.abc import Sequence
from typing import Literal

from repro import transfer
from repro.claims.checks.registry import check
from repro.errors import CheckpointError
from repro.transfer import PIXELS, RANDOM, TRAINED, Study

Pairs = Sequence[Sequence[str]]  # each a net and the set that its features are tried on


def _recorded(studies: Pairs) -> list[Study] | None:
    try:
        return [transfer.load(net, target) for net, target in studies]
    except CheckpointError:
        return None


def _clear(study: Study, layer: str, rival: tuple[str, str]) -> bool:
    """Whether a trained layer's interval lies above the rival's, at the largest number of pictures per class."""
    most = study.numbers[-1]
    return study.interval(TRAINED, layer, most).low > study.interval(*rival, most).high


@check
def nets_ahead(studies: Pairs, of: Literal["pixels", "random"]) -> list[int] | None:
    """How many nets beat pixels, or the best layer of random weights: without their last layer, and on their best one.

    At the largest number of pictures per class, where the intervals are apart; None where a study is missing.
    """
    found = _recorded(studies)
    if found is None:
        return None
    rivals = [(PIXELS, "") if of == PIXELS else (RANDOM, study.best(RANDOM)) for study in found]
    tried = [
        [_clear(s, s.last, rival), _clear(s, s.best(TRAINED), rival)] for s, rival in zip(found, rivals, strict=True)
    ]
    return [sum(net[i] for net in tried) for i in range(2)]


@check
def pictures_for_all_pixels(studies: Pairs) -> list[int] | None:
    """With how many pictures per class each net, its last layer off, reaches what the pixels of all pictures give.

    0 where none of the numbers tried does; None where a study is missing.
    """
    found = _recorded(studies)
    if found is None:
        return None
    return [s.smallest(TRAINED, s.last, s.interval(PIXELS, "", None).mean) or 0 for s in found]


@check
def nets_better_with_each_layer(studies: Pairs) -> int | None:
    """For how many nets each layer's mean is above that of the layer before, at the largest number of pictures."""
    found = _recorded(studies)
    if found is None:
        return None
    means = [[s.interval(TRAINED, layer, s.numbers[-1]).mean for layer in s.layers] for s in found]
    return sum(right == sorted(set(right)) for right in means)
