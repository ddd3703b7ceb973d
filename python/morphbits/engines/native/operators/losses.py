"""Losses that torch computes in one operator (Loss.cpp, LossNLL.cpp, PointwiseOpsKernel.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from morphbits.engines.native.arithmetic import Hand
from morphbits.engines.native.rules import check, rule

T = torch.Tensor
_NONE, _MEAN, _SUM = 0, 1, 2


def _reduced(h: Hand, loss: T, reduction: int) -> T:
    return loss if reduction == _NONE else h.mean(loss) if reduction == _MEAN else h.sum(loss)


def _spread(h: Hand, g: T, x: T, reduction: int) -> T:
    """The gradient of each element's loss."""
    return h.div(g, x.numel()) if reduction == _MEAN else g


@rule("mse_loss", "(a − b) squared, then sum or mean")
def _mse(mode: Any, func: Any, x: T, y: T, reduction: int = _MEAN) -> T:
    check(func, x, y)
    h = Hand(mode, "mse_loss")
    d = h.sub(x, y)
    return _reduced(h, h.mul(d, d), reduction)


@rule("mse_loss_backward", "(2 / n)·(a − b)·gradient")
def _mse_backward(mode: Any, func: Any, g: T, x: T, y: T, reduction: int) -> T:
    check(func, g, x, y)
    h = Hand(mode, "mse_loss_backward")
    return h.mul(h.mul(2 / x.numel() if reduction == _MEAN else 2.0, h.sub(x, y)), g)


@rule("smooth_l1_loss", "½·z·z / beta where |z| < beta, else |z| − ½·beta; then sum or mean")
def _smooth_l1(mode: Any, func: Any, x: T, y: T, reduction: int = _MEAN, beta: float = 1.0) -> T:
    check(func, x, y)
    h = Hand(mode, "smooth_l1_loss")
    z = h.sub(x, y).abs()
    if beta == 0:
        return _reduced(h, z, reduction)
    near = h.div(h.mul(h.mul(0.5, z), z), beta)
    return _reduced(h, torch.where(z < beta, near, h.sub(z, 0.5 * beta)), reduction)


@rule(
    "smooth_l1_loss_backward", "(1 / n)·(a − b)·gradient / beta where near, else ±(1 / n)·gradient"
)
def _smooth_l1_backward(mode: Any, func: Any, g: T, x: T, y: T, reduction: int, beta: float) -> T:
    check(func, g, x, y)
    h = Hand(mode, "smooth_l1_loss_backward")
    norm = 1 / x.numel() if reduction == _MEAN else 1.0
    z = h.sub(x, y)
    far = h.mul(torch.full((), norm, dtype=x.dtype), g)
    if beta == 0:
        return torch.where(z > 0, far, torch.where(z < 0, -far, torch.zeros_like(far)))
    near = h.div(h.mul(h.mul(norm, z), g), beta)
    return torch.where(z <= -beta, -far, torch.where(z >= beta, far, near))


@rule("huber_loss", "½·z·z where |z| ≤ delta, else delta·(|z| − ½·delta); then sum or mean")
def _huber(mode: Any, func: Any, x: T, y: T, reduction: int = _MEAN, delta: float = 1.0) -> T:
    check(func, x, y)
    h = Hand(mode, "huber_loss")
    z = h.sub(x, y).abs()
    near = h.mul(h.mul(0.5, z), z)
    return _reduced(
        h, torch.where(z <= delta, near, h.mul(delta, h.sub(z, 0.5 * delta))), reduction
    )


@rule("huber_loss_backward", "(1 / n)·(a − b)·gradient where near, else ±(1 / n)·gradient·delta")
def _huber_backward(mode: Any, func: Any, g: T, x: T, y: T, reduction: int, delta: float) -> T:
    check(func, g, x, y)
    h = Hand(mode, "huber_loss_backward")
    norm = 1 / x.numel() if reduction == _MEAN else 1.0
    z = h.sub(x, y)
    far = h.mul(h.mul(torch.full((), norm, dtype=x.dtype), g), delta)
    near = h.mul(h.mul(norm, z), g)
    return torch.where(z <= -delta, -far, torch.where(z >= delta, far, near))


