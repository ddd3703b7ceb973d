"""`grid_sample` and `affine_grid`, and their gradients.

The formulas and their order are those of torch's CPU kernels (GridSampler.cpp,
GridSamplerKernel.cpp), in which products and sums are separate operations. Axes run from the
first spatial axis of the image to the last, the grid's components the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import prod

import torch

from morphbits.engines.native.kernels.sampling import Counts, Sampling
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import refused, rule
from morphbits.engines.native.rules.resampling import cubic_weights

T = torch.Tensor
aten = torch.ops.aten
_PADDINGS = ("zeros", "border", "reflection")
Gradients = tuple[T | None, T | None]  # of a flat image and of the grid


def _unnormalize(op: Operator, coordinate: T, n: int, align: bool, dims: int) -> tuple[T, T]:
    """A coordinate of the image from the grid's, and its derivative by it."""
    factor = (n - 1) / 2 if align else n / 2
    slope = torch.full((), factor, dtype=coordinate.dtype).expand(coordinate.shape)
    shifted = op.add(coordinate, 1)
    if dims == 2:
        x = op.mul(shifted, factor)
        return (x if align else op.sub(x, 0.5)), slope
    if align:
        return op.mul(op.div(shifted, 2), n - 1), slope
    return op.div(op.sub(op.mul(shifted, n), 1), 2), slope


def _reflect(op: Operator, x: T, n: int, align: bool) -> tuple[T, T]:
    """A coordinate reflected into the image, and the sign of its derivative."""
    twice_low, twice_high = (0, 2 * (n - 1)) if align else (-1, 2 * n - 1)
    if twice_low == twice_high:
        return torch.zeros_like(x), torch.zeros_like(x)
    low, span = twice_low / 2, (twice_high - twice_low) / 2
    moved = op.sub(x, low)
    sign = torch.where(moved < 0, -1.0, 1.0).to(x.dtype)
    moved = moved.abs()
    extra = torch.fmod(moved, span)  # exact
    odd = op.div(moved, span).floor() % 2 != 0
    result = op.add(torch.where(odd, op.sub(span, extra), extra), low)
    return result, torch.where(odd, -sign, sign)


def _padded(op: Operator, x: T, n: int, padding: str, align: bool) -> tuple[T, T]:
    """A coordinate brought into the image (where the padding does), and its derivative."""
    one = torch.ones_like(x)
    if padding == "zeros":
        return x, one
    if padding == "reflection":
        x, one = _reflect(op, x, n, align)
    inside = (x > 0) & (x < n - 1)
    x = torch.where(x.isnan(), torch.zeros((), dtype=x.dtype), x)
    return x.clamp(0, n - 1), torch.where(inside, one, torch.zeros_like(one))


def _flat(position: Sequence[T], size: Sequence[int]) -> tuple[T, T]:
    """The place of whole coordinates in the flat image, and whether it lies inside."""
    at = torch.zeros((), dtype=torch.long)
    inside = torch.ones((), dtype=torch.bool)
    for x, n in zip(position, size, strict=True):
        inside = inside & (x >= 0) & (x <= n - 1)
        at = at * n + x.clamp(0, n - 1).nan_to_num().long()
    return at, inside


def _only(inside: T, x: T) -> T:
    """`x`, and zero outside the image."""
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


# ---- linear


