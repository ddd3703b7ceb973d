"""Convolutions of one to three dimensions and their gradients.

One and two dimensions are three with leading sizes of one. Everything is built from two kernels:
a convolution, which also gives the gradient of the input (and the transposed convolution) as
convolutions with the reversed kernel, one for each remainder of the position by the stride; and a
product of matrices, which gives the gradient of the weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from morphbits.engines.native import accumulation as orders
from morphbits.engines.native import probe, sums
from morphbits.engines.native.arithmetic import Hand
from morphbits.engines.native.library import convolution, convolution_size, rounded
from morphbits.engines.native.rules import check, refused, rule
from morphbits.errors import UserError

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding


@dataclass(frozen=True)
class _Geometry:
    """Three dimensions of a convolution; `groups` divides the channels."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def _three(
    dims: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> _Geometry:
    """The settings of `dims` dimensions for three; a single value stands for all."""

    def fill(values: Sequence[int], default: int) -> tuple[int, ...]:
        return (default,) * (3 - dims) + tuple(values) * (dims if len(values) == 1 else 1)

    return _Geometry(fill(stride, 1), fill(padding, 0), fill(dilation, 1), groups)


def _widen(x: torch.Tensor) -> torch.Tensor:
    """(B, C, …) with three spatial axes."""
    return x.reshape(*x.shape[:2], *(1,) * (5 - x.dim()), *x.shape[2:])


