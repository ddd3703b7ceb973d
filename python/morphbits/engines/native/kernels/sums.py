"""The compiled kernels that add many numbers up: chains, matrix products, scattered additions.

Called through ctypes on torch tensors, as `library`; each has the definition of its order beside
its structure in csrc/morphbits.h.
"""

from __future__ import annotations

import ctypes
from math import prod

import numpy as np
import torch

from morphbits.engines.native.kernels import gpu
from morphbits.engines.native.kernels.library import (
    OPERATIONS,
    TYPES,
    Rounding,
    call,
    check_size,
    load,
    on_one_device,
    table,
)

_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Reduction(ctypes.Structure):
    _fields_ = (
        ("operation", _I32),
        ("type", _I32),
        *((name, _I64) for name in ("scan", "outer", "length", "period")),
        ("input", _PTR),
        ("output", _PTR),
    )


class _Contraction(ctypes.Structure):
    _fields_ = (
        ("type", _I32),
        ("unused", _I32),
        *((name, _I64) for name in ("batch", "rows", "columns", "depth", "segments")),
        *((name, _I64) for name in ("left_batch_step", "left_size", "right_batch_step")),
        *((name, _I64) for name in ("right_depth_step", "right_column_step")),
        *((name, _I64) for name in ("row_step", "column_step")),
        *((name, _PTR) for name in ("segment_end", "row_offset", "depth_offset")),
        *((name, _PTR) for name in ("left", "right", "output")),
    )


class _Scatter(ctypes.Structure):
    _fields_ = (
        ("type", _I32),
        ("unused", _I32),
        *((name, _I64) for name in ("outer", "count", "size", "index_step")),
        *((name, _I64) for name in ("source_step", "source_place_step")),
        *((name, _I64) for name in ("output_step", "output_place_step")),
        *((name, _PTR) for name in ("index", "source", "output")),
    )


def reduce(
    rounding: Rounding, operation: str, x_ON: torch.Tensor, period: int, scan: bool = False
) -> torch.Tensor:
    """Chains of additions or multiplications of terms that lie `period` apart.

    x (outer, length), contiguous, float32 or float64; operation: add or mul. Returns (outer,
    period): result j joins x[j], x[j + period], x[j + 2·period] … from left to right; with `scan`
    the partial results, (outer, length).
    """
    x = x_ON.contiguous()
    outer, length = x.shape
    out = torch.empty((outer, length if scan else period), dtype=x.dtype, device=x.device)
    check_size(out)
    if out.numel() == 0:
        return out
    call(
        load().morphbits_reduction,
        rounding,
        _Reduction(
            operation=OPERATIONS.index(operation),
            type=TYPES[x.dtype],
            scan=scan,
            outer=outer,
            length=length,
            period=period,
            input=x.data_ptr(),
            output=out.data_ptr(),
        ),
        x.device,
    )
    return out


def segments(depth: int, length: int | None) -> np.ndarray:
    """Where the chains of a sum of `depth` products end: one chain, or chains of `length`."""
    if length is None:
        return np.array([depth], dtype=np.int64)
    return np.array([*range(length, depth, length), depth], dtype=np.int64)


def matrix_product(
    rounding: Rounding, left_BMK: torch.Tensor, right_BKN: torch.Tensor, segment_end: np.ndarray
) -> torch.Tensor:
    """Batched product of matrices: (B, M, K) and (B, K, N), any strides, to (B, M, N).

    Products of an element are added in the order of K, in chains that end at `segment_end`.
    """
    batch, rows, depth = left_BMK.shape
    columns = right_BKN.shape[2]
    left, right = left_BMK, right_BKN
    swap = columns < 16 and rows > columns  # a vector of the kernel holds columns
    if swap:
        left, right, rows, columns = right.transpose(1, 2), left.transpose(1, 2), columns, rows
    left = left.contiguous()
    return contract(
        rounding,
        left,
        right,
        shape=(batch, rows, columns),
        out_shape=(batch, columns, rows) if swap else (batch, rows, columns),
        row_offset=np.arange(rows) * depth,
        depth_offset=np.arange(depth),
        segment_end=segment_end,
        steps=(1, rows) if swap else (columns, 1),
    )


