"""Response normalisation against loops that follow the paper's words, and its four conventions against each other."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from repro.errors import ReproError
from repro.models.normalization import (
    Convention,
    LocalResponseNorm,
    LRNConstants,
    NormalizationError,
    ResponseNormWithinMap,
    local_response_norm,
)

PAPER = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def written_out(
    a: Tensor, size: int, alpha: float, beta: float, k: float, convention: str = "paper", groups: int = 1
) -> Tensor:
    """Section 3.3 in a loop over the maps, in float64: `(N, C, …)` to the same shape, differentiable."""
    a = a.double()
    width = a.shape[1] // groups
    maps = []
    for i in range(a.shape[1]):
        first, last = i - size // 2, i + size // 2
        if convention == "code":
            last = first + size - 1
        of_group = range(i // width * width, (i // width + 1) * width)
        total = sum(a[:, j] ** 2 for j in range(first, last + 1) if j in of_group)
        scale = alpha / size if convention == "code" else alpha
        maps.append(a[:, i] / (k + scale * total) ** beta)
    return torch.stack(maps, dim=1)


def written_out_within(a: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The same in a loop over the places of a map, `(N, C, H, W)`, windows cut at the border."""
    a = a.double()
    height, width = a.shape[2:]
    b = torch.empty_like(a)
    for y in range(height):
        for x in range(width):
            top, left = y - size // 2, x - size // 2
            window = a[:, :, max(0, top) : top + size, max(0, left) : left + size]
            b[:, :, y, x] = a[:, :, y, x] / (k + alpha / size**2 * window.square().sum((2, 3))) ** beta
    return b


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, each relative to its own value."""
    return ((found.double() - expected) / expected).abs().nan_to_num(nan=0.0).max().item()  # 0 / 0: both are zero


def loud(*shape: int, seed: int = 0, gain: float = 100.0) -> Tensor:
    """Activities at which the paper's constants bite: the sum of squares is worth several times k."""
    return gain * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_three_maps_by_hand() -> None:
    """Catches a window off by one, a square forgotten, and k or α in the wrong place."""
    a = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    b = LocalResponseNorm(size=3, alpha=1.0, beta=1.0, k=1.0)(a)
    expected = torch.tensor([1 / (1 + 1 + 4), 2 / (1 + 1 + 4 + 9), 3 / (1 + 4 + 9)])
    torch.testing.assert_close(b.flatten(), expected)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 5), st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(
    shape=SHAPES,
    size=st.integers(1, 12),
    convention=st.sampled_from(["paper", "code"]),
    groups=st.integers(1, 3),
    layout=st.sampled_from(list(LAYOUTS)),
    beta=st.sampled_from([0.75, 0.5, 1.0, 0.3]),
    seed=st.integers(0, 2**16),
)
def test_forward_and_backward_equal_the_written_out_loop(
    shape: tuple[int, ...], size: int, convention: Convention, groups: int, layout: str, beta: float, seed: int
) -> None:
    """Catches a wrong window for even sizes, fewer maps than the window, or one layout; and a gradient in which the
    forward window is not mirrored, which only shows where it is lopsided."""
    n, c, h, w = shape
    x = loud(n, c * groups, h, w, seed=seed).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    g = loud(*x.shape, seed=seed + 1, gain=1.0)
    constants = {**PAPER, "size": size, "beta": beta}
    exact = x.detach().double().requires_grad_()
    expected = written_out(exact, **constants, convention=convention, groups=groups)
    expected.backward(g.double())
    assert exact.grad is not None

    found = LocalResponseNorm(**constants, convention=convention, groups=groups)(x)
    found.backward(g)
    assert x.grad is not None
    assert relative_error(found, expected) <= 1e-6
    assert (x.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("convention", ["paper", "code"])
@pytest.mark.parametrize(
    ("size", "groups", "beta"), [(5, 1, 0.75), (4, 2, 0.75), (9, 2, 0.75), (1, 3, 0.75), (3, 1, 0.6)]
)
def test_gradients_agree_with_finite_differences(
    layout: str, convention: Convention, size: int, groups: int, beta: float
) -> None:
    """Catches a sign, a factor 2αβ or a power of u that is wrong in the written-out gradient."""
    x = loud(2, 6, 2, 3, gain=1.0).double().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    assert gradcheck(LocalResponseNorm(size, 0.7, beta, 1.5, convention=convention, groups=groups), x)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 8, 11])
def test_the_code_s_convention_is_pytorch_s(size: int) -> None:
    """Catches α not divided by n, and an even window that leans to the wrong side."""
    x = loud(2, 7, 3, 4).double()
    ours = LocalResponseNorm(size, 1e-3, 0.75, 2.0, convention="code")(x)
    torch.testing.assert_close(ours, nn.LocalResponseNorm(size, 1e-3, 0.75, 2.0)(x))


