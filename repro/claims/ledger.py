"""What the sources say, as data: `sources/NAME.toml` holds one document's claims in our own words."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from repro.errors import DataError, UnknownName, nearest

FOLDER = Path(__file__).with_name("sources")

Value = bool | int | float | str | list[int] | list[float] | list[str]
Kind = Literal["arithmetic", "measured", "historical"]


class Call(BaseModel):
    """A function of `repro.claims.checks` and its arguments.

    `scale` is "smaller" where it looks at smaller nets or fewer pictures than the source did.
    """

    model_config = ConfigDict(extra="forbid")

    call: str
    arguments: dict[str, Any] = {}
    scale: Literal["same", "smaller"] = "same"


class Expression(BaseModel):
    """Arithmetic on the source's own numbers, as `"3 * 3**2 / 7**2"`; see `repro.claims.expression`."""

    model_config = ConfigDict(extra="forbid")

    expression: str


class FromRecord(BaseModel):
    """What the runs of a recipe measured, over their seeds.

    `samples` are the pictures of the test set, for shares; `rounding` half a unit of the source's last digit. `scale`
    is "smaller" where the recipe trains on less, shorter or smaller than the source did.
    """

    model_config = ConfigDict(extra="forbid")

    record: str
    field: Literal["test_error", "test_accuracy", "test_top5_error", "train_error", "train_loss"]
    scale: Literal["same", "smaller"] = "same"
    samples: int | None = None
    rounding: float = 0.0


class Citation(BaseModel):
    """What another document says, by its key in `book/references.bib`, and where in it.

    `corrects` is false where the two differ and the other one is not the better witness: a program against the paper
    that describes it.
    """

    model_config = ConfigDict(extra="forbid")

    citation: str
    place: str
    value: Value
    corrects: bool = True


class Claim(BaseModel):
    """One statement of a source. What cannot be checked has no `check` and says in `needs` what it would take."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$")
    where: str
    """Section, table, figure, slide or page."""
    statement: str
    """In our own words."""
    value: Value
    """What it says; true where it is a comparison that a number can test."""
    unit: str = ""
    tolerance: float = Field(0.0, ge=0)
    why: str = ""
    """Why that tolerance."""
    kind: Kind
    check: Call | Expression | FromRecord | Citation | None = None
    needs: str = ""
    chapter: str = ""
    """The chapter that takes it up, as `12_vgg`."""
    contradicts: list[str] = []
    """The ids of claims that say otherwise, of this or another source."""

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        if (self.check is None) == (not self.needs):
            raise ValueError("either a check, or what it would take in `needs`, is due")
        if (self.tolerance > 0) != bool(self.why):
            raise ValueError("a tolerance needs its reason in `why`, and a reason its tolerance")
        fitting: dict[str, tuple[type, ...]] = {
            "arithmetic": (Call, Expression),
            "measured": (FromRecord, Call),
            "historical": (Citation,),
        }
        if self.check is not None and not isinstance(self.check, fitting[self.kind]):
            raise ValueError(f"a claim of kind {self.kind} is not checked by {type(self.check).__name__}")
        return self


class Source(BaseModel):
    """A document and its claims, in the document's order."""

    model_config = ConfigDict(extra="forbid")

    key: str
    """In `book/references.bib`."""
    title: str
    claim: list[Claim]


def load_source(path: Path) -> Source:
    """One file of claims; raises DataError naming the file, the claim and what is wrong with it."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return Source.model_validate(found)
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise DataError(f"{path}: cannot be read: {e}") from e
    except ValidationError as e:
        first = e.errors()[0]
        place = first["loc"]
        name = found["claim"][place[1]].get("id", place[1]) if place[:1] == ("claim",) and len(place) > 1 else "source"
        raise DataError(f"{path}: {name}: {'.'.join(map(str, place[2:])) or 'content'}: {first['msg']}") from e


@cache
def load_sources(folder: Path = FOLDER) -> tuple[Source, ...]:
    """All sources, by key; raises DataError for two claims of one id, or a contradiction of one that is not there."""
    sources = tuple(sorted((load_source(path) for path in folder.glob("*.toml")), key=lambda s: s.key))
    known: set[str] = set()
    for claim in (claim for source in sources for claim in source.claim):
        if claim.id in known:
            raise DataError(f"claims: two are called {claim.id}")
        known.add(claim.id)
    for claim in (claim for source in sources for claim in source.claim):
        for other in claim.contradicts:
            if other not in known:
                raise DataError(f"claims: {claim.id} contradicts {other}, which is not there; {nearest(other, known)}")
    return sources


def claims(source: str | None = None, chapter: str | None = None) -> list[Claim]:
    """The claims of one source, or of one chapter, or all; raises UnknownName for a source that there is not."""
    sources = load_sources()
    if source is not None and source not in {s.key for s in sources}:
        raise UnknownName(f"source {source!r}: {nearest(source, (s.key for s in sources))}")
    found = [claim for s in sources if source in (None, s.key) for claim in s.claim]
    return [claim for claim in found if chapter in (None, claim.chapter)]
