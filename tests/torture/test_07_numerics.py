"""Row 7: a NaN or an infinity at the first, a middle or the last step, on one of the ranks."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import Jobs
from numerics_programs import STEPS, STEPS_PER_EPOCH, Fault, Outcome, stopped_and_resumed
from processes import EACH_STEP, RUN, differences
from ranks import in_ranks
from safetensors.numpy import load_file
from tier import FULL, Finding, amount
from torch import nn
from torch.nn import functional as F

from repro.data.random import permutation
from repro.models import get_model
from repro.training.device import autocast, channels_last, choose_precision
from repro.training.fusion import fuse
from repro.training.optim import make_optimizer, not_finite
from repro.training.parallel import Group
from repro.training.recipe import Optimizer

PLACES = ("pictures", "loss", "gradient")
FIRST_MIDDLE_LAST = (0, 10, STEPS - 1)
AT_ONCE = 6  # runs in one group of processes


def on_ranks(mode: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns on the ranks of this mode."""
    return [function(Group(), *arguments)] if mode == "none" else in_ranks(2, function, *arguments)


def faults_of(mode: str) -> list[Fault]:
    """Every one of a mode; in the fast tier five of one process, and of two ranks one in each place."""
    ranks = (0,) if mode == "none" else (0, 1)
    faults = [Fault(mode, *rest) for rest in product(PLACES, (math.nan, math.inf), FIRST_MIDDLE_LAST, ranks)]
    if mode == "columns":  # the loss is rank 0's
        faults = [f for f in faults if (f.place, f.rank) != ("loss", 1)]
    if FULL or mode == "none":
        return faults if FULL else faults[::4]
    few = dict(zip(PLACES, FIRST_MIDDLE_LAST, strict=True))
    return list({f.place: f for f in faults if few[f.place] == f.step}.values())


def check_stopped(fault: Fault, outcomes: Sequence[Outcome | None], folder: Path) -> int:
    """Fails unless all ranks stopped before the update, one tells where, and what is on disk is of the steps before.

    Returns the number of checkpoints.
    """
    epoch, step = divmod(fault.step, STEPS_PER_EPOCH)
    samples = ", ".join(map(str, permutation(200, 0, epoch, 1)[32 * step : 32 * step + 8].tolist()))
    what = "gradient of .* is not finite" if fault.place == "gradient" else "loss is (nan|inf)"
    pattern = (
        rf"tiny seed 0: {what}( on rank (\d))? at epoch {epoch + 1}, batch {step + 1} \(samples {samples}, …\); the"
    )
    for rank, outcome in enumerate(outcomes):
        assert outcome, fault
        found = re.match(pattern, outcome.message)
        assert found, (fault, outcome.message)
        if fault.mode == "data" and fault.place != "gradient":
            assert found[3] == str(fault.rank), (fault, outcome.message)
        assert (outcome.told, outcome.updated) == (rank > 0, False), fault
        assert outcome.message == outcomes[0].message
    run_dir = folder / "runs" / RUN
    kept = sorted(run_dir.glob("*.safetensors"))
    assert [int(p.name[5:14]) for p in kept] == list(range(1, fault.step + 1))[-2:], fault
    for path in kept:
        assert all(np.isfinite(tensor).all() for tensor in load_file(path).values()), (fault, path)
    record = json.loads((run_dir / "record.json").read_bytes())
    assert (record["status"], record["message"]) == ("crashed", f"NumericsError: {outcome.message}")
    return len(kept)


@pytest.mark.parametrize("mode", ["none", "data", "columns"])
def test_no_update_and_no_checkpoint_with_it(mode: str, tmp_path: Path, finding: Finding) -> None:
    """Catches a step made with NaN, an infinite gradient under a finite loss, ranks that wait for one that has stopped
    or go on without it, a checkpoint that keeps the fault, a message that leaves the batch to be guessed, and a run
    that cannot go on once the cause is gone.
    """
    faults, checkpoints = faults_of(mode), 0
    for first in range(0, len(faults), AT_ONCE):
        some, folder = faults[first : first + AT_ONCE], tmp_path / str(first)
        outcomes = on_ranks(mode, stopped_and_resumed, folder, some)
        for number, (fault, *found) in enumerate(zip(some, *outcomes, strict=True)):
            checkpoints += check_stopped(fault, found, folder / f"{number}-stopped")
            assert differences(folder / str(number), folder) == []
    did = "one process" if mode == "none" else f"one of two ranks, {mode}"
    finding(
        f"{did}: {len(faults)} runs with NaN or infinity in the pictures, the loss or a gradient alone",
        f"all stopped before the update; {checkpoints} checkpoints, all finite; resumed without it: 0 differences",
    )


PLANTED = """
import math, os
from numerics_programs import Fault, plant_at
plant_at(Fault("{mode}", "{place}", math.nan, 10, 1), int(os.environ["RANK"]))
"""


def test_exit_codes_under_torchrun(job: Jobs, finding: Finding) -> None:
    """Catches a rank that ends with another code than its fellow, and a line for each of them."""
    cases = [("columns", "gradient"), ("data", "loss")][: amount(1, 2)]
    for mode, place in cases:
        ranks = job(mode)
        ranks.start("--parallel", mode, *EACH_STEP, fault=PLANTED.format(mode=mode, place=place))
        assert ranks.end() != 0
        assert ranks.exit_codes() == [5, 5], ranks.said()
        (line,) = ranks.told()
        assert re.match(r"repro: rank 0: tiny seed 0: .* on rank 1 at epoch 1, batch 11 ", line), line
    finding(f"{len(cases)} jobs under torchrun with NaN on rank 1", "exit code 5 on both ranks, told in one line")


def test_the_look_at_the_gradients_costs_little(finding: Finding) -> None:
    """Catches a check that goes over the gradients number by number: `isfinite` takes thirty times as long."""
    torch.manual_seed(0)
    net = channels_last(get_model("alexnet_cifar10")).train()
    forward, optimizer = fuse(net), make_optimizer(net, Optimizer(learning_rate=0.01, momentum=0.9))
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(128) % 10
    precision = choose_precision("auto", torch.device("cpu"), 46_000_000)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), precision):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    def seconds(function: Callable[[], Any], times: int) -> float:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
        return min(taken)

    a_step = seconds(step, amount(2, 6))
    a_look = seconds(lambda: not_finite(net), 20)
    assert a_look < 0.02 * a_step
    finding("a look at all gradients of `alexnet_cifar10`", f"{a_look / a_step:.1%} of a step of 128 pictures")


def test_a_sum_that_overflows_is_no_fault() -> None:
    """Catches large but finite gradients taken for infinite ones, and parameters without a gradient."""
    net = nn.Linear(3, 2)
    assert not_finite(net) == []
    net.weight.grad = torch.full((2, 3), 3e38)
    assert net.weight.grad.sum().isinf()
    assert not_finite(net) == []
    net.bias.grad = torch.tensor([math.inf, -math.inf])
    assert not_finite(net) == ["bias"]
