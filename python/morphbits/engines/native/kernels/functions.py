"""Elementary functions, and conversions to 16 bits: computed wider, then rounded once.

float32 is computed in float64: the functions in CORES and pow by vectors, with the same bytes on
every instruction set (csrc/functions.h), the others by the C library. float64 is computed in the C
library's long double (64 bits of mantissa on x86-64, 113 on AArch64). The wider value is within
2^-51 (float32; erfc: 3·2^-52, lgamma: 2^-50) or 2^-62 (float64 on x86-64) of the exact one,
relative, and the result is one of its two neighbours. A value nearer than that to a number of the
format may be taken for that number, which then stays: tanh(20) is 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from morphbits.engines.native.kernels.header import names
from morphbits.engines.native.kernels.library import TYPES, Rounding, call, check_size, load

*FUNCTIONS, _, _, _ = names("function")  # without the two conversions and the count
# of one argument by vectors; their errors are in notes/benchmarks/, made by `make function-errors`
CORES = tuple("exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh erf erfc".split())
_NARROW = {
    torch.float16: names("function").index("to_float16"),
    torch.bfloat16: names("function").index("to_bfloat16"),
}


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


def wide(
    rounding: Rounding,
    name: str,
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    kernel: Callable[..., int] | None = None,
) -> torch.Tensor:
    """The float64 values that `function` rounds for the float32 `a` (and `b`): what tests
    measure. kernel: of another build of the kernels."""
    number = FUNCTIONS.index(name)
    return _call(rounding, number, a, b, kernel or load().morphbits_wide, torch.float64)


def _call(
    rounding: Rounding,
    number: int,
    a: torch.Tensor,
    b: torch.Tensor | None,
    kernel: Callable[..., int] | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The result of a kernel, of type `dtype` or that of `a`."""
    a = a.contiguous()
    b = None if b is None else b.contiguous()
    out = torch.empty(a.shape, dtype=dtype or a.dtype)
    check_size(out)
    if out.numel():
        call(
            kernel or load().morphbits_function,
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