class _Corners:
    """Where the points of one image's grid lie: corners around each, and their weights.

    `slope` is the derivative of an image coordinate by the grid's.
    """

    def __init__(
        self, op: Operator, grid_NV: T, size: Sequence[int], padding: str, align: bool
    ) -> None:
        self.size, dims = list(size), len(size)
        self.position, self.slope, self.low = [], [], []
        for d, n in enumerate(size):
            x, slope = _unnormalize(op, grid_NV[:, dims - 1 - d], n, align, dims)
            x, factor = _padded(op, x, n, padding, align)
            self.position.append(x)
            self.slope.append(slope * factor)  # by 0, 1 or −1
            self.low.append(x.floor())
        # distance to the lower and to the upper corner: the weights of the other one
        if dims == 2:  # torch's vectorized kernel: x − ⌊x⌋, then 1 − that
            below = [op.sub(x, low) for x, low in zip(self.position, self.low, strict=True)]
            self.weights = [(op.sub(1, b), b) for b in below]
        else:
            self.weights = [
                (op.sub(low + 1, x), op.sub(x, low))
                for x, low in zip(self.position, self.low, strict=True)
            ]
        self.corners = list(product((0, 1), repeat=dims))
        # lower and upper corner of each axis: the place along it, and whether it lies inside
        self.sides = [
            [_flat([low + side], [n]) for side in (0, 1)]
            for low, n in zip(self.low, size, strict=True)
        ]

    def index(self, corner: Sequence[int]) -> tuple[T, T]:
        """The corner's place in the flat image, and whether it lies inside."""
        sides = [self.sides[d][side] for d, side in enumerate(corner)]
        at, inside = sides[0]
        for (more, also), n in zip(sides[1:], self.size[1:], strict=True):
            at, inside = at * n + more, inside & also
        return at, inside

    def weight(self, op: Operator, corner: Sequence[int]) -> T:
        """The product of the corner's weights, from the grid's first component (the last axis)."""
        parts = [self.weights[d][side] for d, side in enumerate(corner)]
        return reduce(op.mul, parts[::-1])


def _advance(op: Operator, counts: Counts) -> None:
    draws, operations = counts
    op.context.advance(draws, [(op.name, operations)])


def _linear(
    op: Operator, values_CN: T, grid_NV: T, size: Sequence[int], padding: str, align: bool
) -> T:
    sampling = Sampling(op.context.unkeyed, values_CN, grid_NV, size, padding, align)
    if sampling.has_kernel():
        out, counts = sampling.values(op.context.next_draw)
        _advance(op, counts)
        return out
    corners = _Corners(op, grid_NV, size, padding, align)
    terms = []
    for corner in corners.corners:
        index, inside = corners.index(corner)
        term = op.mul(_only(inside, values_CN[:, index]), corners.weight(op, corner))
        # torch's kernel of volumes leaves out what lies outside, also where a weight is infinite
        terms.append(term if len(size) == 2 else _only(inside, term))
    return op.chain("add", torch.stack(terms))


def _linear_backward(
    op: Operator,
    out_CN: T,
    values_CN: T,
    grid_NV: T,
    size: Sequence[int],
    padding: str,
    align: bool,
    mask: Sequence[bool],
) -> Gradients:
    sampling = Sampling(op.context.unkeyed, values_CN, grid_NV, size, padding, align)
    if sampling.has_kernel():
        to_image, to_grid, counts = sampling.gradients(op.context.next_draw, out_CN, mask)
        _advance(op, counts)
        return to_image, to_grid
    corners = _Corners(op, grid_NV, size, padding, align)
    places = [corners.index(corner) for corner in corners.corners]
    to_image = to_grid = None
    if mask[0]:
        shares = [
            _only(inside, op.mul(corners.weight(op, corner), out_CN))
            for corner, (_, inside) in zip(corners.corners, places, strict=True)
        ]
        to_image = _scattered(op, [at for at, _ in places], shares, values_CN)
    if mask[1]:
        to_grid = _linear_slopes(op, corners, places, values_CN, out_CN)
    return to_image, to_grid


def _scattered(op: Operator, places: Sequence[T], shares_CN: Sequence[T], image_CN: T) -> T:
    """The shares added to their places in a flat image of zeros, point by point."""
    index = torch.stack(list(places), 1).reshape(-1)
    source = torch.stack(list(shares_CN), 2).flatten(1)
    return op.scatter_add(torch.zeros_like(image_CN), index, source)


def _linear_slopes(
    op: Operator, corners: _Corners, places: list[tuple[T, T]], values_CN: T, out_CN: T
) -> T:
    """(points, dims): the gradient of the grid's components."""
    components, dims = [], len(corners.size)
    values = [_only(inside, values_CN[:, index]) for index, inside in places]
    for d in range(dims):
        terms = []
        for corner, term in zip(corners.corners, values, strict=True):
            for e in reversed(range(dims)):
                if e != d:
                    term = op.mul(term, corners.weights[e][corner[e]])
            term = op.mul(term, out_CN)
            terms.append(term if corner[d] else -term)
        chain = op.chain("add", torch.stack(terms, 1).flatten(0, 1))  # channels, corners
        components.append(op.mul(chain, corners.slope[d]))
    return torch.stack(components[::-1], 1)


# ---- nearest