def test_the_sum_does_not_cross_the_border_of_a_group() -> None:
    """Catches a group's border taken for a neighbour, or groups interleaved."""
    x = loud(2, 12, 3, 3)
    together = local_response_norm(x, **PAPER, groups=3)
    apart = [local_response_norm(part, **PAPER) for part in x.chunk(3, dim=1)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))
    assert not torch.allclose(together, local_response_norm(x, **PAPER))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_within_a_map_it_equals_a_loop_over_places(layout: str, size: int) -> None:
    """Catches α / n for α / n², a window that wraps into the next line or map, and rows taken for columns."""
    x = loud(2, 3, 4, 6).contiguous(memory_format=LAYOUTS[layout])
    constants = {"alpha": 1e-3, "beta": 0.75, "k": 1.0}
    assert relative_error(ResponseNormWithinMap(size, **constants)(x), written_out_within(x, size, **constants)) <= 1e-6
    small = (x[:1, :2, :3, :4] / 100).double().requires_grad_()
    assert gradcheck(ResponseNormWithinMap(size, 0.7, 0.75, 1.0), small)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_is_rounded_once(layout: str, dtype: torch.dtype, rounding: float) -> None:
    """Catches squares, sums or powers rounded on the way: the result is within half a unit in the last place.

    The gradient of bfloat16 is made of a rounded u^¼; its error is held against the largest gradient.
    """
    x = loud(2, 24, 5, 4).to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    g = loud(*x.shape, seed=1, gain=1.0).to(dtype)
    exact = x.detach().double().requires_grad_()
    expected = written_out(exact, **PAPER)
    expected.backward(g.double())
    found = LocalResponseNorm()(x)
    found.backward(g)
    assert x.grad is not None
    assert exact.grad is not None
    assert found.dtype == x.grad.dtype == dtype
    assert relative_error(found, expected) <= 1.001 * rounding
    assert (x.grad.double() - exact.grad).abs().max() <= 1.5 * rounding * exact.grad.abs().max()


def test_autocast_neither_widens_the_result_nor_computes_it_in_bfloat16() -> None:
    """Catches a float32 that doubles the memory of every later layer, and arithmetic that autocast lowers."""
    conv, norm = nn.Conv2d(3, 8, 3), LocalResponseNorm()
    with torch.autocast("cpu", torch.bfloat16):
        maps = conv(loud(1, 3, 6, 6))
        normalised = norm(maps)
    assert maps.dtype == normalised.dtype == torch.bfloat16
    assert relative_error(normalised, written_out(maps, **PAPER)) <= 1.001 * 2**-8


def test_deafening_activities_give_finite_gradients_in_bfloat16() -> None:
    """Catches the overflow of what is kept for backward: u^¼ of such sums does not fit a float16."""
    x = torch.full((1, 6, 2, 2), 1e13, dtype=torch.bfloat16, requires_grad=True)
    LocalResponseNorm()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-6


