"""From a claim to its verdict, by computation alone: nobody types one."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repro import records
from repro.claims.checks import find
from repro.claims.expression import compute
from repro.claims.ledger import Call, Citation, Claim, Expression, FromRecord, Value

Word = Literal["holds", "holds within the spread", "does not hold", "not tested", "historical"]

CLOSE = 1e-9  # relative: of floating-point arithmetic


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: a word, the right value as far as it is known, and a sentence."""

    claim: str
    verdict: Word
    found: Value | None
    detail: str


def derive(claim: Claim, folder: Path | None = None) -> Verdict:
    """The verdict on a claim, from arithmetic, from the records in `folder`, or from another document."""
    match claim.check:
        case Call(call=name, arguments=arguments, scale=scale):
            answer = find(name)(**arguments)
            if answer is None:
                return Verdict(claim.id, "not tested", None, "the runs that would tell are not recorded here")
            if isinstance(answer, records.Spread):
                return _of_seeds(claim, answer, scale)
            found = as_value(answer)
            if scale == "smaller":
                return Verdict(claim.id, "not tested", found, f"at a smaller scale we find {show(found)}")
            return _compared(claim, found)
        case Expression(expression=text):
            return _compared(claim, compute(text))
        case FromRecord():
            return _measured(claim, claim.check, folder)
        case Citation(citation=key, place=place, value=right):
            agrees = equal(right, claim.value, claim.tolerance)
            says = "says the same" if agrees else f"says {show(right)}"
            return Verdict(claim.id, "historical", right, f"{key}, {place}, {says}")
        case _:
            return Verdict(claim.id, "not tested", None, claim.needs)


def judge(sources: list[Claim], folder: Path | None = None) -> list[Verdict]:
    """The verdicts on several claims, in their order."""
    return [derive(claim, folder) for claim in sources]


def _compared(claim: Claim, found: Value) -> Verdict:
    right = equal(found, claim.value, claim.tolerance)
    if isinstance(found, bool):
        words = "it is so" if right else "it is not so"
    else:
        words = f"we find {show(found)}" if right else f"{show(claim.value)} is said, we find {show(found)}"
    return Verdict(claim.id, "holds" if right else "does not hold", found, words)


def _measured(claim: Claim, check: FromRecord, folder: Path | None) -> Verdict:
    """Over the seeds: within the spread, as `repro.records.judge` has it, or not; a single run decides nothing.

    An accuracy is judged as the error that it leaves.
    """
    assert isinstance(claim.value, int | float)
    accuracy, loss = check.field == "test_accuracy", check.field == "train_loss"
    said = 1 - claim.value if accuracy else float(claim.value)
    runs = records.load(check.record, folder)
    found = [_field(record, "test_error" if accuracy else check.field) for record in runs]
    if not found:
        return Verdict(claim.id, "not tested", None, f"not run here: repro train {check.record}")
    ours = records.spread(found)
    value = 1 - ours.mean if accuracy else ours.mean
    words = f"{ours.mean:.4f} (n = {ours.n})" if loss else f"{'an error of ' if accuracy else ''}{ours}"
    margin = records.IMAGENET_MARGIN if runs[0].data.get("name") == "imagenet" else records.MARGIN
    word = records.judge(ours, said, check.rounding, check.samples, margin)
    return _over_seeds(claim, value, words, word, ours.n, check.scale)


def _of_seeds(claim: Claim, ours: records.Spread, scale: str) -> Verdict:
    """Of a quantity that a check took seed by seed; the claim's tolerance is what its source's rounding allows."""
    assert isinstance(claim.value, int | float)
    mean, least, most = (show(float(f"{x:.3g}")) for x in (ours.mean, ours.min, ours.max))
    words = mean if ours.n == 1 else f"{mean} ± {ours.std:.2g} (n = {ours.n}, {least} to {most})"
    word = records.judge(ours, float(claim.value), claim.tolerance, samples=None)
    return _over_seeds(claim, ours.mean, words, word, ours.n, scale)


def _over_seeds(claim: Claim, value: float, words: str, word: str, seeds: int, scale: str) -> Verdict:
    """Whether what `records.judge` says of so many seeds is within the spread."""
    if scale == "smaller":
        return Verdict(claim.id, "not tested", value, f"at a smaller scale we measure {words}")
    if seeds == 1:
        return Verdict(claim.id, "not tested", value, f"{words}; more seeds are due")
    within = word.startswith(("reproduced", "close"))
    return Verdict(claim.id, "holds within the spread" if within else "does not hold", value, f"{word}: {words}")


def _field(record: records.Record, field: str) -> float:
    value = getattr(record.last, field)
    return math.nan if value is None else float(value)


def equal(found: object, said: object, tolerance: float = 0.0) -> bool:
    """Whether two values agree: numbers within `tolerance`, several one by one, all else exactly."""
    if isinstance(found, list) and isinstance(said, list):
        return len(found) == len(said) and all(equal(a, b, tolerance) for a, b in zip(found, said, strict=True))
    numbers = [x for x in (found, said) if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) == 2:
        return abs(numbers[0] - numbers[1]) <= tolerance + CLOSE * abs(numbers[1])
    return type(found) is type(said) and found == said


def show(value: Value) -> str:
    """A value in words: numbers with commas, and as many digits as tell."""
    match value:
        case bool() | str():
            return str(value).lower() if isinstance(value, bool) else value
        case list():
            return ", ".join(map(show, value))
        case int():
            return f"{value:,}"
        case _:
            return f"{value:,.6g}"


def as_value(value: object) -> Value:
    """Tuples as lists, and numpy's and torch's scalars as Python's own."""
    if isinstance(value, list | tuple):
        return [as_value(v) for v in value]  # type: ignore[return-value]
    if hasattr(value, "item"):
        value = value.item()
    assert isinstance(value, bool | int | float | str)
    return value
