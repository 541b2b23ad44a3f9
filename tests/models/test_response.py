"""The arithmetic in blocks against itself in other blocks, and against the formula that a compiler is given."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repro.models import response
from repro.models.normalization import LocalResponseNorm, ResponseNormWithinMap
from repro.models.response import Reach, Response, _WindowSums

ACROSS = Response(((2, 1),), alpha=0.3, beta=0.75, k=1.5, groups=2)
WITHIN = Response(((1, 2), (0, 3)), alpha=0.3, beta=0.75, k=1.5)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def both_passes(formula: Response, x: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Output and gradient for an incoming gradient that differs from unit to unit."""
    x = x.detach().requires_grad_()
    y = formula.plain(x) if plain else formula.normalize(x)
    g = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize("formula", [ACROSS, WITHIN])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_result_does_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch, formula: Response, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Catches a part of the rows left out between blocks or after the last, and a row cut wrongly.

    The smallest blocks are less than a row, so that rows are cut across too.
    """
    x = torch.randn(3, 6, 7, 5, dtype=dtype).contiguous(memory_format=layout)
    whole = both_passes(formula, x)
    for block in (1, 4, 10, 50, 130, 400):
        monkeypatch.setattr(response, "BLOCK", block)
        for found, expected in zip(both_passes(formula, x), whole, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("formula", [ACROSS, WITHIN, Response(((4, 4),), 0.3, 0.6, 1.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_formula_for_a_compiler_is_the_same(formula: Response, layout: torch.memory_format) -> None:
    """Catches a compiled net that normalises over other axes, groups or windows than the one on a CPU, and a gradient
    whose windows are not mirrored: lopsided ones, which show it, have to fit into a group.
    """
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64).contiguous(memory_format=layout)
    for found, expected in zip(both_passes(formula, x, plain=True), both_passes(formula, x), strict=True):
        torch.testing.assert_close(found, expected)
    low = x.bfloat16()
    assert formula.plain(low).dtype == torch.bfloat16
    torch.testing.assert_close(formula.plain(low), formula.normalize(low))


def test_a_compiled_net_is_given_that_formula() -> None:
    """Catches blocks traced by the compiler, which breaks the graph: memory written in place is not followed."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), LocalResponseNorm(groups=2), ResponseNormWithinMap(3, 1e-2))
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)  # traces all, and needs no C++ compiler
    found, expected = compiled(x), net(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), net[0].weight)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_no_larger_than_a_block(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format) -> None:
    """Catches all computed at once, which walks through the whole memory at each step of the arithmetic; blocks of
    several shapes, each with a memory of its own; and blocks that overlap so far that the work doubles."""
    x = torch.randn(4, 6, 9, 11).contiguous(memory_format=layout)
    monkeypatch.setattr(response, "BLOCK", 120)
    pieces = [piece for _, piece in response._blocks(ACROSS, [x])]
    assert len({piece.shape for piece in pieces}) == 1
    assert 60 < pieces[0].numel() < 180
    assert x.numel() <= sum(piece.numel() for piece in pieces) < 1.1 * x.numel()


REACHES = st.tuples(st.integers(0, 7), st.integers(0, 7))


@settings(deadline=None)
@given(
    rows=st.integers(1, 3),
    axes=st.lists(st.tuples(st.integers(1, 9), REACHES), min_size=1, max_size=2),
    inner=st.integers(1, 3),
    repeats=st.integers(1, 2),
)
def test_window_sums_equal_a_loop(rows: int, axes: list[tuple[int, Reach]], inner: int, repeats: int) -> None:
    """Catches windows whose size's binary digits are added in the wrong order, and memory reused while still needed."""
    sizes, windows = [size for size, _ in axes], [reach for _, reach in axes]
    sums = _WindowSums((rows, *sizes, inner), windows, torch.zeros((), dtype=torch.float64), [])
    for _ in range(repeats):  # the margins have to outlive a use
        terms = torch.randint(0, 100, (rows, *sizes, inner)).double()
        sums.source.copy_(terms)
        assert torch.equal(sums.units(sums.add()), summed(terms, windows))


def summed(terms: Tensor, windows: Sequence[Reach]) -> Tensor:
    """The sum over every window, from the definition, one axis after the other."""
    for axis, (before, after) in enumerate(windows, start=1):
        size = terms.shape[axis]
        total = torch.zeros_like(terms)
        for i in range(size):
            for j in range(max(0, i - before), min(size, i + after + 1)):
                total.select(axis, i).add_(terms.select(axis, j))
        terms = total
    return terms


def test_five_terms_take_three_additions() -> None:
    """Catches a sum that walks through the memory once for each term; the paper's windows have five."""
    sums = _WindowSums((2, 9, 4), [(2, 2)], torch.zeros(()), [])
    assert len(sums.steps) == 3
