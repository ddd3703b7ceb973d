"""Rounding in exact rational arithmetic: what every kernel is compared with, at load and in
the tests."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from morphbits.engines.native.kernels.precision import Format

_FORMATS = {
    torch.float32: (24, -149, 127),
    torch.float64: (53, -1074, 1023),
    torch.float16: (11, -24, 15),
    torch.bfloat16: (8, -133, 127),
}
Kind = torch.dtype | Format


def _format(kind: Kind) -> tuple[int, int, int]:
    if isinstance(kind, Format):
        return kind.bits, kind.emin - kind.bits + 1, 1 - kind.emin
    return _FORMATS[kind]


def neighbours(exact: Fraction, kind: Kind) -> tuple[float, float]:
    """The nearest values of a type or format not above and not below `exact`; equal if `exact` is
    one of them.

    The format has `precision` bits, a least positive value of 2^least and a greatest exponent;
    beyond the greatest finite value the neighbour is infinite (IEEE 754-2019, 4.3.2).
    """
    precision, least, greatest = _format(kind)
    if exact == 0:
        return 0.0, 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** max(exponent - precision + 1, least)
    below, above = (magnitude // step) * step, -(-magnitude // step) * step
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** greatest
    low = float(min(below, largest))
    high = math.inf if above > largest else float(above)
    return (low, high) if exact > 0 else (-high, -low)


def nearest(exact: Fraction, kind: Kind) -> float:
    """Round to nearest, ties to even; below the overflow threshold only."""
    down, up = neighbours(exact, kind)
    if down == up:
        return down
    below, above = exact - Fraction(down), Fraction(up) - exact
    if below != above:
        return down if below < above else up
    _, least, _ = _format(kind)
    step = max(Fraction(up) - Fraction(down), Fraction(2) ** least)
    return down if (Fraction(down) / step) % 2 == 0 else up