def _inside(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Pairs of (output position, tap) along an axis that read a voxel of the image."""
    at = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    return int(((at >= 0) & (at < size)).sum())


def operations(
    shape_in: Sequence[int],
    shape_weight: Sequence[int],
    geometry: _Geometry,
    terms: orders.Terms,
    bias: bool,
) -> int:
    """Elementary operations of a convolution without groups: a fused multiply-add for each product
    inside the image, an addition for each chain after the first, and one for the bias."""
    g = geometry
    size = convolution_size(shape_in[2:], shape_weight[2:], g.stride, g.padding, g.dilation)
    products = shape_in[0] * shape_weight[0] * shape_weight[1]
    for d in range(3):
        axis = (shape_in[2 + d], size[d], shape_weight[2 + d])
        products *= _inside(*axis, g.stride[d], g.padding[d], g.dilation[d])
    additions = len(terms.segment_end) - 1 + (bias and not terms.bias_starts)
    return products + additions * shape_in[0] * shape_weight[0] * prod(size)


def _forward(
    mode: RandomRounding,
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: _Geometry,
    terms: orders.Terms | None = None,
) -> torch.Tensor:
    """The convolution of (B, C, X, Y, Z), added in the order `terms` or else in that of the mode;
    each group is an operator of its own."""
    g = geometry
    if g.groups > 1:
        one = replace(g, groups=1)
        biases = [None] * g.groups if bias is None else bias.chunk(g.groups)
        parts = zip(x.chunk(g.groups, 1), weight.chunk(g.groups), biases, strict=True)
        return torch.cat([_forward(mode, name, *part, one) for part in parts], 1)
    terms = terms or mode.order(name, prod(weight.shape[2:]), weight.shape[1])
    count = operations(x.shape, weight.shape, g, terms, bias is not None)
    rounding = mode.next_rounding(name, count, accumulates=True)
    if bias is not None:
        bias = rounded(bias, mode.precision.stored)
    sides = mode.factor(x), mode.factor(weight)
    out = convolution(rounding, *sides, bias, g.stride, g.padding, g.dilation, terms)
    return mode.store(name, out)


def _input_gradient(
    mode: RandomRounding,
    name: str,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    size: Sequence[int],
    geometry: _Geometry,
    order: orders.Terms | None = None,
) -> torch.Tensor:
    """The gradient of a convolution's input of spatial `size`, from (B, O, X', Y', Z').

    For each remainder of the padded position by the stride: a convolution with the taps that
    reach it, reversed, over output channels. Each of them, and each group, is an operator of its
    own; its additions are in `order`, which only a stride of one can have, or else in that of the
    mode.
    """
    g = geometry
    if g.groups > 1:
        one = replace(g, groups=1)
        parts = zip(gradient.chunk(g.groups, 1), weight.chunk(g.groups), strict=True)
        return torch.cat([_input_gradient(mode, name, *p, size, one) for p in parts], 1)
    out = torch.zeros((gradient.shape[0], weight.shape[1], *size), dtype=gradient.dtype)
    swapped = weight.transpose(0, 1)
    for remainder in product(*(range(s) for s in g.stride)):
        axes = [
            _Axis.of(size[d], gradient.shape[2 + d], weight.shape[2 + d], remainder[d], g, d)
            for d in range(3)
        ]
        if any(axis is None for axis in axes):
            continue
        found = [axis for axis in axes if axis is not None]
        part, kernel, products = gradient, swapped, gradient.shape[0] * weight.shape[:2].numel()
        for d, axis in enumerate(found):
            part = part.narrow(2 + d, axis.skip, part.shape[2 + d] - axis.skip)
            part = F.pad(part, (0, 0) * (2 - d) + (0, axis.extra))
            kernel = kernel.index_select(2 + d, torch.tensor(axis.taps))
            products *= axis.products
        terms = order or mode.order(name, prod(kernel.shape[2:]), kernel.shape[1])
        count = prod(axis.count for axis in found) * out.shape[0] * out.shape[1]
        additions = (len(terms.segment_end) - 1) * count
        rounding = mode.next_rounding(name, products + additions, accumulates=True)
        steps, pads, spreads = (1, 1, 1), [a.padding for a in found], [a.spread for a in found]
        sides = mode.factor(part), mode.factor(kernel)
        result = convolution(rounding, *sides, None, steps, pads, spreads, terms)
        result = mode.store(name, result)
        i, j, k = (slice(a.first, None, s) for a, s in zip(found, g.stride, strict=True))
        x, y, z = (slice(a.count) for a in found)
        out[..., i, j, k] = result[..., x, y, z]
    return out


@dataclass(frozen=True)
class _Axis:
    """One axis of the gradient at the positions of one remainder.

    first, count: its positions, every stride-th; taps: the kernel's, from last to first; the
    gradient of the output is cut by `skip` voxels at its start or padded by `padding`, and
    lengthened by `extra` zeros.
    """

    first: int
    count: int
    taps: list[int]
    spread: int
    skip: int
    padding: int
    extra: int
    products: int

    @staticmethod
    def of(
        size: int, out: int, kernel: int, remainder: int, geometry: _Geometry, d: int
    ) -> _Axis | None:
        stride, padding, dilation = (
            v[d] for v in (geometry.stride, geometry.padding, geometry.dilation)
        )
        taps = [t for t in range(kernel) if (remainder - t * dilation) % stride == 0][::-1]
        start = -(-(padding - remainder) // stride)  # first multiple of the stride in the image
        first = start * stride + remainder - padding
        count = max(0, -(-(size - first) // stride))
        if not taps or not count:
            return None
        spread = dilation // gcd(stride, dilation) if len(taps) > 1 else 1
        low = -(start + (remainder - taps[0] * dilation) // stride)
        skip, low = max(0, -low), max(0, low)
        if skip >= out:
            return None
        extra = max(0, count + spread * (len(taps) - 1) - (out - skip) - 2 * low)
        at = np.arange(count)[:, None] + np.arange(len(taps)) * spread - low + skip
        products = int(((at >= 0) & (at < out)).sum())
        return _Axis(first, count, taps, spread, skip, low, extra, products)


def _weight_gradient(
    mode: RandomRounding,
    name: str,
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    geometry: _Geometry,
) -> torch.Tensor:
    """The gradient of a convolution's weight, (O, C / groups, *kernel).

    Order: one chain of fused multiply-adds for each row (last axis) of the output, images outer,
    rows in row-major order; the chains' sums are added in this order.
    """
    g = geometry
    batch, out_channels, *out = gradient.shape
    channels = x.shape[1] // g.groups
    reach = [
        max(0, (out[d] - 1) * g.stride[d] + (kernel[d] - 1) * g.dilation[d] + 1 - x.shape[2 + d])
        for d in range(3)
    ]
    pads = [(g.padding[d], max(0, reach[d] - g.padding[d])) for d in (2, 1, 0)]
    padded = F.pad(x, [n for pair in pads for n in pair]).contiguous()
    step = np.array(padded.stride())

    def offsets(counts: Sequence[int], steps: Sequence[int]) -> np.ndarray:
        total = np.zeros(1, dtype=np.int64)
        for n, s in zip(counts, steps, strict=True):
            total = (total[:, None] + np.arange(n) * s).reshape(-1)
        return total

    taps = offsets((channels, *kernel), (step[1], *(step[2:] * g.dilation)))
    voxels = offsets((batch, *out), (step[0], *(step[2:] * g.stride)))
    columns = out_channels // g.groups
    products = batch * channels * out_channels
    for d in range(3):
        axis = (x.shape[2 + d], out[d], kernel[d])
        products *= _inside(*axis, g.stride[d], g.padding[d], g.dilation[d])
    ends = sums.segments(len(voxels), out[2])
    count = products + (len(ends) - 1) * columns * g.groups * channels * prod(kernel)
    right = gradient.movedim(1, -1).reshape(-1, g.groups, columns).transpose(0, 1)
    mode.not_probed(name, "a chain for each row of the output")
    return sums.contract(
        mode.next_rounding(name, count),
        padded,
        right,
        shape=(g.groups, len(taps), columns),
        out_shape=(out_channels, channels, *kernel),
        row_offset=taps,
        depth_offset=voxels,
        segment_end=ends,
        steps=(1, len(taps)),
        left_batch_step=int(step[1]) * channels,
    )


def _check(
    func: Any,
    arguments: tuple[Any, ...],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: _Geometry,
    transposed: bool,
) -> None:
    """The kernels are handed addresses: refuse what torch refuses, in its words."""
    tensors = [x, weight, *([] if bias is None else [bias])]
    check(func, *tensors)
    if weight.dim() > 5:
        raise UserError("the native engine has no rule for 4-D convolutions")
    g = geometry
    inputs, outputs = (0, 1) if transposed else (1, 0)
    groups_in = 1 if transposed else g.groups
    expected = weight.shape[outputs] * (g.groups if transposed else 1)
    if not (
        len({v.dtype for v in tensors}) == 1
        and x.dim() == weight.dim() >= 3
        and g.groups > 0
        and x.shape[1] == weight.shape[inputs] * groups_in > 0
        and weight.shape[0] % g.groups == 0
        and (bias is None or bias.shape == (expected,))
        and min(*g.stride, *g.dilation, *weight.shape[2:]) > 0
        and min(g.padding) >= 0
    ):
        refused(func, *arguments)
    if not transposed:
        size = convolution_size(
            _widen(x).shape[2:], _widen(weight).shape[2:], g.stride, g.padding, g.dilation
        )
        if min(size) <= 0:
            refused(func, *arguments)


@rule(
    "convolution",
    "`accumulation`: sequential, direct, blocked:K, bias last (direct: first), or probe: torch's "
    "own, read off it; transposed: as the gradient of the input",
)
def _convolution(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    own: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """`own`: the framework's kernel, a function of image, weight and bias, if it is not `func`'s
    with these settings."""
    dims = weight.dim() - 2
    g = _three(dims, stride, padding, dilation, groups)
    given = (x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    _check(func, given, x, weight, bias, g, transposed)
    name = func.overloadpacket.__name__
    x3, w3 = _widen(x), _widen(weight)
    if not transposed:
        terms = None
        if mode.probes(x) and groups == 1:
            kernel = own or (lambda *tensors: func(*tensors, *given[3:]))
            steps = probe.Steps(*(v[3 - dims :] for v in (g.stride, g.padding, g.dilation)))
            terms = _probed(mode, name, kernel, x, weight, bias, steps)
        out = _forward(mode, name, x3, w3, bias, g, terms)
    else:
        more = _three(dims, stride, output_padding, dilation, 1).padding
        size = [
            (x3.shape[2 + d] - 1) * g.stride[d]
            - 2 * g.padding[d]
            + g.dilation[d] * (w3.shape[2 + d] - 1)
            + more[d]
            + 1
            for d in range(3)
        ]
        if min(size) <= 0 or any(m >= max(s, d) for m, s, d in zip(more, g.stride, g.dilation)):  # noqa: B905
            refused(func, *given)
        out = _input_gradient(mode, name, x3, w3, size, g)
        if bias is not None:
            out = Hand(mode, name).add(out, bias.view(-1, 1, 1, 1))
    return out.reshape(*out.shape[:2], *out.shape[5 - dims :])


def _probed(
    mode: RandomRounding,
    name: str,
    kernel: probe.Convolve,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    steps: probe.Steps,
) -> orders.Terms:
    """The order read off the framework's kernel, entered into the statistics."""
    outside = functools.partial(mode.outside, kernel)
    found = probe.order(outside, x, weight, bias, steps, mode.threads)
    mode.statistics.orders[f"{name} {found.layer}"] = found.words
    return found.terms