def _nearest_places(
    op: Operator, grid_NV: T, size: Sequence[int], padding: str, align: bool
) -> tuple[T, T]:
    position, dims = [], len(size)
    for d, n in enumerate(size):
        x, _ = _unnormalize(op, grid_NV[:, dims - 1 - d], n, align, dims)
        position.append(_padded(op, x, n, padding, align)[0].round())
    return _flat(position, size)


def _nearest(
    op: Operator, values_CN: T, grid_NV: T, size: Sequence[int], padding: str, align: bool
) -> T:
    index, inside = _nearest_places(op, grid_NV, size, padding, align)
    return _only(inside, values_CN[:, index])


def _nearest_backward(
    op: Operator,
    out_CN: T,
    values_CN: T,
    grid_NV: T,
    size: Sequence[int],
    padding: str,
    align: bool,
    mask: Sequence[bool],
) -> Gradients:
    index, inside = _nearest_places(op, grid_NV, size, padding, align)
    to_image = _scattered(op, [index], [_only(inside, out_CN)], values_CN) if mask[0] else None
    return to_image, torch.zeros_like(grid_NV) if mask[1] else None


# ---- bicubic


class _CubicTaps:
    """The four rows and columns around each point of a grid, and their weights."""

    def __init__(
        self, op: Operator, grid_NV: T, size: Sequence[int], padding: str, align: bool
    ) -> None:
        self.size = list(size)
        self.slope, self.fraction, self.taps, self.weights = [], [], [], []
        for d, n in enumerate(size):
            x, slope = _unnormalize(op, grid_NV[:, 1 - d], n, align, 2)
            low = x.floor()
            fraction = op.sub(x, low)
            self.slope.append(slope)
            self.fraction.append(fraction)
            self.weights.append(cubic_weights(op, fraction))
            self.taps.append([_padded(op, low + i, n, padding, align)[0] for i in (-1, 0, 1, 2)])

    def value(self, values_CN: T, row: int, column: int) -> T:
        """The image there."""
        index, inside = _flat((self.taps[0][row], self.taps[1][column]), self.size)
        return _only(inside, values_CN[:, index])


def _cubic_slopes(op: Operator, t: T) -> list[T]:
    """The derivatives of minus Keys' four weights (GridSampler.op)."""
    a = -0.75

    def inner(x: T, sign: int) -> T:  # |x| ≤ 1
        return op.mul(op.sub(op.mul(sign * 3 * (a + 2), x), 2 * (a + 3)), x)

    def outer(x: T, sign: int) -> T:  # 1 < |x| < 2
        return op.add(op.mul(op.sub(op.mul(sign * 3 * a, x), 10 * a), x), sign * 8 * a)

    return [
        outer(op.sub(-1, t), -1),
        inner(-t, -1),
        inner(op.sub(1, t), 1),
        outer(op.sub(2, t), 1),
    ]


def _cubic(
    op: Operator, values_CN: T, grid_NV: T, size: Sequence[int], padding: str, align: bool
) -> T:
    points = _CubicTaps(op, grid_NV, size, padding, align)
    rows = []
    for i in range(4):
        terms = [op.mul(points.value(values_CN, i, j), points.weights[1][j]) for j in range(4)]
        rows.append(op.mul(op.chain("add", torch.stack(terms)), points.weights[0][i]))
    return op.chain("add", torch.stack(rows))


def _cubic_backward(
    op: Operator,
    out_CN: T,
    values_CN: T,
    grid_NV: T,
    size: Sequence[int],
    padding: str,
    align: bool,
    mask: Sequence[bool],
) -> Gradients:
    points = _CubicTaps(op, grid_NV, size, padding, align)
    order = [(i, j) for j in range(4) for i in range(4)]  # (row, column), columns outer
    (rows, columns), to_image, to_grid = points.weights, None, None
    if mask[0]:
        places, shares = [], []
        for i, j in order:
            index, inside = _flat((points.taps[0][i], points.taps[1][j]), size)
            places.append(index)
            shares.append(_only(inside, op.mul(op.mul(out_CN, columns[j]), rows[i])))
        to_image = _scattered(op, places, shares, values_CN)
    if mask[1]:
        slopes = [_cubic_slopes(op, t) for t in points.fraction]
        components = []
        for d in (1, 0):
            terms = []
            for i, j in order:
                along, across = (slopes[1][j], rows[i]) if d else (slopes[0][i], columns[j])
                term = op.mul(op.mul(points.value(values_CN, i, j), along), across)
                terms.append(-op.mul(term, out_CN))  # the sum subtracts the product
            chain = op.chain("add", torch.stack(terms, 1).flatten(0, 1))  # channels, places
            components.append(op.mul(chain, points.slope[d]))
        to_grid = torch.stack(components, 1)
    return to_image, to_grid


