"""Checks of the ledger for the VGG paper, against examples worked by hand."""

from collections.abc import Sequence

from torch import Tensor, nn

from repro.claims.checks import find, simonyan2015


def test_maps() -> None:
    """Table 1, column A. Catches linear layers among the convolutions."""
    assert find("maps")("vgg11") == [64, 128, 256, 256, 512, 512, 512, 512]


def test_stacks() -> None:
    """One layer is itself, and two of 1×1 are as free as one; two of 2×2 reach 7 of 9 directions, and two of 3×3 17 of
    25. Catches a composed kernel that is cut to the size of the first one, of which nothing is out of reach."""
    assert not find("stack_is_constrained")(3, 1)
    assert not find("stack_is_constrained")(1, 2)
    assert find("stack_is_constrained")(2, 2)
    assert find("stack_is_constrained")(3, 2)


def test_a_start() -> None:
    """Ten times the deviation makes the logits of eleven layers 10¹¹ times as large. Catches a variance taken for a
    deviation: with 0.01 column A starts at chance."""
    assert find("starts_at_chance")("vgg11", 0.01, 60.0)
    assert not find("starts_at_chance")("vgg11", 0.1, 60.0)
    assert find("starts_at_chance")("vgg11", 0.1, 60.0 / 1e8)


def test_growing() -> None:
    """Of A and D only the first convolution has one shape. Catches a comparison of the first alone, and layers of D
    that are not in A."""
    assert find("first_convolutions_fit")("vgg11", "vgg16", 1)
    assert not find("first_convolutions_fit")("vgg11", "vgg16", 2)
    assert find("first_convolutions_fit")("vgg13", "vgg16", 6)
    assert find("layers_grown")("vgg11", "vgg19") == 7


def test_dense_evaluation() -> None:
    """AlexNet's last maps are 6×6. Dense evaluation of the native size costs what one crop does, and its reflection as
    much again. Catches the classifier left out of the dense run or run at one place only."""
    assert find("kernels_of_linear_layers")("alexnet") == [6, 1, 1]
    assert not find("crops_cost_more")("vgg16", [224], 2)
    assert find("crops_cost_more")("vgg16", [224], 3)


def test_fields_beyond_the_crop() -> None:
    """By hand: VGG-16's output reads 404×404 pixels, 3.25 times the area of 224×224. Catches sides taken for areas."""
    assert find("reads_beyond_crop")("vgg16", 3.2)
    assert not find("reads_beyond_crop")("vgg16", 3.3)


def test_padding_is_all_that_differs() -> None:
    """Catches maps of crop and picture that are compared at different places: without padding they would differ."""
    assert find("crops_differ_by_padding")()


def test_memory_of_normalisation() -> None:
    """Catches storages counted after they were given up, whose addresses the next ones take."""
    assert find("normalising_keeps_more")()


def test_time_of_normalisation(monkeypatch) -> None:
    """By a clock that only layers in between move. Catches one of the two left out, and a single slow step."""
    clock = [0.0]

    class Slow(nn.Identity):
        def __init__(self, seconds: Sequence[float]) -> None:
            super().__init__()
            self.left = list(seconds)

        def forward(self, x: Tensor) -> Tensor:
            clock[0] += self.left.pop(0)
            return x

    monkeypatch.setattr(simonyan2015, "perf_counter", lambda: clock[0])
    cases = (([1] * 5, [2] * 5, True), ([0] * 5, [2] * 5, False), ([9, 0, 9, 9, 9], [2] * 5, False))
    for ours, theirs, longer in cases:
        monkeypatch.setattr(simonyan2015, "LocalResponseNorm", lambda ours=ours: Slow(ours))
        monkeypatch.setattr(simonyan2015.nn, "LocalResponseNorm", lambda n, theirs=theirs: Slow(theirs))
        assert find("normalising_takes_longer")() is longer