def _probed_gradient(
    mode: RandomRounding,
    name: str,
    func: Any,
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    geometry: _Geometry,
    settings: tuple[Any, ...],
) -> orders.Terms | None:
    """The order of the framework's gradient of the input: as a convolution of the gradient with
    the reversed kernel, which it is where the stride is one; None elsewhere."""
    g, axes = geometry, tuple(range(2, weight.dim()))
    stride, padding, dilation = (v[5 - weight.dim() :] for v in (g.stride, g.padding, g.dilation))
    reach = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    pads = tuple(r - p for r, p in zip(reach, padding, strict=True))
    if g.groups > 1 or max(stride) > 1 or min(pads) < 0:
        return None

    def reverse(w: torch.Tensor) -> torch.Tensor:
        return w.flip(axes).transpose(0, 1)

    def kernel(g: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        only_input = (*settings[:-1], (True, False, False))
        return func(g, x, reverse(w).contiguous(), None, *only_input)[0]

    steps = probe.Steps(stride, pads, dilation)
    return _probed(mode, name, kernel, gradient, reverse(weight), None, steps)


@rule("to_mkldnn", "stays as it is: what follows has a rule for the plain layout")
def _to_mkldnn(mode: RandomRounding, func: Any, x: torch.Tensor, dtype: Any = None) -> Any:
    return x.clone()


@rule("mkldnn_convolution", "as convolution")
def _mkldnn_convolution(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    plain = torch.ops.aten.convolution.default
    given = (stride, padding, dilation, False, (0,), groups)
    own = functools.partial(_call_mkldnn, func, padding, stride, dilation, groups)
    return _convolution(mode, plain, x, weight, bias, *given, own)


def _call_mkldnn(func: Any, *given: Any) -> torch.Tensor:
    settings, tensors = given[:4], given[4:]
    return func(*tensors, *settings)


@rule(
    "convolution_backward",
    "input: convolutions with the reversed kernel, in the order of `accumulation`; weight: a "
    "chain for each row of the output, added in order; bias: as sum",
)
def _convolution_backward(
    mode: RandomRounding,
    func: Any,
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    dims = weight.dim() - 2
    g = _three(dims, stride, padding, dilation, groups)
    settings = (stride, padding, dilation, transposed, output_padding, groups, output_mask)
    given = (gradient, x, weight, bias_sizes, *settings)
    _check(func, given, x, weight, None, g, transposed)
    check(func, gradient)
    expected = torch.ops.aten.convolution.default(
        *(v.to("meta") for v in (x, weight)), None, *settings[:-1]
    )
    if gradient.shape != expected.shape or gradient.dtype != x.dtype:
        refused(func, *given)
    g3, x3, w3 = _widen(gradient), _widen(x), _widen(weight)
    to_x: torch.Tensor | None = None
    to_weight: torch.Tensor | None = None
    to_bias: torch.Tensor | None = None
    if output_mask[0]:
        name = "convolution_backward (input)"
        if transposed:
            to_x = _forward(mode, name, g3, w3, None, g)
            to_x = to_x[..., : x3.shape[2], : x3.shape[3], : x3.shape[4]]
        else:
            order = None
            if mode.probes(x):
                order = _probed_gradient(mode, name, func, gradient, x, weight, g, settings)
            to_x = _input_gradient(mode, name, g3, w3, x3.shape[2:], g, order)
        to_x = to_x.reshape(x.shape)
    if output_mask[1]:
        name = "convolution_backward (weight)"
        image, out = (g3, x3) if transposed else (x3, g3)
        to_weight = _weight_gradient(mode, name, out, image, w3.shape[2:], g)
        to_weight = to_weight.reshape(weight.shape)
    if output_mask[2]:
        axes = [0, *range(2, gradient.dim())]
        to_bias = Hand(mode, "convolution_backward (bias)").sum(gradient, axes)
    return to_x, to_weight, to_bias