@rule(
    "binary_cross_entropy",
    "(y − 1)·max(log1p(−x), −100) − y·max(log(x), −100), times the weight; then sum or mean",
)
def _bce(mode: Any, func: Any, x: T, y: T, weight: T | None = None, reduction: int = _MEAN) -> T:
    check(func, x, y)
    h = Hand(mode, "binary_cross_entropy")
    right = h.mul(y, h.function("log", x).clamp(min=-100))
    left = h.mul(h.sub(y, 1), h.function("log1p", -x).clamp(min=-100))
    loss = h.sub(left, right)
    return _reduced(h, loss if weight is None else h.mul(loss, weight), reduction)


@rule("binary_cross_entropy_backward", "gradient·(x − y) / max((1 − x)·x, 10⁻¹²), weight, 1 / n")
def _bce_backward(
    mode: Any, func: Any, g: T, x: T, y: T, weight: T | None = None, reduction: int = _MEAN
) -> T:
    check(func, g, x, y)
    h = Hand(mode, "binary_cross_entropy_backward")
    out = h.div(h.mul(g, h.sub(x, y)), h.mul(h.sub(1, x), x).clamp(min=1e-12))
    out = out if weight is None else h.mul(out, weight)
    return _spread(h, out, x, reduction)


def _classes(x: T, target: T, ignore: int) -> tuple[T, T, T]:
    """(N…, C) scores, flat targets with ignored ones at 0, and which are kept."""
    scores = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() > 1 else x[None]
    flat = target.reshape(-1)
    kept = flat != ignore
    flat = torch.where(kept, flat, torch.zeros((), dtype=flat.dtype))
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= scores.shape[1]):
        raise IndexError("a target of nll_loss is out of range")
    return scores, flat, kept


@rule("nll_loss_forward nll_loss2d_forward", "weight·(−score); the sums as `sum`, one division")
def _nll(
    mode: Any, func: Any, x: T, target: T, weight: T | None, reduction: int, ignore: int
) -> tuple[T, T]:
    check(func, x)
    h = Hand(mode, func.overloadpacket.__name__)
    scores, flat, kept = _classes(x, target, ignore)
    zero = torch.zeros((), dtype=x.dtype)
    each = -scores.gather(1, flat[:, None])[:, 0]
    if weight is None:
        weights = torch.where(kept, torch.ones((), dtype=x.dtype), zero)
        total = weights.sum()  # counts
    else:
        weights = torch.where(kept, weight[flat], zero)
        each = h.mul(weights, each)
        total = h.sum(weights)
    each = torch.where(kept, each, zero)
    if reduction == _NONE:
        return each.view(target.shape), zero.clone()
    out = h.sum(each)
    return (h.div(out, total) if reduction == _MEAN else out), total


@rule("nll_loss_backward nll_loss2d_backward", "−weight·gradient, divided by the total weight")
def _nll_backward(
    mode: Any,
    func: Any,
    g: T,
    x: T,
    target: T,
    weight: T | None,
    reduction: int,
    ignore: int,
    total: T,
) -> T:
    check(func, g, x)
    h = Hand(mode, func.overloadpacket.__name__)
    scores, flat, kept = _classes(x, target, ignore)
    share = h.div(-g, total) if reduction == _MEAN else -g
    share = share.expand(flat.shape) if share.dim() == 0 else share.reshape(-1)
    if weight is not None:
        share = h.mul(weight[flat], share)
    share = torch.where(kept, share, torch.zeros((), dtype=x.dtype))
    out = torch.zeros_like(scores).scatter(1, flat[:, None], share[:, None])
    if x.dim() == 1:
        return out[0]
    return out.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1).contiguous()
