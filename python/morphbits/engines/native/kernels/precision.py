"""Virtual precision: what is emulated when results have fewer bits than float32.

`24` is float32 itself. `p`, 2 to 23: every elementary result of float32 arithmetic (each product,
each sum of an accumulation) is rounded, once and by the mode, to `p` significant bits with
float32's exponents; what has `p` bits stays. Operands (weights, images) keep their bits.

`float16`, `bfloat16`: storage. What an operator reads is first rounded to the format, to nearest
(weights, images; what another operator wrote is there already); inside a convolution products and
sums are float32's, rounded by the mode; what an operator writes is rounded to the format by the
mode. So do frameworks compute in these types, on processors and on tensor cores.

`tf32`: what a convolution multiplies is rounded to 11 bits, to nearest; all else is float32.

float64 keeps its bits throughout. csrc/precision.h says how one rounding stays one.
"""

from __future__ import annotations

from dataclasses import dataclass

from morphbits import choices
from morphbits.choices import parsed


@dataclass(frozen=True)
class Format:
    """A binary format: significant bits, and the exponent of its least normal number; the greatest
    exponent is 1 − emin. Below 2^emin the last place stays (IEEE 754's subnormal numbers)."""

    bits: int = 24
    emin: int = -126


FLOAT32 = Format()


@dataclass(frozen=True)
class Precision:
    """What is rounded to what: each elementary result; operands and results of operators; the
    factors of accumulated products (images and weights of a convolution)."""

    each: Format = FLOAT32
    stored: Format = FLOAT32
    factors: Format = FLOAT32


FULL = Precision()
_STORAGE = {"float16": Format(11, -14), "bfloat16": Format(8, -126)}
_NAMED = {name: Precision(stored=format, factors=format) for name, format in _STORAGE.items()}
_NAMED["tf32"] = Precision(factors=Format(11, -126))
NAMES = tuple(_NAMED)


def parse(precision: str | int) -> Precision:
    """The option's value; UserError if it is none of those above."""
    value = parsed("precision", choices.precision, str(precision))
    return _NAMED[value] if isinstance(value, str) else Precision(each=Format(value))
