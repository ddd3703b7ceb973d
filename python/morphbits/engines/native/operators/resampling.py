"""Linear interpolation: `interpolate` and `grid_sample`, and their gradients.

The formulas and their order are those of torch's CPU kernels (UpSampleKernel.cpp, GridSampler.cpp,
GridSamplerKernel.cpp), in which products and sums are separate operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from morphbits.engines.native.arithmetic import Hand
from morphbits.engines.native.rules import check, rule
from morphbits.errors import UserError

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding

# ---- interpolate(mode="linear" | "bilinear" | "trilinear")


def _linear_axis(
    hand: Hand, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Lower and upper index of each output position, and their weights."""
    if out == size:  # torch leaves such an axis as it is
        at = torch.arange(out)
        return (at, at), (torch.ones(out, dtype=dtype), torch.zeros(out, dtype=dtype))
    position = torch.arange(out, dtype=dtype)
    if align:
        real = hand.mul(hand.div(torch.tensor(size - 1, dtype=dtype), max(out - 1, 1)), position)
    else:
        if scale is not None and scale > 0:
            step = torch.tensor(1 / scale, dtype=dtype)
        else:
            step = hand.div(torch.tensor(size, dtype=dtype), out)
        real = hand.sub(hand.mul(step, hand.add(position, 0.5)), 0.5).clamp_(min=0)
    lower = real.long().clamp_(max=size - 1)
    upper = (lower + 1).clamp_(max=size - 1)
    above = hand.sub(real, lower.to(dtype)).clamp_(0, 1)
    return (lower, upper), (hand.sub(1, above), above)


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
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    output_size: Sequence[int] | None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    check(func, x)
    hand, dims = Hand(mode, name), x.dim() - 2
    if func._overloadname == "vec":  # sizes or factors of a list
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
            hand, x.shape[axis], int(output_size[d]), align, scales[d], x.dtype
        )
        if x.shape[axis] == output_size[d]:
            continue
        shape = [-1 if e == axis else 1 for e in range(x.dim())]
        below, above = (
            hand.mul(out.index_select(axis, index), weight.view(shape))
            for index, weight in zip((lower, upper), weights, strict=True)
        )
        out = hand.add(below, above)
    return out.clone() if out is x else out


