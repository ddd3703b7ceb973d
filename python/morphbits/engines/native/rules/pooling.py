"""Pooling, nearest-neighbour resampling, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from morphbits.engines.native.kernels.plans import constant
from morphbits.engines.native.kernels.program import computed
from morphbits.engines.native.rules.arithmetic import SIDE_BY_SIDE, Operator
from morphbits.engines.native.rules.registry import refused, rule


def _planes(x: torch.Tensor, dims: int) -> torch.Tensor:
    """(planes, elements of a plane): the last `dims` axes make a plane."""
    cut = x.dim() - dims
    return x.reshape(prod(x.shape[:cut]), prod(x.shape[cut:]))


def _scattered(
    op: Operator,
    index: torch.Tensor,
    planes: torch.Tensor,
    shape: Sequence[int],
) -> torch.Tensor:
    """Planes of zeros with every element of `planes` added at its index, as a tensor of `shape`;
    index: one for all planes, or one each."""
    planes, count = computed(planes), planes.shape[0]
    size = prod(shape) // max(count, 1)
    if index.dim() == 1 and count >= SIDE_BY_SIDE:  # planes side by side in memory: by vectors
        zeros = torch.zeros(size, count, dtype=planes.dtype).t()
        planes = planes.t().contiguous().t()
    else:
        zeros = torch.zeros(count, size, dtype=planes.dtype)
    added = op.scatter_add(zeros, index, planes, in_place=True)
    return added.contiguous().view(list(shape))


_ADDED = "one addition an element of the output, in row-major order"


@rule(
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
    "fractional_max_pool2d_backward fractional_max_pool3d_backward",
    _ADDED,
)
def _max_pool_backward(
    op: Operator, gradient: torch.Tensor, x: torch.Tensor, *settings: Any
) -> torch.Tensor:
    op.check(gradient, x)
    dims = 2 if "2d" in op.name else 3
    indices = settings[-1]
    if indices.shape != gradient.shape:
        refused(op.func, gradient, x, *settings)
    return _scattered(op, _planes(indices, dims), _planes(gradient, dims), x.shape)


def _all(values: Sequence[int] | int | None, dims: int, default: Sequence[int]) -> list[int]:
    if values is None or (not isinstance(values, int) and len(values) == 0):
        return list(default)
    many = [values] if isinstance(values, int) else list(values)
    return many * dims if len(many) == 1 else many


class _Windows:
    """The windows of an average pooling of `dims` dimensions over planes of `size`."""

    whole = False  # whether all windows lie inside the image and have the kernel's size

    def __init__(
        self,
        size: Sequence[int],
        out: Sequence[int],
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        include_pad: bool,
        divisor: int | None,
    ) -> None:
        axes = []
        with _disable_current_modes():
            for n, o, k, s, p in zip(size, out, kernel, stride, padding, strict=True):
                start = torch.arange(o) * s - p
                end = torch.clamp(start + k, max=n + p)
                axes.append((start.clamp(min=0), end.clamp(max=n), end - start))
            self.axes, self.size, self.out, self.kernel = axes, list(size), list(out), kernel
            self.stride = stride
            self.whole = not any(padding) and all(
                int(end[-1] - begin[-1]) == k
                for (begin, end, _), k in zip(axes, kernel, strict=True)
            )
            factor = torch.ones((), dtype=torch.long)
            for begin, end, length in axes:
                factor = factor[..., None] * (length if include_pad else end - begin)
            factor = factor if divisor is None else torch.full_like(factor, divisor)
            divisors = factor.reshape(-1)
        self.divisor = constant(divisors)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(taps, out voxels): index of each tap in the plane and whether it is in the window; to
        be called where no mode sees it."""
        index, valid = [], []
        for tap in product(*(range(k) for k in self.kernel)):
            at, ok = torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.bool)
            for (begin, end, _), t, n in zip(self.axes, tap, self.size, strict=True):
                position = begin + t
                at = at[..., None] * n + position.clamp(max=n - 1)
                ok = ok[..., None] & (position < end)
            index.append(at.reshape(-1))
            valid.append(ok.reshape(-1))
        return torch.stack(index), torch.stack(valid)

    def sums(self, op: Operator, x: torch.Tensor) -> torch.Tensor:
        """(planes, out voxels): a chain over each window. What lies outside a window is zero and
        is not counted."""
        planes, dims = _planes(x, len(self.size)), len(self.size)
        if self.whole:  # no list of places
            parts = planes.view(len(planes), *self.size)
            for axis, (k, s) in enumerate(zip(self.kernel, self.stride, strict=True)):
                parts = parts.unfold(axis + 1, k, s)  # planes, out voxels, taps
            taps = parts.movedim(tuple(range(dims + 1, 2 * dims + 1)), tuple(range(dims)))
            return op.chain("add", taps.reshape(prod(self.kernel), len(planes), prod(self.out)))
        with _disable_current_modes():
            index, valid = self.places()
            inside = int((valid.sum(0) - 1).clamp(min=0).sum()) * len(planes)
        values = planes[:, constant(index)]  # planes, taps, voxels
        values = torch.where(constant(valid), values, torch.zeros((), dtype=x.dtype))
        return op.chain("add", values.movedim(1, 0), operations=inside)

    def spread(self, op: Operator, share: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """What `sums` gathered from gets the share (planes, out voxels) of each window."""
        with _disable_current_modes():
            index, valid = (x.t().reshape(-1) for x in self.places())
            inside = valid.nonzero()[:, 0]  # voxel by voxel, its taps in order
            to, source = index[inside], inside // (len(index) // share.shape[1])
        return _scattered(op, constant(to), share[:, constant(source)], shape)


def _windows(
    x: torch.Tensor,
    out: Sequence[int],
    dims: int,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Windows:
    kernels = _all(kernel, dims, ())
    return _Windows(
        x.shape[x.dim() - dims :],
        out,
        kernels,
        _all(stride, dims, kernels),
        _all(padding, dims, [0] * dims),
        count_include_pad,
        divisor_override,
    )


_AVERAGE = "a chain over the window in row-major order, then one division"


@rule("avg_pool1d avg_pool2d avg_pool3d", _AVERAGE)
def _avg_pool(op: Operator, x: torch.Tensor, *settings: Any, **options: Any) -> torch.Tensor:
    op.check(x)
    dims = int(op.name[8])
    out_shape = op.func(x.to("meta"), *settings, **options).shape
    windows = _windows(x, out_shape[-dims:], dims, *settings, **options)
    total = windows.sums(op, x)
    return op.div(total, windows.divisor).view(out_shape)


@rule(
    "avg_pool2d_backward avg_pool3d_backward",
    "one division an element of the output, then one addition for each of its window, outputs in "
    "row-major order",
)
def _avg_pool_backward(
    op: Operator,
    gradient: torch.Tensor,
    x: torch.Tensor,
    *settings: Any,
    **options: Any,
) -> torch.Tensor:
    op.check(gradient, x)
    dims = int(op.name[8])
    windows = _windows(x, gradient.shape[-dims:], dims, *settings, **options)
    share = op.div(_planes(gradient, dims), windows.divisor)
    return windows.spread(op, share, x.shape)


@rule(
    "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
    "_upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward "
    "_upsample_nearest_exact3d_backward",
    _ADDED,
)
def _upsample_nearest_backward(
    op: Operator,
    gradient: torch.Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *scales: Any,
) -> torch.Tensor:
    op.check(gradient)
    dims = len(output_size)
    # which input voxel each output voxel shows: torch's own forward pass on the voxels' numbers
    sizes = list(input_size[2:])
    numbers = torch.arange(prod(sizes), dtype=torch.float64).view(1, 1, *sizes)
    forward = getattr(torch.ops.aten, op.name.removesuffix("_backward"))
    index = forward(numbers, list(output_size), *scales).long().view(-1)
    return _scattered(op, index, _planes(gradient, dims), input_size)


class _Adaptive(_Windows):
    """The windows of an adaptive average pooling: from ⌊i·n/o⌋ to ⌈(i + 1)·n/o⌉."""

    def __init__(self, size: Sequence[int], out: Sequence[int]) -> None:
        self.size, self.out, self.axes, self.kernel = list(size), list(out), [], []
        with _disable_current_modes():
            for n, o in zip(size, out, strict=True):
                i = torch.arange(o)
                begin, end = i * n // o, -(-(i + 1) * n // o)
                self.axes.append((begin, end, end - begin))
                self.kernel.append(int((end - begin).max()))

    def share(self, op: Operator, x: torch.Tensor) -> torch.Tensor:
        """(planes, voxels) divided by the windows' lengths, axis by axis, as torch does."""
        x = x.view(x.shape[0], *self.out)
        for d, (_, _, length) in enumerate(self.axes):
            shape = [-1 if e == d + 1 else 1 for e in range(x.dim())]
            x = op.div(x, constant(length).view(shape))
        return x.flatten(1)


@rule("_adaptive_avg_pool2d _adaptive_avg_pool3d", "a chain over the window; a division an axis")
def _adaptive_avg_pool(op: Operator, x: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
    op.check(x)
    dims = len(output_size)
    windows = _Adaptive(x.shape[x.dim() - dims :], output_size)
    total = windows.sums(op, x)
    return windows.share(op, total).view(*x.shape[: x.dim() - dims], *output_size)


@rule(
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward",
    "a division an axis, then one addition for each element of the window, in row-major order",
)
def _adaptive_avg_pool_backward(
    op: Operator, gradient: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    op.check(gradient, x)
    dims = 2 if "2d" in op.name else 3
    windows = _Adaptive(x.shape[x.dim() - dims :], gradient.shape[x.dim() - dims :])
    share = windows.share(op, _planes(gradient, dims))
    return windows.spread(op, share, x.shape)


@rule(
    "adaptive_max_pool2d_backward adaptive_max_pool3d_backward",
    _ADDED,
)
def _adaptive_max_pool_backward(
    op: Operator,
    gradient: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
) -> torch.Tensor:
    return _max_pool_backward(op, gradient, x, indices)


@rule(
    "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward",
    _ADDED,
)
def _pad_backward(
    op: Operator,
    gradient: torch.Tensor,
    x: torch.Tensor,
    padding: Sequence[int],
) -> torch.Tensor:
    op.check(gradient, x)
    dims = len(padding) // 2
    sizes = x.shape[x.dim() - dims :]
    numbers = torch.arange(prod(sizes), dtype=torch.float64).view(1, 1, *sizes)
    index = getattr(torch.ops.aten, op.name.removesuffix("_backward"))(numbers, list(padding))
    return _scattered(op, index.long().view(-1), _planes(gradient, dims), x.shape)


@rule("col2im", "one addition an element of the columns, in row-major order")
def _col2im(
    op: Operator, columns: torch.Tensor, size: Sequence[int], *window: Any
) -> torch.Tensor:
    op.check(columns)
    batched = columns if columns.dim() == 3 else columns[None]
    numbers = torch.arange(1, prod(size) + 1, dtype=torch.float64).view(1, 1, *size)
    index = torch.ops.aten.im2col.default(numbers, *window).long().reshape(-1) - 1
    inside = index >= 0
    planes = batched.reshape(-1, index.shape[0])[:, inside]
    channels = batched.shape[1] * batched.shape[2] // index.shape[0]
    added = _scattered(op, index[inside], planes, [batched.shape[0], channels, *size])
    return added if columns.dim() == 3 else added[0]