def test_layout_is_kept_and_any_input_is_taken() -> None:
    """Catches a channels-last net put back to the plain order, and views, slices or other ranks read wrongly."""
    x = loud(2, 8, 6, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert local_response_norm(last, **PAPER).is_contiguous(memory_format=torch.channels_last)
    assert local_response_norm(x, **PAPER).is_contiguous()
    for view in (x[:, ::2], x[:, :, 1:, ::3], x.transpose(2, 3), last[1:, 2:], x[:, :, 0, 0], x.flatten(2), x[:0]):
        expected = written_out(view, **PAPER)
        torch.testing.assert_close(local_response_norm(view, **PAPER), expected.float(), rtol=1e-6, atol=0)
    deep = loud(1, 6, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(local_response_norm(deep, **PAPER), written_out(deep, **PAPER).float())


def test_a_gradient_in_another_layout_is_put_in_order() -> None:
    """Catches a gradient read in the order of its memory: those of `sum` are one number, expanded."""
    x = loud(2, 5, 3, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().requires_grad_()
    for weights in (torch.ones(()).expand(x.shape), loud(*x.shape, seed=1).contiguous()):
        found, expected = LocalResponseNorm()(x), written_out(exact, **PAPER)
        (ours,) = torch.autograd.grad(found, x, weights)
        (theirs,) = torch.autograd.grad(expected, exact, weights.double())
        torch.testing.assert_close(ours, theirs.float())


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 2), (torch.bfloat16, 2)])
def test_two_numbers_a_unit_are_kept_for_backward(dtype: torch.dtype, copies: int) -> None:
    """Catches intermediate results kept as well: the library's own layer keeps five copies of the input."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = loud(2, 8, 3, 3).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LocalResponseNorm()(x)
    assert sum(kept.values()) == copies * x.nbytes


def test_the_gradient_has_no_gradient() -> None:
    """Catches a second derivative that silently counts as zero."""
    x = loud(1, 5, 2, 2).requires_grad_()
    (g,) = torch.autograd.grad(LocalResponseNorm()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: LocalResponseNorm(convention="papper"), "did you mean paper"),  # type: ignore[arg-type]
        (lambda: LocalResponseNorm(size=0), "at least one"),
        (lambda: LocalResponseNorm(groups=0), "at least one group"),
        (lambda: ResponseNormWithinMap(0, 1e-3), "at least one"),
        (lambda: LocalResponseNorm(groups=2)(torch.ones(1, 5, 2, 2)), r"2 groups .*\(1, 5, 2, 2\)"),
        (lambda: LocalResponseNorm()(torch.ones(5)), r"\(5,\)"),
        (lambda: ResponseNormWithinMap(3, 1e-3)(torch.ones(2, 3, 4)), r"\(2, 3, 4\)"),
    ],
)
def test_what_makes_no_sense_is_refused(attempt: Any, message: str) -> None:
    """Catches a wrong name taken for the other convention, and shapes that fail far inside."""
    with pytest.raises(NormalizationError, match=message) as found:
        attempt()
    assert isinstance(found.value, ReproError)


CONVENTIONS = ("paper", "code", "pytorch", "tensorflow")


@given(
    radius=st.integers(0, 6),
    k=st.floats(0.5, 4),
    alpha=st.floats(1e-6, 1e-1),
    beta=st.floats(0.1, 2),
    way=st.permutations(CONVENTIONS),
)
def test_conventions_turn_into_each_other_and_back(
    radius: int, k: float, alpha: float, beta: float, way: list[str]
) -> None:
    """Catches α multiplied where it should be divided, and n taken for the radius."""
    start = constants = LRNConstants.from_paper(2 * radius + 1, k, alpha, beta)
    for convention in way:
        written = getattr(constants, f"as_{convention}")()
        constants = getattr(LRNConstants, f"from_{convention}")(**written)
    assert (constants.before, constants.after, constants.k, constants.beta) == (radius, radius, k, beta)
    assert math.isclose(constants.alpha, start.alpha)


def test_the_published_constants_in_every_convention() -> None:
    """Catches a table of conversions wrong by a factor 5: the paper as printed, and what its code computed."""
    paper, code = LRNConstants.from_paper(), LRNConstants.from_code()
    assert paper.as_pytorch() == {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
    assert paper.as_tensorflow() == {"depth_radius": 2, "bias": 2.0, "alpha": 1e-4, "beta": 0.75}
    assert code.as_code() == {"size": 5, "scale": 1e-4, "pow": 0.75, "min_div": 2.0}
    assert code.as_paper() == {"n": 5, "k": 2.0, "alpha": 2e-5, "beta": 0.75}
    assert LRNConstants.from_tensorflow(5, 1.0, 1e-4, 0.75).as_paper()["n"] == 11


@pytest.mark.parametrize("constants", [LRNConstants.from_paper(), LRNConstants.from_tensorflow(5, 1.0, 1e-4, 0.75)])
def test_converted_constants_compute_the_same(constants: LRNConstants) -> None:
    """Catches conversions that agree with each other and not with the layers they are for."""
    x = loud(2, 16, 3, 3).double()
    paper = constants.as_paper()
    expected = written_out(x, int(paper["n"]), paper["alpha"], paper["beta"], paper["k"])
    pytorch: dict[str, Any] = constants.as_pytorch()
    torch.testing.assert_close(F.local_response_norm(x, **pytorch), expected)
    torch.testing.assert_close(LocalResponseNorm(**pytorch, convention="code")(x), expected)


def test_an_even_window_exists_in_two_conventions_only() -> None:
    """Catches an even size rounded to an odd one without a word; the paper's even n is an odd window."""
    even = LRNConstants.from_pytorch(4)
    assert even.as_code()["size"] == 4
    for convention in ("paper", "tensorflow"):
        with pytest.raises(NormalizationError, match="no radius"):
            getattr(even, f"as_{convention}")()
    assert LRNConstants.from_paper(n=4) == LRNConstants.from_paper(n=5)
    with pytest.raises(NormalizationError, match="0 maps before"):
        LRNConstants(before=0, after=3, k=1.0, alpha=1.0, beta=1.0).as_code()


def test_pytorch_s_defaults_are_pytorch_s() -> None:
    """Catches defaults of another convention, as k = 2, in the reader of PyTorch's."""
    theirs = inspect.signature(nn.LocalResponseNorm).parameters
    ours = inspect.signature(LRNConstants.from_pytorch).parameters
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}
