"""Linear sampling of an image at points, and its derivatives, in one call into C.

What is drawn for it, and in which order, is written in csrc/sampling.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod

import torch

from morphbits.engines.native.kernels import program
from morphbits.engines.native.kernels.library import TYPES, Rounding, check_status, load
from morphbits.engines.native.kernels.precision import FLOAT32

T = torch.Tensor
Counts = tuple[int, int]  # numbers of draws and of elementary operations
_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Sampling(ctypes.Structure):
    _fields_ = (
        *((name, _I32) for name in ("type", "dims", "aligned", "border")),
        *((name, _I64) for name in ("start", "channels", "points")),
        ("size", _I64 * 3),
        *((name, _PTR) for name in ("image", "place", "gradient")),
        *((name, _PTR) for name in ("value", "to_image", "to_place", "count")),
    )


def takes(rounding: Rounding, image_CN: T, grid_MV: T, size: Sequence[int], padding: str) -> bool:
    """Whether the kernel computes this; elsewhere the rule does it operation by operation."""
    return (
        program.takes(rounding, image_CN, grid_MV)
        and rounding.format == FLOAT32
        and padding != "reflection"
        and prod(size) < 2**31
        and max(size) < 2**24  # whole numbers of float32
    )


def values(
    rounding: Rounding,
    start: int,
    image_CN: T,
    grid_MV: T,
    size: Sequence[int],
    padding: str,
    align: bool,
) -> tuple[T, Counts]:
    """The image at the points (channels, points); start: the first draw's number in the stream."""
    out = image_CN.new_empty((len(image_CN), len(grid_MV)))
    counts = _call(rounding, start, image_CN, grid_MV, size, padding, align, value=out)
    return out, counts


def gradients(
    rounding: Rounding,
    start: int,
    image_CN: T,
    grid_MV: T,
    size: Sequence[int],
    padding: str,
    align: bool,
    gradient_CM: T,
    wanted: Sequence[bool],
) -> tuple[T | None, T | None, Counts]:
    """The gradients of image and points from that of the values, as far as they are wanted."""
    to_image = image_CN.new_zeros(image_CN.shape) if wanted[0] else None
    to_grid = grid_MV.new_empty(grid_MV.shape) if wanted[1] else None
    out = {"gradient": gradient_CM.contiguous(), "to_image": to_image, "to_place": to_grid}
    counts = _call(rounding, start, image_CN, grid_MV, size, padding, align, **out)
    return to_image, to_grid, counts


def _call(
    rounding: Rounding,
    start: int,
    image: T,
    grid: T,
    size: Sequence[int],
    padding: str,
    align: bool,
    **tensors: T | None,
) -> Counts:
    counts = (_I64 * 2)()
    given = {"image": image.contiguous(), "place": grid.contiguous(), **tensors}
    arguments = _Sampling(
        type=TYPES[image.dtype],
        dims=len(size),
        aligned=align,
        border=padding == "border",
        start=start,
        channels=len(image),
        points=len(grid),
        size=(*size, 1)[:3],
        count=ctypes.addressof(counts),
        **{name: None if x is None else x.data_ptr() for name, x in given.items()},
    )
    function = load().morphbits_sampling
    check_status(function(ctypes.byref(rounding.as_c()), ctypes.byref(arguments)))
    return counts[0], counts[1]
