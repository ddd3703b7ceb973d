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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from morphbits.engines.native.kernels import sums
from morphbits.engines.native.kernels.library import Terms, convolution, convolution_size, rounded
from morphbits.engines.native.orders import probe
from morphbits.engines.native.orders.probe import widened
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import refused, rule
from morphbits.errors import UserError


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


def _inside(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Pairs of (output position, tap) along an axis that read a voxel of the image."""
    at = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    return int(((at >= 0) & (at < size)).sum())


def operations(
    shape_in: Sequence[int],
    shape_weight: Sequence[int],
    geometry: _Geometry,
    terms: Terms,
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


@dataclass(frozen=True)
class _Own:
    """The framework's kernel, whose order is to be measured.

    call: of image, weight and bias as the framework is given them; image, weight: what they are
    shaped and laid out like.
    """

    call: probe.Convolve
    image: torch.Tensor
    weight: torch.Tensor
    groups: int

    def __call__(
        self, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Of one group with three axes of space, which all groups are then alike."""
        whole = image.repeat(1, self.groups, 1, 1, 1), weight.repeat(self.groups, 1, 1, 1, 1)
        x, w = (
            torch.empty_like(like).copy_(values.reshape(like.shape))
            for like, values in zip((self.image, self.weight), whole, strict=True)
        )
        out = self.call(x, w, None if bias is None else bias.repeat(self.groups))
        return widened(out)[:, : out.shape[1] // self.groups]

    def order(
        self,
        op: Operator,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        steps: probe.Steps,
        convolve: probe.Convolve | None = None,
        part: str = "",
    ) -> Terms:
        """The order of a group's sums, entered into the statistics; ``convolve``: of the part of
        its outputs that is a convolution of these tensors."""
        dims = self.image.dim() - 2
        shapes = ("×".join(map(str, (*v.shape[:2], *v.shape[5 - dims :]))) for v in tensors[:2])
        among = f", in {self.groups} groups" if self.groups > 1 else ""
        layer = f"{op.name} {' by '.join(shapes)}{among}{part}"
        kernel = (layer, self.image.stride(), self.weight.stride(), self.image.shape)
        own_kernel = functools.partial(op.context.as_framework, convolve or self)
        found = probe.order(own_kernel, *tensors, steps, op.context.threads, kernel)
        op.context.probed(layer, found.words)
        return found.terms


def _forward(
    op: Operator,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: _Geometry,
    own: _Own | None,
) -> torch.Tensor:
    """The convolution of (B, C, X, Y, Z), added in the order of the framework's `own` kernel or
    else in that of the mode; each group is an operator of its own."""
    g = geometry
    if g.groups > 1:
        one = replace(g, groups=1)
        biases = [None] * g.groups if bias is None else bias.chunk(g.groups)
        parts = zip(x.chunk(g.groups, 1), weight.chunk(g.groups), biases, strict=True)
        return torch.cat([_forward(op, *part, one, own) for part in parts], 1)
    if own:
        steps = probe.Steps(g.stride, g.padding, g.dilation)
        terms = own.order(op, (x, weight, bias), steps)
    else:
        terms = op.context.order(op.name, prod(weight.shape[2:]), weight.shape[1])
    count = operations(x.shape, weight.shape, g, terms, bias is not None)
    rounding = op.context.next_rounding(op.name, count, accumulates=True)
    if bias is not None:
        bias = rounded(bias, op.context.precision.stored)
    sides = op.context.factor(x), op.context.factor(weight)
    out = convolution(rounding, *sides, bias, g.stride, g.padding, g.dilation, terms)
    return op.context.store(op.name, out)


def _input_gradient(
    op: Operator,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    size: Sequence[int],
    geometry: _Geometry,
    own: _Own | None,
) -> torch.Tensor:
    """The gradient of a convolution's input of spatial `size`, from (B, O, X', Y', Z'); or the
    transposed convolution, with its bias.

    For each remainder of the padded position by the stride: a convolution with the taps that
    reach it, reversed, over output channels. Each of them, and each group, is an operator of its
    own, added in the order of the framework's `own` kernel or else in that of the mode.
    """
    g = geometry
    if g.groups > 1:
        one = replace(g, groups=1)
        biases = [None] * g.groups if bias is None else bias.chunk(g.groups)
        parts = zip(gradient.chunk(g.groups, 1), weight.chunk(g.groups), biases, strict=True)
        return torch.cat([_input_gradient(op, *part, size, one, own) for part in parts], 1)
    shape = (gradient.shape[0], weight.shape[1], *size)
    out: torch.Tensor | None = None
    if bias is not None:
        bias = rounded(bias, op.context.precision.stored)
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
            kernel = kernel.index_select(2 + d, torch.tensor(axis.taps))
            products *= axis.products
        counts = tuple(axis.count for axis in found)
        steps = probe.Steps(
            (1, 1, 1), tuple(a.padding for a in found), tuple(a.spread for a in found), counts
        )
        starts = zip(found, g.stride, strict=True)
        place: tuple[Any, ...] = (..., *(slice(axis.first, None, step) for axis, step in starts))
        if own:
            convolve = functools.partial(_placed, own, gradient.shape, weight.shape, found, place)
            at = f", remainder {remainder[3 - own.image.dim() + 2 :]}" if max(g.stride) > 1 else ""
            terms = own.order(op, (part, kernel, bias), steps, convolve, at)
        else:
            terms = op.context.order(op.name, prod(kernel.shape[2:]), kernel.shape[1])
        count = prod(counts) * shape[0] * shape[1]
        additions = len(terms.segment_end) - 1 + (bias is not None and not terms.bias_starts)
        rounding = op.context.next_rounding(
            op.name, products + additions * count, accumulates=True
        )
        sides = op.context.factor(probe.lengthened(part, kernel, steps)), op.context.factor(kernel)
        result = convolution(rounding, *sides, bias, *steps.widened(), terms)
        x, y, z = map(slice, counts)
        result = op.context.store(op.name, result)
        if result.shape == shape:  # of the only remainder
            return result
        if out is None:
            out = _reached_by_no_tap(shape, gradient.dtype, bias)
        out[place] = result[..., x, y, z]
    return _reached_by_no_tap(shape, gradient.dtype, bias) if out is None else out


def _reached_by_no_tap(
    shape: Sequence[int], dtype: torch.dtype, bias: torch.Tensor | None
) -> torch.Tensor:
    """What a transposed convolution gives where no tap reaches."""
    out = torch.zeros(shape, dtype=dtype)
    return out if bias is None else out.add_(bias.view(-1, 1, 1, 1))


def _placed(
    own: _Own,
    image_shape: Sequence[int],
    weight_shape: Sequence[int],
    axes: Sequence[_Axis],
    place: tuple[Any, ...],
    part: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """What the framework's kernel gives at the outputs of one remainder, from their part of the
    image and of the weight; what they do not read is 0."""
    image, weight = part.new_zeros(image_shape), kernel.new_zeros(weight_shape)
    x, y, z = (slice(axis.skip, None) for axis in axes)
    image[..., x, y, z] = part
    i, j, k = map(torch.from_numpy, np.ix_(*(axis.taps for axis in axes)))
    weight[..., i, j, k] = kernel.transpose(0, 1)
    return own(image, weight, bias)[place]


@dataclass(frozen=True)
class _Axis:
    """One axis of the gradient at the positions of one remainder.

    first, count: its positions, every stride-th; taps: the kernel's, from last to first; the
    gradient of the output is cut by `skip` voxels at its start or padded by `padding`.
    """

    first: int
    count: int
    taps: list[int]
    spread: int
    skip: int
    padding: int
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
        at = np.arange(count)[:, None] + np.arange(len(taps)) * spread - low + skip
        products = int(((at >= 0) & (at < out)).sum())
        return _Axis(first, count, taps, spread, skip, low, products)


def _weight_gradient(
    op: Operator,
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
    op.context.not_probed(op.name, "a chain for each row of the output")
    return sums.contract(
        op.rounding(count),
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
    op: Operator,
    arguments: tuple[Any, ...],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: _Geometry,
    transposed: bool,
) -> None:
    """The kernels are handed addresses: refuse what torch refuses, in its words."""
    tensors = [x, weight, *([] if bias is None else [bias])]
    op.check(*tensors)
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
        refused(op.func, *arguments)
    if not transposed:
        size = convolution_size(
            widened(x).shape[2:], widened(weight).shape[2:], g.stride, g.padding, g.dilation
        )
        if min(size) <= 0:
            refused(op.func, *arguments)


@rule(
    "convolution",
    "`accumulation`: sequential, direct, blocked:K, bias last (direct: first), or probe: torch's "
    "own, measured; transposed: as the gradient of the input",
)
def _convolution(
    op: Operator,
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
    _check(op, given, x, weight, bias, g, transposed)
    x3, w3 = widened(x), widened(weight)
    whole = None
    if op.context.probes(x) and x.numel():
        call = own or (lambda *tensors: op.func(*tensors, *given[3:]))
        whole = _Own(call, x, weight, groups)
    if not transposed:
        out = _forward(op, x3, w3, bias, g, whole)
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
            refused(op.func, *given)
        out = _input_gradient(op, x3, w3, bias, size, g, whole)
    return out.reshape(*out.shape[:2], *out.shape[5 - dims :])


@rule("mkldnn_convolution", "as convolution")
def _mkldnn_convolution(
    op: Operator,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    plain = Operator(op.context, torch.ops.aten.convolution.default)
    given = (stride, padding, dilation, False, (0,), groups)
    own = functools.partial(_call_mkldnn, op.func, padding, stride, dilation, groups)
    return _convolution(plain, x, weight, bias, *given, own)


def _call_mkldnn(func: Any, *given: Any) -> torch.Tensor:
    settings, tensors = given[:4], given[4:]
    return func(*tensors, *settings)


@rule(
    "convolution_backward",
    "input: convolutions with the reversed kernel, in the order of `accumulation`; weight: a "
    "chain for each row of the output, added in order; bias: as sum",
)
def _convolution_backward(
    op: Operator,
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
    _check(op, given, x, weight, None, g, transposed)
    op.check(gradient)
    expected = torch.ops.aten.convolution.default(
        *(v.to("meta") for v in (x, weight)), None, *settings[:-1]
    )
    if gradient.shape != expected.shape or gradient.dtype != x.dtype:
        refused(op.func, *given)
    g3, x3, w3 = widened(gradient), widened(x), widened(weight)
    to_x: torch.Tensor | None = None
    to_weight: torch.Tensor | None = None
    to_bias: torch.Tensor | None = None
    if output_mask[0]:
        own, part = None, op.named("convolution_backward (input)")
        if op.context.probes(x) and gradient.numel():

            def only_input(
                gradient: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
            ) -> torch.Tensor:
                return op.func(gradient, x, weight, None, *settings[:-1], (True, False, False))[0]

            own = _Own(only_input, gradient, weight, groups)
        if transposed:
            to_x = _forward(part, g3, w3, None, g, own)
            to_x = to_x[..., : x3.shape[2], : x3.shape[3], : x3.shape[4]]
        else:
            to_x = _input_gradient(part, g3, w3, None, x3.shape[2:], g, own)
        to_x = to_x.reshape(x.shape)
    if output_mask[1]:
        part = op.named("convolution_backward (weight)")
        image, out = (g3, x3) if transposed else (x3, g3)
        to_weight = _weight_gradient(part, out, image, w3.shape[2:], g)
        to_weight = to_weight.reshape(weight.shape)
    if output_mask[2]:
        part, axes = op.named("convolution_backward (bias)"), [0, *range(2, gradient.dim())]
        if len(gradient) == 1:  # whole rows, in the same order
            to_bias = part.sum(gradient[0].flatten(1), [1])
        else:
            to_bias = part.sum(gradient, axes)
    return to_x, to_weight, to_bias
