"""Several processes against one: same gradients, same steps, same counts, and what passes between them."""

from typing import Any

import pytest
import torch
from rank_programs import bytes_moved, small_alexnet, train_small
from ranks import in_ranks
from torch import Tensor, nn

from repro.models import get_model
from repro.training.parallel import Columns, Group, Hybrid, ParallelError
from repro.training.parallel.account import memory, traffic
from repro.training.parallel.data import ring_bytes
from repro.training.parallel.split import replaced, sizes_of, slice_of, with_outputs

CODE = {"lrn": "code", "lrn_in_columns": True, "relu1_after_pool": True, "within_map_norm": True}
INPUT = (3, 224, 224)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, as a fraction of that tensor's largest value."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - t).abs().max() / t.abs().max()) for k, t in expected.items())


def check_equal(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert distance(found["gradients"], expected["gradients"]) < tolerance
    assert distance(found["state"], expected["state"]) < tolerance
    for (loss, wrong, count), (own_loss, own_wrong, own_count) in zip(
        found["measured"], expected["measured"], strict=True
    ):
        assert (wrong, count) == (own_wrong, own_count)
        assert loss == pytest.approx(own_loss, rel=tolerance)


@pytest.mark.parametrize(
    ("mode", "ranks", "counts", "accumulate", "scheme", "options"),
    [
        ("columns", 2, [6] * 10, 1, "a", {}),
        ("columns", 2, [6, 5], 2, "a", CODE | {"dropout": "inverted"}),
        ("data", 2, [6, 7, 1], 1, "a", {}),
        ("data", 3, [7, 5], 2, "a", CODE),
        ("hybrid", 2, [6] * 10, 1, "a", {}),
        ("hybrid", 3, [8, 7], 2, "b", {}),
        ("hybrid", 3, [7, 4], 1, "c", {"dropout": "inverted"}),
        ("hybrid", 2, [7, 4], 2, "b", {"dropout_first": True}),
    ],
)
def test_ranks_do_what_one_process_does(
    mode: str, ranks: int, counts: list[int], accumulate: int, scheme: str, options: dict[str, Any]
) -> None:
    """Catches a mean of rank means where a batch does not divide (8.5 for 7.2), gradients of the exchanged half lost or
    counted twice, a rank with no picture that hangs or divides by zero, dropout masks that differ between the halves or
    the rounds, a norm cut at the columns' border, and a sample counted by two ranks.
    """
    expected = train_small(Group(), "none", torch.float64, counts, options=options)
    found = in_ranks(ranks, train_small, mode, torch.float64, counts, accumulate, scheme, options)
    check_equal(found[0], expected, 1e-12)


def test_columns_in_float32_stay_within_rounding() -> None:
    """Catches an exchange that goes through a type with fewer bits."""
    expected = train_small(Group(), "none", torch.float32, [6] * 10)
    found = in_ranks(2, train_small, "columns", torch.float32, [6] * 10)
    check_equal(found[0], expected, 1e-5)


def test_accumulated_passes_are_one_batch() -> None:
    """Catches passes weighted equally where their sizes differ, dropout drawn anew for each pass, and an error at the
    end of an epoch whose last batch has fewer pictures than passes.
    """
    whole, parts = (train_small(Group(), "none", torch.float64, [7, 2], accumulate=n) for n in (1, 3))
    check_equal(parts, whole, 1e-12)


def test_fused_and_plain_dropout_are_both_shared() -> None:
    """Catches a mask drawn for half the units where the net is called as it was written, on GPUs."""
    expected = train_small(Group(), "none", torch.float64, [6, 6], fused=False)
    found = in_ranks(2, train_small, "columns", torch.float64, [6, 6], 1, "a", {}, False)
    check_equal(found[0], expected, 1e-12)


def small_traffic(mode: str, count: int, ranks: int, options: dict[str, Any]) -> list[dict[tuple[str, str], int]]:
    """What the account says each rank sends in a step of the tests' net, without exchanges of nothing."""
    rows = traffic(
        small_alexnet(torch.float64, **options), INPUT, mode, count, world_size=ranks, value_bytes=8, parameter_bytes=8
    )
    return [{(r.what, r.phase): r.sent[rank] for r in rows if r.sent[rank]} for rank in range(ranks)]


@pytest.mark.parametrize(
    ("mode", "ranks", "count", "scheme", "options"),
    [
        ("columns", 2, 5, "a", {}),
        ("columns", 2, 5, "a", CODE),
        ("data", 2, 5, "a", {}),
        ("hybrid", 3, 7, "a", {}),
        ("hybrid", 3, 7, "b", {}),
        ("hybrid", 2, 7, "c", {}),
    ],
)
def test_bytes_sent_are_those_predicted(
    mode: str, ranks: int, count: int, scheme: str, options: dict[str, Any]
) -> None:
    """Catches an exchange that the account does not know, one that sends both halves, and a forgotten backward one."""
    found = in_ranks(ranks, train_small, mode, torch.float64, [count], 1, scheme, options)
    sent = [{k: n for k, n in f["sent_in_steps"].items() if n} for f in found]
    if mode == "columns":
        assert sent == small_traffic(mode, count, ranks, options)
        return
    for own, predicted in zip(sent, small_traffic(mode, count, ranks, options), strict=True):
        assert own.keys() == predicted.keys()
        for key, size in own.items():  # buckets of gradients are rounded one by one
            assert abs(size - predicted[key]) <= (8 * ranks if key[0] == "gradients" else 0), key


@pytest.mark.parametrize(
    ("mode", "ranks", "count"),
    [("columns", 2, 5), ("data", 3, 6), ("hybrid", 3, 7), ("tensor", 2, 5), ("fsdp", 2, 5), ("fsdp", 3, 7)],
)
def test_bytes_predicted_are_those_that_pytorch_moves(mode: str, ranks: int, count: int) -> None:
    """Catches an exchange that goes past the wire's own count, and an engine that sends more than the account says."""
    moved = in_ranks(ranks, bytes_moved, mode, torch.float64, count)
    predicted = [sum(small_traffic(mode, count, ranks, {})[rank].values()) for rank in range(ranks)]
    assert moved == pytest.approx(predicted, abs=8 * ranks * ranks)  # buckets are rounded one by one


def test_traffic_of_the_paper_by_hand() -> None:
    """Catches maps counted before pooling, one direction for two, and features of one column for both."""
    net = get_model("alexnet_2012", lrn="code", lrn_in_columns=True)
    rows = {(r.what, r.phase): r.sent for r in traffic(net, INPUT, "columns", 128)}
    half_of_pool2, half_of_pool5, half_of_hidden = (128 * n * 4 for n in (128 * 13 * 13, 128 * 6 * 6, 2048))
    for phase in ("forward", "backward"):
        assert rows["features.conv3", phase] == (half_of_pool2, half_of_pool2)
        assert rows["classifier.fc6", phase] == (half_of_pool5, half_of_pool5)
        assert rows["classifier.fc7", phase] == (half_of_hidden, half_of_hidden)
    assert rows["classifier.fc8", "forward"] == (0, half_of_hidden)
    assert rows["classifier.fc8", "backward"] == (half_of_hidden, 0)
    assert len(rows) == 8
    crossing = traffic(get_model("alexnet_2012"), INPUT, "columns", 128)
    borrowed = {(r.what, r.phase): r.sent[0] for r in crossing if "norm" in r.what}
    sizes = {"features.norm1": 128 * 2 * 55 * 55 * 4, "features.norm2": 128 * 2 * 27 * 27 * 4}
    assert borrowed == {(what, phase): n for what, n in sizes.items() for phase in ("forward", "backward")}
    with pytest.raises(ValueError, match="mode 'pipeline'"):
        traffic(net, INPUT, "pipeline", 128)


def test_ring_bytes_by_hand() -> None:
    """Catches the whole buffer sent to every rank: around a ring of four each sends six quarters of it."""
    assert ring_bytes(1000, 4) == 1500
    assert ring_bytes(1000, 1) == 0


def test_memory_of_the_paper_by_hand() -> None:
    """Catches a velocity forgotten, and ReLUs in place counted as maps of their own."""
    rows = {m.what: m.bytes for m in memory(get_model("alexnet_2012"), INPUT, 128, ranks=2)}
    assert rows["weights"] == rows["gradients"] == rows["velocity"] == 60_965_224 * 4 // 2
    assert rows["batch"] == 128 * 150_528 * 4
    assert rows["features.conv1"] == 128 * 48 * 55 * 55 * 4
    assert rows["features.pool5"] == 128 * 128 * 6 * 6 * 4
    assert "features.relu1" not in rows


def test_shares_are_equal_as_far_as_they_go() -> None:
    """Catches a share lost where a number does not divide, and two ranks with the same one."""
    assert sizes_of(10, 4) == [3, 3, 2, 2]
    assert sizes_of(2, 3) == [1, 1, 0]
    assert [list(range(10))[slice_of(10, 4, r)] for r in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_a_layers_outputs_can_be_taken_apart() -> None:
    """Catches a bias left whole, groups kept where one column has one, and a layer changed for both nets."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)
    halves = [with_outputs(conv, slice_of(6, 2, r))(x[:, 2 * r : 2 * r + 2]) for r in range(2)]
    torch.testing.assert_close(torch.cat(halves, 1), conv(x))
    linear = nn.Linear(5, 7)
    parts = [with_outputs(linear, slice_of(7, 3, r))(torch.ones(1, 5)) for r in range(3)]
    torch.testing.assert_close(torch.cat(parts, 1), linear(torch.ones(1, 5)))
    assert (conv.groups, conv.out_channels, linear.out_features) == (2, 6, 7)


def test_replacing_leaves_the_net_as_it_was() -> None:
    """Catches a replaced layer that turns up in the first net, and one in a container that is not its parent."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    other = replaced(net, lambda name, layer: nn.Tanh() if name == "1.0" else None)
    assert [type(m) for m in net[1]] == [nn.ReLU, nn.Linear]
    assert [type(m) for m in other.get_submodule("1")] == [nn.Tanh, nn.Linear]
    assert other.get_submodule("0") is net[0]


def test_nets_and_numbers_that_a_mode_cannot_serve() -> None:
    """Catches a failure in the middle of a step, in shapes that do not fit."""
    with pytest.raises(ParallelError, match="needs 2 processes, one for each column, and found 3"):
        Columns(Group(world_size=3))
    with pytest.raises(ParallelError, match="no layer that keeps to its column; nets with columns are alexnet_2012"):
        Columns(Group(world_size=2)).split(get_model("alexnet", num_classes=3))
    with pytest.raises(ParallelError, match=r"features.norm1 of PyTorch sums over both columns"):
        Columns(Group(world_size=2)).split(small_alexnet(torch.float32, lrn="library"))
    with pytest.raises(ParallelError, match=r"has no 'classifier' of fully connected layers"):
        Hybrid(Group(world_size=2)).split(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ParallelError, match=r"classifier.fc8 has 10 units, too few for 11 ranks"):
        Hybrid(Group(world_size=11)).split(small_alexnet(torch.float32))
    with pytest.raises(ParallelError, match="--scheme d: known: a, b, c"):
        Hybrid(Group(world_size=2), scheme="d")
    with pytest.raises(ParallelError, match="--compile goes with one process or --parallel data, not with hybrid"):
        Hybrid(Group(world_size=2)).compile()


def facts_differ(group: Group) -> str:
    with pytest.raises(ParallelError) as raised:
        group.agree({"torch": "same", "recipe": "a" if group.is_first else "b"})
    return str(raised.value)


def test_ranks_that_do_not_agree_are_named() -> None:
    """Catches two machines with two recipes that train on, and only one of the ranks noticing."""
    for message in in_ranks(2, facts_differ):
        assert message.startswith("rank 1 has recipe b, rank 0 has a")


def first_fails(group: Group) -> str:
    def decide() -> None:
        raise ParallelError("no")

    with pytest.raises(ParallelError) as raised:
        group.first_decides(decide)
    return str(raised.value)


def test_an_error_of_the_first_rank_reaches_all() -> None:
    """Catches ranks that wait for one that has given up."""
    assert in_ranks(2, first_fails) == ["no", "no"]
