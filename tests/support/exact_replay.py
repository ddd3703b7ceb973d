"""Comparing tensors bit for bit, and the random bits of csrc/morphbits.h written again in
Python."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from morphbits.engines.native.kernels import reference
from morphbits.engines.native.kernels.library import Rounding

MASK64, MASK32 = 2**64 - 1, 2**32 - 1


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(integer), b.contiguous().view(integer)
    )


def mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
    return x ^ (x >> 31)


def word(key: int, block: int, element: int) -> int:
    x = mix64((key + 0x9E3779B97F4A7C15 * (2 * block + 1)) & MASK64)
    y = mix64((key + 0x9E3779B97F4A7C15 * (2 * block + 2)) & MASK64)
    z = (element * ((x & MASK32) | 1) + (x >> 32)) & MASK32
    z = (z ^ (z >> 16)) * 0x7FEB352D & MASK32
    z ^= y & MASK32
    z = (z ^ (z >> 15)) * 0x846CA68B & MASK32
    return z ^ (z >> 16)


def rounded(
    exact: Fraction, r: Rounding, dtype: torch.dtype, index: int, element: int
) -> Fraction:
    """Operation `index` of output `element`, rounded in exact arithmetic; finite results only."""
    kind = r.format if dtype == torch.float32 else dtype
    down, up = reference.neighbours(exact, kind)
    assert math.isfinite(down) and math.isfinite(up)
    if r.mode == "nearest":
        return Fraction(reference.nearest(exact, kind))
    if r.mode == "nearness":
        if down == up:
            return Fraction(down)
        start = word(r.key, index >> 5, element) | 1
        u = Fraction((start * 0x93D765DD ** (index & 31) & MASK32) >> 3, 2**29)
        inner, outer = sorted((Fraction(down), Fraction(up)), key=abs)
        away = (exact - inner) / (outer - inner)
        return outer if away + u >= 1 else inner
    goes_up = {
        "upward": True,
        "downward": False,
        "toward_zero": exact < 0,
        "random": bool(word(r.key, index >> 5, element) >> (31 - (index & 31)) & 1),
    }[r.mode]
    return Fraction(up if goes_up else down)
