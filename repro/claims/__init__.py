"""The ledger: every number of the sources, how it is checked, and the verdict that follows. All chapters.

`ledger` reads the claims, one TOML file for each source; `checks` computes what they speak of; `verdicts` compares.
"""

from repro.claims.ledger import Claim, Source, claims, load_source, load_sources
from repro.claims.verdicts import Verdict, derive, judge

__all__ = ["Claim", "Source", "Verdict", "claims", "derive", "judge", "load_source", "load_sources"]
