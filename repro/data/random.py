"""Random numbers that are a pure function of (seed, epoch, sample): nothing to save, nothing to forget.

A generator that is carried along has a state, and a state can be lost on resume, copied into every worker, or shifted
by one. Here each number is computed from what it is for (a counter-based generator, after Salmon et al. 2011), with the
finaliser of SplitMix64 (Steele, Lea and Flood 2014) as the mixing function. The same on CPU and GPU.
"""

import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, for example (seed, epoch, step); order matters."""
    state = 0
    for part in parts:
        state = _mix_int((state ^ (part & _MASK)) + _GAMMA & _MASK)
    return state >> 1


def integers(high: int | Tensor, seed: int, counters: Tensor) -> Tensor:
    """For each counter (int64, any shape) an int64 in 0…high−1, decided by `seed` and the counter alone.

    `high` may be a tensor with one limit for each counter. The remainder of 63 bits: the bias is below high/2⁶³.
    """
    return _shift(_mix(counters * _signed(_GAMMA) + _signed(seed)), 1) % high


def uniform(seed: int, counters: Tensor) -> Tensor:
    """For each counter (int64, any shape) a float32 in [0, 1), a multiple of 2⁻²⁴: all of them are equally likely."""
    return _shift(_mix(counters * _signed(_GAMMA) + _signed(seed)), 40).to(torch.float32) * 2**-24


def normal(seed: int, counters: Tensor) -> Tensor:
    """For each counter (int64, any shape) a float32 of mean 0 and variance 1, by Box and Muller (1958); below 5.8."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(derive_seed(seed, 0), counters)))
    return radius * torch.cos(2 * math.pi * uniform(derive_seed(seed, 1), counters))


def _mix_int(z: int) -> int:
    z = (z ^ (z >> 30)) * _MIX_1 & _MASK
    z = (z ^ (z >> 27)) * _MIX_2 & _MASK
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    """`_mix_int` on int64 tensors, whose products wrap modulo 2⁶⁴ as they must."""
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: PyTorch's `>>` keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def permutation(n: int, *parts: int) -> Tensor:
    """An order of 0…n−1, int64 (n,), decided by the integers `parts`, for example (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    return torch.randperm(n, generator=generator)