@rule(
    "upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward",
    "weights multiplied from the first axis on, then the gradient; added to the corners, outputs "
    "in row-major order",
)
def _linear_backward(
    mode: RandomRounding,
    func: Any,
    gradient: torch.Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    check(func, gradient)
    hand, dims = Hand(mode, name), gradient.dim() - 2
    align, scales = _settings(dims, args, kwargs)
    axes = [
        _linear_axis(
            hand, input_size[2 + d], gradient.shape[2 + d], align, scales[d], gradient.dtype
        )
        for d in range(dims)
    ]
    planes = gradient.reshape(-1, prod(gradient.shape[2:]))
    index, source = [], []
    for corner in product((0, 1), repeat=dims):
        at = torch.zeros((), dtype=torch.long)
        weight = torch.ones((), dtype=gradient.dtype)
        for d, side in enumerate(corner):
            indices, weights = axes[d]
            at = at[..., None] * input_size[2 + d] + indices[side]
            one = weights[side]
            weight = one if d == 0 else hand.mul(weight[..., None], one)
        index.append(at.reshape(-1))
        source.append(hand.mul(weight.reshape(-1), planes))
    zeros = torch.zeros(planes.shape[0], prod(input_size[2:]), dtype=gradient.dtype)
    order = torch.stack(index, 1).reshape(-1)  # voxel by voxel, its corners in order
    sources = torch.stack(source, 2).reshape(planes.shape[0], -1)
    return hand.scatter_add(zeros, order, sources).view(list(input_size))


# ---- grid_sample

T = torch.Tensor
_PADDINGS = ("zeros", "border", "reflection")


class _Corners:
    """Where the points of one image's grid lie: corners around each, and their weights.

    Axes run from the first spatial axis of the image to the last (the grid's components the other
    way round). `slope` is the derivative of an image coordinate by the grid's.
    """

    def __init__(
        self, hand: Hand, grid_NV: torch.Tensor, size: Sequence[int], padding: str, align: bool
    ) -> None:
        self.size, dims = list(size), len(size)
        self.position, self.slope, self.low = [], [], []
        for d, n in enumerate(size):
            coordinate = grid_NV[:, dims - 1 - d]
            x, slope = self._unnormalize(hand, coordinate, n, align, dims)
            if padding == "border":
                inside = (x > 0) & (x < n - 1)
                x = x.clamp(0, n - 1)
                slope = torch.where(inside, slope, torch.zeros_like(slope))
            elif padding == "reflection":
                x, sign = self._reflect(hand, x, n, align)
                inside = (x > 0) & (x < n - 1)
                x = x.clamp(0, n - 1)
                slope = torch.where(inside, slope * sign, torch.zeros_like(slope))
            self.position.append(x)
            self.slope.append(slope)
            self.low.append(x.floor())
        # distance to the lower and to the upper corner: the weights of the other one
        if dims == 2:  # torch's vectorized kernel: x − ⌊x⌋, then 1 − that
            below = [hand.sub(x, low) for x, low in zip(self.position, self.low, strict=True)]
            self.weights = [(hand.sub(1, b), b) for b in below]
        else:
            self.weights = [
                (hand.sub(low + 1, x), hand.sub(x, low))
                for x, low in zip(self.position, self.low, strict=True)
            ]
        self.corners = list(product((0, 1), repeat=dims))

    @staticmethod
    def _unnormalize(
        hand: Hand, coordinate: torch.Tensor, n: int, align: bool, dims: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        factor = (n - 1) / 2 if align else n / 2
        slope = torch.full((), factor, dtype=coordinate.dtype).expand(coordinate.shape)
        shifted = hand.add(coordinate, 1)
        if dims == 2:
            x = hand.mul(shifted, factor)
            return (x if align else hand.sub(x, 0.5)), slope
        if align:
            return hand.mul(hand.div(shifted, 2), n - 1), slope
        return hand.div(hand.sub(hand.mul(shifted, n), 1), 2), slope

    @staticmethod
    def _reflect(
        hand: Hand, x: torch.Tensor, n: int, align: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        twice_low, twice_high = (0, 2 * (n - 1)) if align else (-1, 2 * n - 1)
        if twice_low == twice_high:
            return torch.zeros_like(x), torch.zeros_like(x)
        low, span = twice_low / 2, (twice_high - twice_low) / 2
        moved = hand.sub(x, low)
        sign = torch.where(moved < 0, -1.0, 1.0).to(x.dtype)
        moved = moved.abs()
        extra = torch.fmod(moved, span)  # exact
        odd = hand.div(moved, span).floor() % 2 != 0
        result = hand.add(torch.where(odd, hand.sub(span, extra), extra), low)
        return result, torch.where(odd, -sign, sign)

    def index(self, corner: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The corner's place in the flat image, and whether it lies inside."""
        at = torch.zeros((), dtype=torch.long)
        inside = torch.ones((), dtype=torch.bool)
        for low, side, n in zip(self.low, corner, self.size, strict=True):
            position = low + side
            inside = inside & (position >= 0) & (position <= n - 1)
            at = at * n + position.clamp(0, n - 1).nan_to_num().long()
        return at, inside

    def weight(self, hand: Hand, corner: Sequence[int]) -> torch.Tensor:
        """The product of the corner's weights, from the grid's first component (the last axis)."""
        parts = [self.weights[d][side] for d, side in enumerate(corner)]
        return reduce(hand.mul, parts[::-1])


def _only_linear(func: Any, interpolation: int) -> None:
    if interpolation != 0:
        raise UserError(
            f"the native engine has no rule for {func} with nearest or bicubic interpolation; use "
            "bilinear"
        )


_GRID = (
    "position from the grid's coordinate, weights as products of distances (last axis first), a "
    "chain over the corners of value·weight; corners outside the image add zero"
)


@rule("grid_sampler_2d grid_sampler_3d", _GRID)
def _grid_sampler(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    grid: torch.Tensor,
    interpolation: int,
    padding: int,
    align: bool,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    check(func, x, grid)
    _only_linear(func, interpolation)
    hand = Hand(mode, name)
    images = []
    for image, points in zip(x, grid, strict=True):
        corners = _Corners(
            hand, points.reshape(-1, points.shape[-1]), image.shape[1:], _PADDINGS[padding], align
        )
        values = image.reshape(image.shape[0], -1)
        terms = []
        for corner in corners.corners:
            index, inside = corners.index(corner)
            value = torch.where(inside, values[:, index], torch.zeros((), dtype=x.dtype))
            terms.append(hand.mul(value, corners.weight(hand, corner)))
        images.append(hand.chain("add", torch.stack(terms)).view(-1, *points.shape[:-1]))
    return torch.stack(images)


@rule(
    "grid_sampler_2d_backward grid_sampler_3d_backward",
    "image: weight·gradient added to the corners, points in row-major order; grid: a chain over "
    "channels (outer) and corners of value·distances·gradient, times the slope of the coordinate",
)
def _grid_sampler_backward(
    mode: RandomRounding,
    func: Any,
    gradient: torch.Tensor,
    x: torch.Tensor,
    grid: torch.Tensor,
    interpolation: int,
    padding: int,
    align: bool,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    name = func.overloadpacket.__name__
    check(func, gradient, x, grid)
    _only_linear(func, interpolation)
    hand, dims = Hand(mode, name), grid.shape[-1]
    to_x, to_grid = [], []
    for image, points, out in zip(x, grid, gradient, strict=True):
        corners = _Corners(
            hand, points.reshape(-1, dims), image.shape[1:], _PADDINGS[padding], align
        )
        channels = image.shape[0]
        values, out = image.reshape(channels, -1), out.reshape(channels, -1)
        places = [corners.index(corner) for corner in corners.corners]
        if output_mask[0]:
            shares = []
            for corner, (_, inside) in zip(corners.corners, places, strict=True):
                share = hand.mul(corners.weight(hand, corner), out)
                shares.append(torch.where(inside, share, torch.zeros((), dtype=x.dtype)))
            index = torch.stack([at for at, _ in places], 1).reshape(-1)
            source = torch.stack(shares, 2).reshape(channels, -1)
            added = hand.scatter_add(torch.zeros_like(values), index, source)
            to_x.append(added.view(image.shape))
        if output_mask[1]:
            to_grid.append(
                _grid_gradient(hand, corners, places, values, out, dims).view(points.shape)
            )
    return (
        torch.stack(to_x) if output_mask[0] else None,
        torch.stack(to_grid) if output_mask[1] else None,
    )


def _grid_gradient(
    hand: Hand,
    corners: _Corners,
    places: list[tuple[torch.Tensor, torch.Tensor]],
    values_CN: torch.Tensor,
    gradient_CN: torch.Tensor,
    dims: int,
) -> torch.Tensor:
    """(points, dims): the gradient of the grid's components."""
    components = []
    for d in range(dims):
        terms = []
        for corner, (index, inside) in zip(corners.corners, places, strict=True):
            term = torch.where(inside, values_CN[:, index], torch.zeros((), dtype=values_CN.dtype))
            for e in reversed(range(dims)):
                if e != d:
                    term = hand.mul(term, corners.weights[e][corner[e]])
            term = hand.mul(term, gradient_CN)
            terms.append(term if corner[d] else -term)
        chain = hand.chain("add", torch.stack(terms, 1).flatten(0, 1))  # channels, corners
        components.append(hand.mul(chain, corners.slope[d]))
    return torch.stack(components[::-1], 1)


# ---- interpolate(mode="bicubic"), the gradient


def _cubic_weights(h: Hand, t: T) -> list[T]:
    """Keys' four weights with a = −¾, by Horner's rule (UpSample.h)."""
    a = -0.75

    def inner(x: T) -> T:  # |x| ≤ 1
        return h.add(h.mul(h.mul(h.sub(h.mul(a + 2, x), a + 3), x), x), 1)

    def outer(x: T) -> T:  # 1 < |x| < 2
        first = h.sub(h.mul(a, x), 5 * a)
        return h.sub(h.mul(h.add(h.mul(first, x), 8 * a), x), 4 * a)

    rest = h.sub(1, t)
    return [outer(h.add(t, 1)), inner(t), inner(rest), outer(h.add(rest, 1))]


def _cubic_axis(
    h: Hand, size: int, out: int, align: bool, scale: float | None, dtype: torch.dtype
) -> tuple[list[T], list[T]]:
    """Four indices and four weights of each output position."""
    position = torch.arange(out, dtype=dtype)
    if align:
        real = h.mul(h.div(torch.tensor(size - 1, dtype=dtype), max(out - 1, 1)), position)
    else:
        if scale is not None and scale > 0:
            step = torch.tensor(1 / scale, dtype=dtype)
        else:
            step = h.div(torch.tensor(size, dtype=dtype), out)
        real = h.sub(h.mul(step, h.add(position, 0.5)), 0.5)
    low = real.floor()
    weights = _cubic_weights(h, h.sub(real, low))
    return [(low.long() + i).clamp(0, size - 1) for i in (-1, 0, 1, 2)], weights


@rule(
    "upsample_bicubic2d_backward",
    "gradient·(weight_y·weight_x), added to sixteen places, outputs in row-major order",
)
def _bicubic_backward(
    mode: RandomRounding,
    func: Any,
    gradient: torch.Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align: bool,
    *scales: float | None,
) -> torch.Tensor:
    check(func, gradient)
    h = Hand(mode, "upsample_bicubic2d_backward")
    factors = [*scales, None, None][:2]
    axes = [
        _cubic_axis(h, input_size[2 + d], output_size[d], align, factors[d], gradient.dtype)
        for d in range(2)
    ]
    planes = gradient.reshape(-1, prod(output_size))
    index, source = [], []
    for i, j in product(range(4), repeat=2):
        (rows, row_weights), (columns, column_weights) = axes
        at = rows[i][:, None] * input_size[3] + columns[j]
        weight = h.mul(row_weights[i][:, None], column_weights[j])
        index.append(at.reshape(-1))
        source.append(h.mul(planes, weight.reshape(-1)))
    zeros = torch.zeros(planes.shape[0], prod(input_size[2:]), dtype=gradient.dtype)
    order = torch.stack(index, 1).reshape(-1)
    sources = torch.stack(source, 2).reshape(planes.shape[0], -1)
    return h.scatter_add(zeros, order, sources).view(list(input_size))
