"""LeNet-5 against the figures of the paper, its table I, and its equations 8 and 9 written out."""

import math

import pytest
import torch

from repro.models import get_model, layer_table
from repro.models.lenet import C3_TABLE, digit_codes, map_loss, mse_loss

# Table I as the paper prints it: a line per map of S2, a column per map of C3, X where they are connected.
PRINTED_TABLE = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""

# Parameters and connections as the paper gives them; the output layer's are fixed and only in the total.
PUBLISHED = {
    "c1": (156, 122_304),
    "s2": (12, 5_880),
    "c3": (1_516, 151_600),
    "s4": (32, 2_000),
    "c5": (48_120, 48_120),
    "f6": (10_164, 10_164),
}


def test_the_connection_table_is_the_paper_s() -> None:
    """Catches a wrong ring or gap: counts alone do not notice two maps exchanged."""
    lines = PRINTED_TABLE.split()
    columns = [tuple(i for i, line in enumerate(lines) if line[o] == "X") for o in range(16)]
    assert [tuple(sorted(inputs)) for inputs in C3_TABLE] == columns


def test_counts_agree_with_the_published_rows_and_totals() -> None:
    """Catches a dense C3 (2,416), subsampling without parameters, a trained output, biases counted wrongly."""
    table = layer_table(get_model("lenet5"), (1, 32, 32))
    rows = {row.name: (row.parameters, row.connections) for row in table.layers_with_weights()}
    assert rows.pop("output") == (0, 840)
    assert rows == PUBLISHED
    assert (table.parameters, table.connections) == (60_000, 340_908)


def test_modern_net_has_the_lecture_s_layers_and_count() -> None:
    """Catches padding in the first convolution (61,706 parameters) and another order of layers than the slide."""
    model = get_model("lenet5_modern")
    table = layer_table(model, (1, 28, 28))
    assert table.parameters == 44_426
    kinds = [row.kind.split()[0] for row in table]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Linear", "ReLU"] * 2 + ["Linear"]
    assert list(dict(model.named_children())) == ["features", "classifier"]


def test_a_forward_pass_squashes_every_layer_up_to_f6() -> None:
    """Catches a layer left without its squashing function, by writing the net out in one place."""
    model = get_model("lenet5").double()
    x = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    signal = x
    for name in ("c1", "s2", "c3", "s4", "c5"):
        signal = 1.7159 * torch.tanh(2 / 3 * model.get_submodule(name)(signal))
    f6 = 1.7159 * torch.tanh(2 / 3 * model.get_submodule("f6")(signal.flatten(1)))
    distances = (f6[:, None, :] - digit_codes().double()).square().sum(2)
    torch.testing.assert_close(model(x), -distances)


def test_codes_are_ten_different_bitmaps_of_plus_and_minus_one() -> None:
    """Catches a drawing with a line too short or two digits too alike for distances to tell apart."""
    codes = digit_codes()
    assert codes.shape == (10, 7 * 12)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    bits = (codes[:, None] != codes[None]).sum(2) + 84 * torch.eye(10)
    assert bits.min() >= 6
    one = codes[1].view(12, 7)
    assert (one[2:10, 3] == 1).all(), "the stem of the 1 runs down the middle: the codes are read line by line"


def test_map_loss_is_equation_9() -> None:
    """Catches a missing rubbish class, its sign, and penalties passed where logits are due."""
    penalties = torch.tensor([[0.3, 2.0, 5.0], [4.0, 0.7, 1.1]], dtype=torch.float64)
    target = torch.tensor([0, 2])
    written_out = [
        y[t] + math.log(math.exp(-0.1) + sum(math.exp(-v) for v in y))
        for y, t in zip(penalties.tolist(), target.tolist(), strict=True)
    ]
    assert map_loss(-penalties, target).item() == pytest.approx(sum(written_out) / 2, abs=1e-12)


def test_map_loss_leaves_distant_classes_alone() -> None:
    """Catches plain cross entropy, which goes on pushing wrong classes away however far they are."""
    logits = torch.tensor([[-1.0, -60.0]], requires_grad=True)
    map_loss(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].abs() < 1e-20
    assert logits.grad[0, 0] < -0.5, "the right class is still drawn in: the rubbish class competes with it"


def test_mse_loss_is_equation_8() -> None:
    """Catches the mean over classes, or another class than the target's."""
    penalties = torch.tensor([[0.3, 2.0], [4.0, 0.7]])
    assert mse_loss(-penalties, torch.tensor([1, 0])).item() == pytest.approx((2.0 + 4.0) / 2)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_every_parameter_moves_after_one_step(name: str) -> None:
    """Catches a layer cut off from the loss, such as subsampling coefficients that are buffers."""
    model = get_model(name)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    side = 32 if name == "lenet5" else 28
    loss = map_loss if name == "lenet5" else torch.nn.functional.cross_entropy
    loss(model(torch.rand(8, 1, side, side)), torch.arange(8)).backward()
    optimizer.step()
    assert all((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
