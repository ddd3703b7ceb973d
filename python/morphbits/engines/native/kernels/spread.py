"""The gradient of an interpolation, in one call into C.

What is drawn for it, and in which order, is written in csrc/spread.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod

import torch

from morphbits.engines.native.kernels import plans, program
from morphbits.engines.native.kernels.library import TYPES, Rounding, check_status, load
from morphbits.engines.native.kernels.precision import FLOAT32

T = torch.Tensor
Axis = tuple[list[T], list[T]]  # the taps of each output position: their indices, their weights
_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Spread(ctypes.Structure):
    _fields_ = (
        *((name, _I32) for name in ("type", "dims")),
        *((name, _I64) for name in ("start", "planes")),
        *((name, _I64 * 3) for name in ("size_out", "size_in", "taps")),
        *((name, _PTR * 3) for name in ("index", "weight")),
        *((name, _PTR) for name in ("gradient", "output")),
    )


def has_kernel(rounding: Rounding, gradient: T) -> bool:
    """Whether the kernel computes this; elsewhere the rule does it operation by operation."""
    return program.takes(rounding, gradient) and rounding.format == FLOAT32


def spread(
    rounding: Rounding, start: int, gradient: T, input_size: Sequence[int], axes: Sequence[Axis]
) -> tuple[T, int, int]:
    """The gradient of the input (batch, channels, *sizes) from that of the output; numbers of
    draws and of elementary operations. start: number of the first draw in the random stream."""
    plans.refuse()  # the taps are tensors that the recording does not follow
    dims, planes = len(axes), prod(gradient.shape[:2])
    tables = [
        (torch.stack(indices).contiguous(), torch.stack(weights).contiguous())
        for indices, weights in axes
    ]
    for (index, _), size in zip(tables, input_size[2:], strict=True):
        assert int(index.min()) >= 0 and int(index.max()) < size
    if dims < 3:  # axes of one voxel, whose weight is not multiplied by
        one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=gradient.dtype)
        tables = [*tables[:-1], *[one] * (3 - dims), tables[-1]]
    single = [1] * (3 - dims)
    out = [*gradient.shape[2:-1], *single, gradient.shape[-1]]
    given = gradient.contiguous()
    to = given.new_zeros(tuple(input_size))
    arguments = _Spread(
        type=TYPES[given.dtype],
        dims=dims,
        start=start,
        planes=planes,
        size_out=tuple(out),
        size_in=(*input_size[2:-1], *single, input_size[-1]),
        taps=tuple(len(index) for index, _ in tables),
        index=tuple(index.data_ptr() for index, _ in tables),
        weight=tuple(weight.data_ptr() for _, weight in tables),
        gradient=given.data_ptr(),
        output=to.data_ptr(),
    )
    check_status(load().morphbits_spread(ctypes.byref(rounding.as_c()), ctypes.byref(arguments)))
    combinations, outputs = prod(len(index) for index, _ in tables), prod(out)
    products = {1: 0, 2: outputs, 3: out[0] * out[1] + outputs}[dims]
    return to, combinations * dims + 1, combinations * (products + 2 * planes * outputs)
