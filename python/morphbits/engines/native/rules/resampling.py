"""`interpolate` and its gradients.

The formulas and their order are those of torch's CPU kernels (UpSampleKernel.cpp,
UpSample.op), in which products and sums are separate operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch

from morphbits.engines.native.kernels.program import computed
from morphbits.engines.native.kernels.spread import Axis, has_kernel, spread
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import rule

T = torch.Tensor

# ---- interpolate(mode="linear" | "bilinear" | "trilinear")


def _step(
    op: Operator, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> T:
    """How far two output positions lie apart in the input."""
    if align:
        return op.div(torch.tensor(size - 1, dtype=dtype), max(out - 1, 1))
    if scale is not None and scale > 0:
        return torch.tensor(1 / scale, dtype=dtype)
    return op.div(torch.tensor(size, dtype=dtype), out)


def _source(
    op: Operator, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> T:
    """Where each output position lies in the input."""
    position = torch.arange(out, dtype=dtype)
    step = _step(op, size, out, align, scale, dtype)
    return op.mul(step, position) if align else op.sub(op.mul(step, op.add(position, 0.5)), 0.5)


def _linear_axis(
    op: Operator, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> Axis:
    """Lower and upper index of each output position, and their weights."""
    if out == size:  # torch leaves such an axis as it is
        at = torch.arange(out)
        return [at, at], [torch.ones(out, dtype=dtype), torch.zeros(out, dtype=dtype)]
    real = _source(op, size, out, align, scale, dtype)
    real = real if align else real.clamp_(min=0)
    lower = real.long().clamp_(max=size - 1)
    upper = (lower + 1).clamp_(max=size - 1)
    above = op.sub(real, lower.to(dtype)).clamp_(0, 1)
    return [lower, upper], [op.sub(1, above), above]


def _spread(op: Operator, gradient: T, input_size: Sequence[int], axes: Sequence[Axis]) -> T:
    """The gradient times the weights, added to the places that it was taken from."""
    like = op.context.unkeyed
    if has_kernel(like, gradient):
        made = [(indices, list(map(computed, weights))) for indices, weights in axes]
        first = op.context.next_draw
        out, draws, operations = spread(like, first, gradient, input_size, made)
        op.context.advance(draws, ((op.name, operations),))
        return out
    planes = gradient.reshape(-1, prod(gradient.shape[2:]))
    index, source = [], []
    for taps in product(*(range(len(indices)) for indices, _ in axes)):
        at = torch.zeros((), dtype=torch.long)
        weight = torch.ones((), dtype=gradient.dtype)
        for d, (tap, (indices, weights)) in enumerate(zip(taps, axes, strict=True)):
            at = at[..., None] * input_size[2 + d] + indices[tap]
            weight = weights[tap] if d == 0 else op.mul(weight[..., None], weights[tap])
        index.append(at.reshape(-1))
        source.append(op.mul(weight.reshape(-1), planes))
    zeros = torch.zeros(planes.shape[0], prod(input_size[2:]), dtype=gradient.dtype)
    order = torch.stack(index, 1).reshape(-1)  # voxel by voxel, its taps in order
    sources = torch.stack(source, 2).flatten(1)
    return op.scatter_add(zeros, order, sources).view(list(input_size))


def _settings(
    dims: int, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[bool, list[float | None]]:
    align, *scales = args
    scales = [*scales, *(v for k, v in kwargs.items() if k.startswith("scales"))]
    return bool(align), [*scales, *[None] * (dims - len(scales))][:dims]


@rule(
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d",
    "axis by axis, the last first: lower·weight + upper·weight; the weights' arithmetic, too",
)
def _linear(
    op: Operator,
    x: torch.Tensor,
    output_size: Sequence[int] | None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    op.check(x)
    dims = x.dim() - 2
    if op.func._overloadname == "vec":  # sizes or factors of a list
        align, factors = args
        if output_size is None:
            output_size = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
        scales = list(factors or [None] * dims)
    else:
        align, scales = _settings(dims, args, kwargs)
    assert output_size is not None
    out = x
    for d in reversed(range(dims)):
        axis = 2 + d
        (lower, upper), weights = _linear_axis(
            op, x.shape[axis], int(output_size[d]), align, scales[d], x.dtype
        )
        if x.shape[axis] == output_size[d]:
            continue
        shape = [-1 if e == axis else 1 for e in range(x.dim())]
        below, above = (
            op.mul(out.index_select(axis, index), weight.view(shape))
            for index, weight in zip((lower, upper), weights, strict=True)
        )
        out = op.add(below, above)
    return out.clone() if out is x else out


@rule(
    "upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward",
    "weights multiplied from the first axis on, then the gradient; added to the corners, outputs "
    "in row-major order",
)
def _linear_backward(
    op: Operator,
    gradient: torch.Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    op.check(gradient)
    dims = gradient.dim() - 2
    align, scales = _settings(dims, args, kwargs)
    axes = [
        _linear_axis(
            op, input_size[2 + d], gradient.shape[2 + d], align, scales[d], gradient.dtype
        )
        for d in range(dims)
    ]
    return _spread(op, gradient, input_size, axes)


# ---- interpolate(mode="bicubic"), the gradient (the forward pass: decomposed.py)


def cubic_weights(op: Operator, t: T) -> list[T]:
    """Keys' four weights with a = −¾, by Horner's rule (UpSample.op)."""
    a = -0.75

    def inner(x: T) -> T:  # |x| ≤ 1
        return op.add(op.mul(op.mul(op.sub(op.mul(a + 2, x), a + 3), x), x), 1)

    def outer(x: T) -> T:  # 1 < |x| < 2
        first = op.sub(op.mul(a, x), 5 * a)
        return op.sub(op.mul(op.add(op.mul(first, x), 8 * a), x), 4 * a)

    rest = op.sub(1, t)
    return [outer(op.add(t, 1)), inner(t), inner(rest), outer(op.add(rest, 1))]


def _cubic_axis(
    op: Operator, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> Axis:
    """Four indices and four weights of each output position."""
    real = _source(op, size, out, align, scale, dtype)
    low = real.floor()
    weights = cubic_weights(op, op.sub(real, low))
    return [(low.long() + i).clamp(0, size - 1) for i in (-1, 0, 1, 2)], weights


@rule(
    "upsample_bicubic2d_backward",
    "gradient·(weight_y·weight_x), added to sixteen places, outputs in row-major order",
)
def _bicubic_backward(
    op: Operator,
    gradient: torch.Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align: bool,
    *scales: float | None,
) -> torch.Tensor:
    op.check(gradient)
    factors = [*scales, None, None][:2]
    axes = [
        _cubic_axis(op, input_size[2 + d], output_size[d], align, factors[d], gradient.dtype)
        for d in range(2)
    ]
    return _spread(op, gradient, input_size, axes)


# ---- interpolate(antialias=True)

_WIDTHS = {"bilinear": 2, "bicubic": 4, "lanczos": 6}  # of the filters, at their own scale


def _filter(op: Operator, kind: str, x: T) -> T:
    """The filter's value at the distance x ≥ 0 from its middle (bicubic: Keys' with a = −½)."""
    zero = torch.zeros((), dtype=x.dtype)
    if kind == "bilinear":
        return op.sub(1, x).clamp(min=0)
    if kind == "bicubic":
        a = -0.5
        inner = op.add(op.mul(op.mul(op.sub(op.mul(a + 2, x), a + 3), x), x), 1)
        first = op.add(op.mul(op.sub(op.mul(a, x), 5 * a), x), 8 * a)
        outer = op.sub(op.mul(first, x), 4 * a)
        return torch.where(x < 1, inner, torch.where(x < 2, outer, zero))
    return torch.where(x < 3, op.mul(_sinc(op, x), _sinc(op, op.div(x, 3))), zero)


def _sinc(op: Operator, x: T) -> T:
    angle = op.mul(x, math.pi)
    return torch.where(
        x == 0, torch.ones((), dtype=x.dtype), op.div(op.function("sin", angle), angle)
    )


def _wide_axis(
    op: Operator,
    kind: str,
    size: int,
    out: int,
    align: bool,
    scale: float | None,
    dtype: torch.dtype,
) -> tuple[Axis, list[T]]:
    """The taps under the filter of each output position, and which of them there are."""
    step = _step(op, size, out, align, scale, dtype)
    if align and out == 1:
        step = torch.zeros_like(step)
    shrinks = bool(step >= 1)
    half = _WIDTHS[kind] / 2
    support = op.mul(step, half) if shrinks else torch.tensor(half, dtype=dtype)
    narrow = op.div(1, step) if shrinks else torch.ones((), dtype=dtype)
    center = op.mul(step, torch.arange(out, dtype=dtype) + 0.5)
    first = op.add(op.sub(center, support), 0.5).long().clamp(min=0)
    count = op.add(op.add(center, support), 0.5).long().clamp(max=size) - first
    indices, inside, weights = [], [], []
    for j in range(min(int(count.max()), 2 * math.ceil(float(support)) + 1)):
        distance = op.add(op.sub((first + j).to(dtype), center), 0.5)
        weight = _filter(op, kind, op.mul(distance, narrow).abs())
        inside.append(j < count)
        weights.append(torch.where(inside[-1], weight, torch.zeros((), dtype=dtype)))
        indices.append((first + j).clamp(max=size - 1))
    total = op.chain("add", torch.stack(weights))
    weights = [torch.where(total != 0, op.div(weight, total), weight) for weight in weights]
    return (indices, weights), inside


_WIDE = (
    "distances from the middle, the filter's values there (bicubic: Keys' with a = −½) over their "
    "sum; "
)


@rule(
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa",
    f"{_WIDE}axis by axis, the last first: a chain over the filter's width of value·weight",
)
def _wide(
    op: Operator,
    x: T,
    output_size: Sequence[int],
    align: bool,
    *scales: float | None,
) -> T:
    op.check(x)
    kind, factors = op.name.split("_")[2][:-2], [*scales, None, None][:2]
    for d in (1, 0):
        size, out = x.shape[2 + d], output_size[d]
        if size == out:
            continue
        (indices, weights), inside = _wide_axis(op, kind, size, out, align, factors[d], x.dtype)
        shape = [-1 if e == 2 + d else 1 for e in range(4)]
        terms = []
        for index, weight, there in zip(indices, weights, inside, strict=True):
            value = x.index_select(2 + d, index)
            value = torch.where(there.view(shape), value, torch.zeros((), dtype=x.dtype))
            terms.append(op.mul(value, weight.view(shape)))
        x = op.chain("add", torch.stack(terms))
    return x.clone()


@rule(
    "_upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward "
    "_upsample_lanczos2d_aa_backward",
    f"{_WIDE}weight·weight·gradient, added to the filter's places, outputs in row-major order",
)
def _wide_backward(
    op: Operator,
    gradient: T,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align: bool,
    *scales: float | None,
) -> T:
    op.check(gradient)
    kind, factors = op.name.split("_")[2][:-2], [*scales, None, None][:2]
    axes: list[Axis] = []
    for d in range(2):
        size, out = input_size[2 + d], output_size[d]
        if size == out:  # torch leaves such an axis as it is
            axes.append(([torch.arange(out)], [torch.ones(out, dtype=gradient.dtype)]))
        else:
            axis, _ = _wide_axis(op, kind, size, out, align, factors[d], gradient.dtype)
            axes.append(axis)
    return _spread(op, gradient, input_size, axes)
