"""Distances of all pairs of rows: `cdist`, `pdist` and their gradients (DistanceOpsKernel.cpp).

Rows of one or two matrices are paired; (B, P, R, M) stands for batch, rows of the first, rows of
the second, features.
"""

from __future__ import annotations

from math import inf

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import rule

T = torch.Tensor
_ORDER = "a − b; a chain over the features of its square, magnitude or power; the root"
_BACK = (
    "each pair's share from a − b, the distance and its gradient; a chain over the other's rows"
)


def _distance(op: Operator, difference: T, p: float) -> T:
    """The norm over the last axis: one chain, from left to right."""
    size = difference.abs().movedim(-1, 0)
    if p == 0:
        return size.ceil().clamp(max=1).sum(0)  # counts, and keeps NaN
    if p == inf:
        return size.amax(0) if len(size) else size.sum(0)
    if p == 1:
        return op.chain("add", size)
    if p == 2:
        return op.sqrt(op.chain("add", op.mul(size, size)))
    return op.function("pow", op.chain("add", op.function("pow", size, p)), 1 / p)


def _share(op: Operator, difference: T, gradient: T, p: float, distance: T) -> T:
    """The gradient of the differences; `gradient` and `distance` without the last axis."""
    g, far = gradient[..., None], distance[..., None]
    zero = torch.zeros((), dtype=difference.dtype)
    if p == 0:
        return torch.zeros_like(difference)
    sign = torch.where(difference.isnan(), difference, difference.sign())
    if p == 1:
        return g * sign
    if p == inf:
        size = difference.abs()
        greatest = (size == size.amax(-1, keepdim=True)).to(size.dtype)
        return g * sign * torch.where(size.isinf() | far.isnan(), torch.nan, greatest)
    if p == 2:
        return torch.where(far == 0, zero, op.div(op.mul(g, difference), far))
    if p < 2:
        power = op.function("pow", difference.abs(), p - 1)
        top = op.mul(difference.sign() * power, g)
        none = (far == 0) | ((difference == 0) & (p < 1))
    else:
        power = op.function("pow", difference.abs(), p - 2)
        top = op.mul(op.mul(difference, power), g)
        none = far == 0
    return torch.where(none, zero, op.div(top, op.function("pow", far, p - 1)))


def _differences(op: Operator, a_BPM: T, b_BRM: T) -> T:
    return op.sub(a_BPM[..., :, None, :], b_BRM[..., None, :, :])


@rule("_cdist_forward", _ORDER)
def _cdist(op: Operator, a: T, b: T, p: float, compute_mode: int | None = None) -> T:
    op.check(a, b)
    big = a.shape[-2] > 25 or b.shape[-2] > 25
    if p == 2 and (compute_mode == 1 or (not compute_mode and big)):
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (x.expand(*batch, *x.shape[-2:]) for x in (a, b))
        return op.redispatch(torch.ops.aten._euclidean_dist, a, b)
    return _distance(op, _differences(op, a, b), p)


@rule("_cdist_backward", _BACK)
def _cdist_backward(op: Operator, gradient: T, a: T, b: T, p: float, distance: T) -> T:
    op.check(gradient, a, b)
    share = _share(op, _differences(op, a, b), gradient, p, distance)
    batch = share.shape[:-3]
    if share.numel() == 0:
        return torch.zeros(*batch, *a.shape[-2:], dtype=a.dtype)
    return op.chain("add", share.movedim(-2, 0))


@rule("_pdist_forward", _ORDER)
def _pdist(op: Operator, a: T, p: float = 2) -> T:
    op.check(a)
    first, second = torch.triu_indices(len(a), len(a), 1)
    return _distance(op, op.sub(a[first], a[second]), p)


@rule(
    "_pdist_backward", "each pair's share as `_cdist_backward`; one addition to each of its rows"
)
def _pdist_backward(op: Operator, gradient: T, a: T, p: float, distance: T) -> T:
    op.check(gradient, a)
    first, second = torch.triu_indices(len(a), len(a), 1)
    if not len(first):
        return torch.zeros_like(a)
    share = _share(op, op.sub(a[first], a[second]), gradient, p, distance)
    rows = torch.stack([first, second], 1).reshape(-1)  # pair by pair
    signed = torch.stack([share, -share], 1).reshape(len(rows), -1)
    zeros = torch.zeros(a.shape, dtype=a.dtype)
    return op.scatter_add(zeros.t(), rows, signed.t(), in_place=True).t()