def contract(
    rounding: Rounding,
    left: torch.Tensor,
    right_BKN: torch.Tensor,
    shape: tuple[int, int, int],
    out_shape: tuple[int, ...],
    row_offset: np.ndarray,
    depth_offset: np.ndarray,
    segment_end: np.ndarray,
    steps: tuple[int, int],
    left_batch_step: int | None = None,
) -> torch.Tensor:
    """Sums over k of left[b, row_offset[m] + depth_offset[k]]·right[b, k, n].

    left: contiguous, b steps over `left_batch_step` elements (default: its first axis);
    right (B, K, N): any strides; shape: (B, M, N); the result has `out_shape`, in which (m, n)
    lies at m·steps[0] + n·steps[1] of its image b.
    """
    batch, rows, columns = shape
    left, right_BKN = on_one_device(left, right_BKN)
    out = torch.empty(out_shape, dtype=left.dtype, device=left.device)
    check_size(out)
    if out.numel() == 0:
        return out
    if len(depth_offset) == 0:
        return out.zero_()
    if left_batch_step is None:
        left_batch_step = left.numel() // batch
    rows_at, depth_at, ends = (
        np.ascontiguousarray(v, dtype=np.int64) for v in (row_offset, depth_offset, segment_end)
    )
    last = (batch - 1) * left_batch_step + int(rows_at.max()) + int(depth_at.max())
    assert left.is_contiguous() and last < left.numel() and ends[-1] == len(depth_at)
    assert right_BKN.shape == (batch, len(depth_at), columns) and prod(out_shape) == prod(shape)
    on_device = [table(v, left.device) for v in (ends, rows_at, depth_at)]
    if gpu.takes(rounding, left.device):
        right_BKN = right_BKN.contiguous()
    call(
        load().morphbits_contraction,
        rounding,
        _Contraction(
            type=TYPES[left.dtype],
            batch=batch,
            rows=rows,
            columns=columns,
            depth=len(depth_at),
            segments=len(ends),
            left_batch_step=left_batch_step,
            left_size=left.numel(),
            right_batch_step=right_BKN.stride(0),
            right_depth_step=right_BKN.stride(1),
            right_column_step=right_BKN.stride(2),
            row_step=steps[0],
            column_step=steps[1],
            segment_end=on_device[0].data_ptr(),
            row_offset=on_device[1].data_ptr(),
            depth_offset=on_device[2].data_ptr(),
            left=left.data_ptr(),
            right=right_BKN.data_ptr(),
            output=out.data_ptr(),
        ),
        left.device,
    )
    return out


def scatter_add(
    rounding: Rounding,
    to_OS: torch.Tensor,
    index: torch.Tensor,
    source_ON: torch.Tensor,
    in_place: bool = False,
) -> torch.Tensor:
    """A copy of `to`, or `to` itself, with source[o, j] added at to[o, index[j]], for j = 0, 1, …
    in this order.

    to (outer, size), source (outer, count), any strides; index (count) for all o, or (outer,
    count), int64. Fastest with one index for all o, and neighbouring o next to each other in
    memory.
    """
    out = to_OS if in_place else to_OS.clone(memory_format=torch.contiguous_format)
    source, where = source_ON, index.contiguous()
    check_size(out)
    if source.numel() == 0:
        return out
    assert where.dtype == torch.int64 and source.dtype == out.dtype
    assert where.shape in (source.shape, source.shape[1:]) and source.shape[0] == out.shape[0]
    if int(where.min()) < 0 or int(where.max()) >= out.shape[1]:
        raise IndexError(f"an index is out of range: the size is {out.shape[1]}")
    call(
        load().morphbits_scatter,
        rounding,
        _Scatter(
            type=TYPES[out.dtype],
            outer=out.shape[0],
            count=source.shape[1],
            size=out.shape[1],
            index_step=source.shape[1] if where.dim() == 2 else 0,
            source_step=source.stride(0),
            source_place_step=source.stride(1),
            output_step=out.stride(0),
            output_place_step=out.stride(1),
            index=where.data_ptr(),
            source=source.data_ptr(),
            output=out.data_ptr(),
        ),
        out.device,
    )
    return out
