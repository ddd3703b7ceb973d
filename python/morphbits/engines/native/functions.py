"""Functions of the C library, and conversions to 16 bits: computed wider, then rounded.

float32 is computed in float64, float64 in long double (64 bits of mantissa on x86-64, 113 on
AArch64), each within about one last place of the wider type: the result is one of the two
neighbours of a value that is within 2^-52 (float32) or 2^-63 (float64 on x86-64) of the exact
one, relative. A result nearer than that to a number of the format is taken to be that number,
and stays: tanh(20) is 1.
"""

from __future__ import annotations

import ctypes

import torch

from morphbits.engines.native.library import TYPES, Rounding, call, check_size, load

FUNCTIONS = tuple(
    """
    exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh
    erf erfc lgamma pow atan2 hypot fmod
    """.split()
)
_NARROW = {torch.float16: len(FUNCTIONS), torch.bfloat16: len(FUNCTIONS) + 1}


class _Function(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("count", ctypes.c_int64),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


def function(
    rounding: Rounding, name: str, a: torch.Tensor, b: torch.Tensor | None = None
) -> torch.Tensor:
    """`name` of each element of `a` (and `b`, broadcast), both float32 or both float64."""
    if b is not None:
        a, b = torch.broadcast_tensors(a, b)
        assert a.dtype == b.dtype
    return _call(rounding, FUNCTIONS.index(name), a, b)


def narrow(rounding: Rounding, a: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 `a` rounded to float16 or bfloat16."""
    return _call(rounding, _NARROW[dtype], a, None).to(dtype)


def _call(
    rounding: Rounding, number: int, a: torch.Tensor, b: torch.Tensor | None
) -> torch.Tensor:
    a = a.contiguous()
    b = None if b is None else b.contiguous()
    out = torch.empty(a.shape, dtype=a.dtype)
    check_size(out)
    if out.numel():
        call(
            load().morphbits_function,
            rounding,
            _Function(
                function=number,
                type=TYPES[a.dtype],
                count=a.numel(),
                a=a.data_ptr(),
                b=None if b is None else b.data_ptr(),
                out=out.data_ptr(),
            ),
            a.device,
        )
    return out
