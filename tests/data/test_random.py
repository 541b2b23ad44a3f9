"""Counter-based random numbers against SplitMix64 written out in Python's own integers."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from repro.data.random import derive_seed, integers, normal, permutation, uniform

MASK = 2**64 - 1
ANY_INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(state: int) -> int:
    """The output of Steele, Lea and Flood's generator for a state that was advanced already."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_oracle_gives_the_published_sequence() -> None:
    """Catches a wrong oracle: the first three numbers of SplitMix64 from seed 1234567."""
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in (1, 2, 3)]
    assert [splitmix64(s) for s in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(ANY_INT64, min_size=1, max_size=5), ANY_INT64, st.integers(1, 1000))
def test_integers_are_splitmix64(counters: list[int], seed: int, high: int) -> None:
    """Catches a shift that keeps the sign, a product that saturates instead of wrapping, and a negative remainder."""
    expected = [(splitmix64(c * 0x9E3779B97F4A7C15 + seed) >> 1) % high for c in counters]
    assert integers(high, seed, torch.tensor(counters)).tolist() == expected


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_derived_seeds_are_splitmix64_chained(parts: list[int]) -> None:
    """Catches an operator's precedence that masks too early, and parts that are added up (order would not matter)."""
    state = 0
    for part in parts:
        state = splitmix64((state ^ (part & MASK)) + 0x9E3779B97F4A7C15)
    assert derive_seed(*parts) == state >> 1


def test_derived_seeds_tell_every_small_part_apart() -> None:
    """Catches seeds such as 1000·seed + epoch, which meet again."""
    seeds = {derive_seed(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000


def test_permutation_is_a_pure_function_of_its_parts() -> None:
    """Catches an order drawn from the global generator, or one that is the same in each epoch."""
    first = permutation(1000, 0, 3)
    torch.rand(5)
    assert torch.equal(first, permutation(1000, 0, 3))
    assert not torch.equal(first, permutation(1000, 0, 4))
    assert sorted(first.tolist()) == list(range(1000))


@given(st.lists(ANY_INT64, min_size=1, max_size=5), ANY_INT64)
def test_uniform_is_the_first_24_bits(counters: list[int], seed: int) -> None:
    """Catches a sign bit that makes it negative, rounding up to 1, and the remainder's low bits."""
    expected = [(splitmix64(c * 0x9E3779B97F4A7C15 + seed) >> 40) / 2**24 for c in counters]
    assert uniform(seed, torch.tensor(counters)).tolist() == expected


def test_normal_is_normal() -> None:
    """Catches sine and cosine of one uniform number for both, log of 0, and pairs of neighbours that go together."""
    drawn = normal(5, torch.arange(50_000)).double().numpy()
    assert np.isfinite(drawn).all()
    assert kstest(drawn, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(50_000)
    other = normal(6, torch.arange(50_000)).double().numpy()
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / np.sqrt(50_000)


@given(st.lists(ANY_INT64, min_size=1, max_size=5), st.integers(0, 2**62))
def test_normal_is_box_and_mullers(counters: list[int], seed: int) -> None:
    """Catches 1 − u forgotten (infinite at 0) and a radius without its root."""
    expected = []
    for c in counters:
        u, v = ((splitmix64(c * 0x9E3779B97F4A7C15 + derive_seed(seed, i)) >> 40) / 2**24 for i in (0, 1))
        expected.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v))
    torch.testing.assert_close(normal(seed, torch.tensor(counters)), torch.tensor(expected), atol=1e-5, rtol=1e-5)
