"""The stored verdicts follow from the ledger as it is, and the ledger is as large as the sources."""

import time

import torch

from repro.claims import command, load_sources
from repro.claims.ledger import Call, Expression


def test_every_stored_verdict_still_follows() -> None:
    """Catches a count that a change of a net has moved, a record that came or went, and a verdict that was typed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what several do while they wait for each other is no work
    started = time.process_time()
    found = command.check()
    torch.set_num_threads(threads)
    assert len(found) == sum(len(source.claim) for source in load_sources()) > 200
    assert time.process_time() - started < 60  # what `repro claims check` may take; other programs' time aside


def test_most_claims_are_decided() -> None:
    """Catches checks that were lost: at least half of all claims are computed, and some of them do not hold."""
    claims = [claim for source in load_sources() for claim in source.claim]
    computed = [claim for claim in claims if isinstance(claim.check, Call | Expression)]
    assert len(computed) > len(claims) / 2
    stored = command.read()
    assert {stored[claim.id].verdict for claim in computed} >= {"holds", "does not hold"}
