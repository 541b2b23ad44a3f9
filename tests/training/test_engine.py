"""FSDP2 and tensor parallelism in two and three real processes: the same net as in one."""

from pathlib import Path
from typing import Any

import pytest
import rank_programs
import torch
from engine_programs import MANY, handed_on, several, shares, trained
from helpers import TinyNet
from ranks import in_ranks
from torch import Tensor, nn

from repro.training.parallel import MODES, Group, ParallelError

# Batches that two or three ranks cannot share equally, one of them with fewer pictures than ranks.
RUNS: list[dict[str, Any]] = [
    {"dtype": torch.float64, "counts": [7, 5, 1, 8, 5, 7, 2, 4, 5, 6]},
    {"dtype": torch.float64, "counts": [7, 5, 2], "accumulate": 2, "fused": False},
    {"dtype": torch.float32, "counts": [7, 5, 4]},
]
DEVIATION = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def in_one_process() -> list[dict[str, Any]]:
    """The same runs by one process, each batch in one pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_programs, "HIDDEN", MANY)
        return several(Group(), [run | {"mode": "none", "accumulate": 1} for run in RUNS], MANY)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], deviation: float) -> None:
    """Fails unless both name the same tensors, and none differs by more than that share of its largest number."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=deviation * scale)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("mode", ["fsdp", "tensor"])
def test_steps_are_those_of_one_process(mode: str, world_size: int, in_one_process: list[dict[str, Any]]) -> None:
    """Catches a mean of the ranks' means, gradients exchanged after each pass and added twice, an input's gradient that
    lacks the other ranks' part or has it twice, a mask of dropout drawn by each rank for itself, and momentum of
    another rank's part.
    """
    runs = in_ranks(world_size, several, [run | {"mode": mode} for run in RUNS], MANY)[0]
    for run, found, expected in zip(RUNS, runs, in_one_process, strict=True):
        deviation = DEVIATION[run["dtype"]]
        assert found["measured"] == [pytest.approx(m, rel=deviation) for m in expected["measured"]]
        assert_equal(found["gradients"], expected["gradients"], deviation)
        assert_equal(found["state"], expected["state"], deviation)


def test_each_rank_has_its_share_and_what_all_have_is_the_same() -> None:
    """Catches an engine that is called and splits nothing, momentum kept whole, convolutions whose gradients are
    not averaged, so that each rank trains its own, and buffers of inference mode that training cannot use.
    """
    ranks = in_ranks(2, shares, ["fsdp", "tensor"])
    for fsdp, tensor in ranks:
        assert all(share.own * 2 == share.all for share in fsdp.values())
        halves = {name for name, share in tensor.items() if share.own * 2 == share.all}
        # The product of the first layer is split by its columns; the sums of the others get a bias once.
        assert halves == {
            "classifier.fc6.weight",
            "classifier.fc6.bias",
            "classifier.fc7.weight",
            "classifier.fc8.weight",
        }
        assert all(tensor[name].own == tensor[name].all for name in tensor.keys() - halves)
    first, second = (rank[1] for rank in ranks)
    for name, share in first.items():
        assert (share.content == second[name].content) == (share.own == share.all), name


def test_a_checkpoint_of_each_mode_goes_on_in_another() -> None:
    """Catches a checkpoint with one rank's part for the whole, and parts given to the wrong rank or not at all."""
    modes = ["none", "fsdp", "tensor", "hybrid", "fsdp", "data"]
    found = in_ranks(3, handed_on, modes)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_programs, "HIDDEN", MANY)
        assert_equal(found, handed_on(Group(), ["none"] * len(modes)), 1e-12)


def test_whole_runs_measure_what_one_process_measures(tmp_path: Path) -> None:
    """Catches parameters that stay gathered after an evaluation, and are unknown to the optimizer, a resume that puts
    one rank's part in another's place, and a net that is handed over in parts.
    """
    ((expected, weights),) = trained(Group(), [("none", "none")], tmp_path / "one")
    pairs = [("fsdp", "fsdp"), ("fsdp", "tensor"), ("tensor", "fsdp")]
    for measured, found in in_ranks(2, trained, pairs, tmp_path / "two")[0]:
        assert measured == pytest.approx(expected, rel=1e-5)
        assert_equal(found, weights, 1e-5)


def test_what_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a message of DTensor about the sizes of tensors, deep inside a step."""
    three = Group(rank=0, world_size=3)
    monkeypatch.setattr(rank_programs, "HIDDEN", 50)
    net = rank_programs.small_alexnet(torch.float32)
    with pytest.raises(ParallelError, match=r"--parallel tensor: classifier\.fc6 has 50 units, which 3 ranks cannot"):
        MODES["tensor"](three).split(net)
    with pytest.raises(ParallelError, match="--parallel tensor: Linear has no 'classifier'"):
        MODES["tensor"](three).split(nn.Linear(2, 2))
    mode = MODES["fsdp"](three)
    with pytest.raises(ParallelError, match="batch normalisation over all ranks needs GPUs"):
        mode.prepare(mode.split(TinyNet()))