# ---- the rules

_FORWARD = (_linear, _nearest, _cubic)
_BACKWARD = (_linear_backward, _nearest_backward, _cubic_backward)


@rule(
    "grid_sampler_2d grid_sampler_3d",
    "position from the grid's coordinate; linear: weights as products of distances (last axis "
    "first), a chain over the corners of value·weight, corners outside the image add zero; "
    "nearest: the value there; bicubic: weights by Horner's rule, a chain over the columns, then "
    "over the rows",
)
def _grid_sampler(
    op: Operator,
    x: T,
    grid: T,
    interpolation: int,
    padding: int,
    align: bool,
) -> T:
    op.check(x, grid)
    dims = grid.shape[-1]
    if x.dim() != dims + 2 or (interpolation, dims) == (2, 3) or 0 in x.shape[1:]:
        refused(op.func, x, grid, interpolation, padding, align)
    if not len(x):
        return x.new_empty((0, x.shape[1], *grid.shape[1:-1]))
    images = []
    for image, points in zip(x, grid, strict=True):
        values, flat = image.reshape(image.shape[0], -1), points.reshape(-1, dims)
        sampled = _FORWARD[interpolation](
            op, values, flat, image.shape[1:], _PADDINGS[padding], align
        )
        images.append(sampled.view(-1, *points.shape[:-1]))
    return torch.stack(images)


@rule(
    "grid_sampler_2d_backward grid_sampler_3d_backward",
    "image: weight·gradient (bicubic: gradient·weight·weight) added to the places, points in "
    "row-major order; grid: a chain over channels (outer) and places of "
    "value·distances·gradient (bicubic: value·slope·weight·gradient, columns outer), times the "
    "slope of the coordinate; nearest: zero",
)
def _grid_sampler_backward(
    op: Operator,
    gradient: T,
    x: T,
    grid: T,
    interpolation: int,
    padding: int,
    align: bool,
    output_mask: Sequence[bool],
) -> Gradients:
    op.check(gradient, x, grid)
    dims = grid.shape[-1]
    if not len(x):
        return x.clone() if output_mask[0] else None, grid.clone() if output_mask[1] else None
    to_x, to_grid = [], []
    for image, points, out in zip(x, grid, gradient, strict=True):
        channels = image.shape[0]
        of_image, of_grid = _BACKWARD[interpolation](
            op,
            out.reshape(channels, -1),
            image.reshape(channels, -1),
            points.reshape(-1, dims),
            image.shape[1:],
            _PADDINGS[padding],
            align,
            output_mask,
        )
        if of_image is not None:
            to_x.append(of_image.view(image.shape))
        if of_grid is not None:
            to_grid.append(of_grid.view(points.shape))
    return (
        torch.stack(to_x) if output_mask[0] else None,
        torch.stack(to_grid) if output_mask[1] else None,
    )


@rule(
    "affine_grid_generator",
    "coordinates as `linspace`, times (n − 1) / n where corners are not aligned; their product "
    "with the matrix as `bmm`",
)
def _affine_grid(op: Operator, theta: T, size: Sequence[int], align: bool) -> T:
    op.check(theta)
    images, sizes = size[0], list(size[2:])
    axes = []
    for d, n in enumerate(sizes):
        if n > 1:
            x = op.redispatch(aten.linspace, -1, 1, n, dtype=theta.dtype)
            x = x if align else op.div(op.mul(x, n - 1), n)
        else:
            x = torch.zeros(n, dtype=theta.dtype)
        axes.append(x.view([-1 if e == d else 1 for e in range(len(sizes))]).expand(sizes))
    base = torch.stack([*axes[::-1], torch.ones(sizes, dtype=theta.dtype)], -1)
    flat = base.view(1, prod(sizes), -1).expand(images, -1, -1)
    points = op.redispatch(aten.bmm, flat, theta.transpose(1, 2))
    return points.view(images, *sizes, len(sizes))
