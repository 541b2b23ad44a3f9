"""Counts of layers, against PyTorch's own counter of floating-point operations and against hand work."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.models import get_model, layer_table, model_info, summary


@pytest.mark.parametrize("name", ["lenet5_modern", "alexnet_cifar10"])
def test_multiply_adds_are_half_of_pytorch_s_flops(name: str) -> None:
    """Catches a kernel counted without its input channels, and biases taken for multiply-adds."""
    model, size = get_model(name).eval(), model_info(name).input_size
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *size))
    assert 2 * layer_table(model, size).multiply_adds == counter.get_total_flops()


def test_strides_groups_and_missing_biases_are_counted_by_hand() -> None:
    """Catches full channels for grouped ones (four times as many), and a bias that is not there."""
    model = nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, groups=4, bias=False))
    (row,) = layer_table(model, (8, 9, 9))
    assert row.output_shape == (4, 4, 4)
    assert row.parameters == 4 * 2 * 9
    assert row.multiply_adds == row.connections == 4 * 2 * 9 * 16


def test_parameters_of_a_shared_layer_are_counted_once() -> None:
    """Catches totals above the number of weights the net holds when a layer is applied twice."""
    layer = nn.Linear(3, 3)
    table = layer_table(nn.Sequential(layer, layer), (3,))  # type: ignore[arg-type]
    assert len(table) == 2
    assert table.parameters == 12
    assert table.multiply_adds == 18


def test_the_model_is_left_as_it_was() -> None:
    """Catches hooks left behind, a mode switched to evaluation, and batch statistics fed with zeros."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer_table(model, (1, 5, 5))
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_printed_table_is_aligned_and_totals_stand_below() -> None:
    """Catches columns that drift apart with long numbers, and a total of the wrong column."""
    lines = str(layer_table(get_model("lenet5"), (1, 32, 32))).splitlines()
    assert lines[-1].split() == ["total", "60,000", "332,824", "340,908"]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_html_escapes_names_and_has_one_row_per_layer() -> None:
    """Catches a lambda's name or the like breaking the page."""

    class Odd(nn.Linear):
        pass

    Odd.__name__ = "<b>"
    shown = layer_table(nn.Sequential(Odd(2, 2)), (2,))._repr_html_()  # type: ignore[arg-type]
    assert "&lt;b&gt;" in shown
    assert shown.count("<tr>") == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [("lenet5_modern", {}), ("cuda_convnet_18pct", {"norm": "within-map"}), ("cuda_convnet_18pct", {"norm": "across"})],
)
def test_a_net_without_memory_is_counted_like_a_real_one(name: str, options: dict[str, str]) -> None:
    """Catches a layer or a count that needs values: nets of 60 million weights are compared on the meta device."""
    size = model_info(name).input_size
    with torch.device("meta"):
        shapes_only = get_model(name, **options)
    assert list(layer_table(shapes_only, size)) == list(layer_table(get_model(name, **options), size))


def test_the_copy_is_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches hooks that keep a copy of each net alive until the next garbage collection, 240 MB for an AlexNet."""
    copies: list[weakref.ref[nn.Module]] = []

    def deepcopy(model: nn.Module) -> nn.Module:
        copied = copy.deepcopy(model)
        copies.append(weakref.ref(copied))
        return copied

    monkeypatch.setattr(summary, "copy", SimpleNamespace(deepcopy=deepcopy))
    gc.disable()
    try:
        layer_table(nn.Linear(2, 2), (2,))  # type: ignore[arg-type]
        assert [copied() for copied in copies] == [None]
    finally:
        gc.enable()
