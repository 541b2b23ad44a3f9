"""`repro claims`: the ledger in a terminal, and whether its stored verdicts still follow."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from repro import records
from repro.claims.ledger import Call, Claim, Expression, Value, claims
from repro.claims.verdicts import Verdict, derive, equal
from repro.errors import CheckpointError, ReproError, ResourceError, UnknownName, nearest
from repro.files import write_atomic
from repro.progress import track

FILE = Path("claims", "verdicts.json")  # in the folder of the records
DRIFT = 1e-4  # relative: of numbers that a net's rounding enters
WORDS = ("holds", "holds within the spread", "does not hold", "not tested", "historical")


class Stored(BaseModel):
    """A verdict as it was derived last."""

    model_config = ConfigDict(extra="forbid")

    verdict: str
    found: Value | None
    detail: str


class StaleVerdicts(ReproError):
    """Stored verdicts that no longer follow from the claims, the code and the records."""

    exit_code = 1


def verdicts(source: str | None = None, chapter: str | None = None, verdict: str | None = None) -> list[Verdict]:
    """The verdicts on the claims of a source, of a chapter, and of one kind, derived now.

    Raises UnknownName for a source or a verdict that there is not.
    """
    if verdict is not None and verdict not in WORDS:
        raise UnknownName(f"verdict {verdict!r}: {nearest(verdict, WORDS)}")
    chosen = claims(source, chapter)
    found = [derive(claim) for claim in track(chosen, len(chosen), "claims judged")]
    return [v for v in found if verdict in (None, v.verdict)]


def counts(found: Sequence[Verdict]) -> str:
    """How many of each verdict, in a line."""
    number = Counter[str](v.verdict for v in found)
    return f"{len(found)} claims: " + ", ".join(f"{number[word]} {word}" for word in WORDS if number[word])


def update() -> Path:
    """Derive all verdicts from the records and store them below; returns the file."""
    path = records.records_dir() / FILE
    stored = {v.claim: Stored(verdict=v.verdict, found=v.found, detail=v.detail).model_dump() for v in verdicts()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(stored, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as e:
        raise ResourceError(f"{path}: the verdicts cannot be written ({e.strerror or e})") from e
    return path


def check() -> list[Verdict]:
    """Derive the verdicts on all claims that arithmetic decides, and hold them against the stored ones.

    Of the others only the verdict's word is compared. Raises `StaleVerdicts` naming the first that no longer follows,
    `CheckpointError` where the stored ones cannot be read.
    """
    stored, everything = read(), claims()
    names = {claim.id for claim in everything}
    if missing := sorted(names ^ stored.keys()):
        raise StaleVerdicts(
            f"claim {missing[0]}: in the ledger or among the verdicts, not in both; repro claims update"
        )
    found = []
    for claim in track(everything, len(everything), "claims judged"):
        verdict = derive(claim)
        if not _follows(claim, verdict, stored[claim.id]):
            was = stored[claim.id]
            raise StaleVerdicts(
                f"claim {claim.id}: {verdict.verdict} ({verdict.found}), stored is {was.verdict} ({was.found}); "
                "find out what changed, then repro claims update"
            )
        found.append(verdict)
    return found


def read(folder: Path | None = None) -> dict[str, Stored]:
    """The stored verdicts by claim; raises CheckpointError where they are missing or damaged."""
    path = (folder or records.records_dir()) / FILE
    try:
        return TypeAdapter(dict[str, Stored]).validate_json(path.read_bytes())
    except OSError as e:
        raise CheckpointError(f"{path}: the verdicts cannot be read ({e.strerror}); repro claims update") from e
    except ValidationError as e:
        raise CheckpointError(f"{path}: not verdicts: {e.errors()[0]['msg']}; repro claims update") from e


def _follows(claim: Claim, verdict: Verdict, stored: Stored) -> bool:
    if verdict.verdict != stored.verdict:
        return False
    return not isinstance(claim.check, Call | Expression) or equal(verdict.found, stored.found, drift(stored.found))


def drift(found: Value | None) -> float:
    """How far a stored number may move: whole numbers not at all, others by what a processor's rounding allows."""
    numbers = found if isinstance(found, list) else [found]
    return DRIFT * max((abs(n) for n in numbers if isinstance(n, float)), default=0.0)
