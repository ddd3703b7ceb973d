"""Normalizations and their gradients.

The formulas and their order are those of torch's CPU kernels (layer_norm_kernel.cpp,
group_norm_kernel.cpp, Normalization.cpp) but for the variance of layer and group norm: torch takes
it in one pass by Welford's recurrence, here it is the mean of the squared distances from the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from morphbits.engines.native.kernels.program import computed
from morphbits.engines.native.rules.arithmetic import SIDE_BY_SIDE, Operator
from morphbits.engines.native.rules.registry import rule

T = torch.Tensor


def _rstd(op: Operator, variance: T, eps: float) -> T:
    """1 / √(variance + eps)."""
    return op.div(1, op.sqrt(op.add(variance, eps)))


def _moments(op: Operator, x_RN: T, eps: float) -> tuple[T, T]:
    """Mean and 1 / √(variance + eps) of each row, (R, 1)."""
    mean = op.mean(x_RN, [1], keepdim=True)
    distance = op.sub(x_RN, mean)
    variance = op.mean(op.mul(distance, distance), [1], keepdim=True)
    return mean, _rstd(op, variance, eps)


@rule(
    "native_layer_norm",
    "mean, then the mean of squared distances (torch: Welford's recurrence); (x − mean)·rstd·γ, "
    "+ β",
)
def _layer_norm(
    op: Operator,
    x: T,
    shape: Sequence[int],
    weight: T | None,
    bias: T | None,
    eps: float,
) -> tuple[T, T, T]:
    op.check(x)
    rows = x.reshape(-1, prod(shape))
    factors = [None if v is None else v.reshape(-1) for v in (weight, bias)]
    out, mean, rstd = op.formula(_normalized, rows, *factors, eps)
    kept = [*x.shape[: x.dim() - len(shape)], *(1,) * len(shape)]
    return out.view(x.shape), mean.view(kept), rstd.view(kept)


def _normalized(
    op: Operator, x_RN: T, weight: T | None, bias: T | None, eps: float
) -> tuple[T, T, T]:
    mean, rstd = _moments(op, x_RN, eps)
    out = op.mul(op.sub(x_RN, mean), rstd)
    if weight is not None:
        out = op.mul(out, weight)
    return out if bias is None else op.add(out, bias), mean, rstd


@rule(
    "native_layer_norm_backward",
    "x: rstd·γ·gradient + b·x + c with the sums of torch's kernel; γ and β: sums over rows",
)
def _layer_norm_backward(
    op: Operator,
    g: T,
    x: T,
    shape: Sequence[int],
    mean: T,
    rstd: T,
    weight: T | None,
    bias: T | None,
    mask: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    op.check(g, x)
    n = prod(shape)
    rows, out = x.reshape(-1, n), g.reshape(-1, n)
    mean, rstd = mean.reshape(-1, 1), rstd.reshape(-1, 1)
    to_x = to_weight = to_bias = None
    if mask[0]:
        scaled = out if weight is None else op.mul(out, weight.reshape(-1))
        ds = op.sum(op.mul(scaled, rows), [1], keepdim=True)
        db = op.sum(scaled, [1], keepdim=True)
        to_x = _input_gradient(op, scaled, rows, mean, rstd, ds, db, n).view(x.shape)
    if mask[1]:
        normalized = op.mul(op.sub(rows, mean), rstd)
        to_weight = op.sum(op.mul(out, normalized), [0]).view(list(shape))
    if mask[2]:
        to_bias = op.sum(out, [0]).view(list(shape))
    return to_x, to_weight, to_bias


def _input_gradient(op: Operator, scaled: T, x: T, mean: T, rstd: T, ds: T, db: T, n: int) -> T:
    """rstd·scaled + b·x + c, with b = (db·mean − ds)·rstd³ / n and c = −b·mean − db·rstd / n,
    factors from left to right."""
    share = torch.full((), 1 / n, dtype=x.dtype)
    b = op.sub(op.mul(db, mean), ds)
    for factor in (rstd, rstd, rstd, share):
        b = op.mul(b, factor)
    c = op.sub(op.mul(-b, mean), op.mul(op.mul(db, rstd), share))
    return op.add(op.add(op.mul(rstd, scaled), op.mul(b, x)), c)


@rule(
    "native_group_norm",
    "mean, then the mean of squared distances (torch: Welford's recurrence); x·(rstd·γ) + "
    "(β − mean·rstd·γ)",
)
def _group_norm(
    op: Operator,
    x: T,
    weight: T | None,
    bias: T | None,
    n: int,
    channels: int,
    voxels: int,
    groups: int,
    eps: float,
) -> tuple[T, T, T]:
    op.check(x)
    mean, rstd = _moments(op, x.reshape(n * groups, channels // groups * voxels), eps)
    per_channel = (n, groups, channels // groups)
    scale = rstd.view(n, groups, 1).expand(per_channel)
    center = mean.view(n, groups, 1).expand(per_channel)
    if weight is not None:
        scale = op.mul(scale, weight.view(groups, -1))
    shift = op.mul(-scale, center)
    if bias is not None:
        shift = op.add(shift, bias.view(groups, -1))
    planes = x.reshape(n * channels, voxels)
    out = op.add(op.mul(planes, scale.reshape(-1, 1)), shift.reshape(-1, 1))
    return out.view(x.shape), mean.view(n, groups), rstd.view(n, groups)


@rule("native_group_norm_backward", "as native_layer_norm_backward, sums by channel and group")
def _group_norm_backward(
    op: Operator,
    g: T,
    x: T,
    mean: T,
    rstd: T,
    weight: T | None,
    n: int,
    channels: int,
    voxels: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    op.check(g, x)
    width = channels // groups
    planes, out = (v.reshape(n, groups, width, voxels) for v in (x, g))
    ds, db = op.sum(op.mul(out, planes), [3]), op.sum(out, [3])
    center, scale = mean.view(n, groups, 1), rstd.view(n, groups, 1)
    to_x = to_weight = to_bias = None
    if mask[0]:
        factor = None if weight is None else weight.view(groups, width)
        ds_group = op.sum(ds if factor is None else op.mul(ds, factor), [2], keepdim=True)
        db_group = op.sum(db if factor is None else op.mul(db, factor), [2], keepdim=True)
        scaled = out if factor is None else op.mul(out, factor[..., None])
        center4, scale4, ds4, db4 = (v[..., None] for v in (center, scale, ds_group, db_group))
        to_x = _input_gradient(op, scaled, planes, center4, scale4, ds4, db4, width * voxels)
        to_x = to_x.view(x.shape)
    if mask[1]:
        each = op.mul(op.sub(ds, op.mul(db, center)), scale)
        to_weight = op.sum(each, [0]).view(channels)
    if mask[2]:
        to_bias = op.sum(db, [0]).view(channels)
    return to_x, to_weight, to_bias


def _planes(x: T) -> T:
    """(N, C, voxels), or (C, voxels) of one image: what has one element a channel is (C, 1)."""
    images, channels = x.shape[:2]
    planes = x.reshape(images, channels, prod(x.shape[2:]))
    return planes[0] if images == 1 else planes


def _column(v: T | None) -> T | None:
    return None if v is None else v.unsqueeze(1)


def _channel_sums(op: Operator, x: T) -> T:
    """The sum of each channel in float64, as torch takes it."""
    if x.dim() == 2:
        return op.sum(op.double(x), [1], keepdim=True)
    channels = computed(x).transpose(0, 1)
    if len(channels) < SIDE_BY_SIDE:
        return _channel_sums(op, channels.flatten(1))
    return op.sum(op.double(channels), [1, 2]).unsqueeze(1)


def _squared_distance(op: Operator, x: T, mean: T) -> T:
    distance = op.sub(x, mean)
    return op.mul(distance, distance)


def _batch_norm(
    op: Operator,
    given: T,
    weight: T | None,
    bias: T | None,
    running_mean: T | None,
    running_var: T | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[T, T, T]:
    x, n = _planes(given), given.numel() // given.shape[1]
    weight, bias, running_mean, running_var = map(
        _column, (weight, bias, running_mean, running_var)
    )
    if training:
        mean = op.to(op.div(_channel_sums(op, x), n), x.dtype)
        squares = _channel_sums(op, _squared_distance(op, x, mean))
        rstd = op.to(_rstd(op, op.div(squares, n), eps), x.dtype)
        for running, now in (
            (running_mean, mean.double()),
            (running_var, op.div(squares, max(n - 1, 1)) if running_var is not None else None),
        ):
            if running is not None and now is not None:
                kept = op.mul(running.double(), 1 - momentum)
                running.copy_(op.to(op.add(op.mul(now, momentum), kept), running.dtype))
    else:
        assert running_mean is not None and running_var is not None
        mean = running_mean
        rstd = _rstd(op, running_var, eps)
    alpha = rstd if weight is None else op.mul(rstd, weight)
    beta = op.mul(mean, alpha)
    beta = -beta if bias is None else op.sub(bias, beta)  # 0 − beta in torch: exact
    out = op.add(op.mul(x, alpha), beta)
    del alpha, beta  # what has no name any more is not stored
    if training:
        out = computed(out).view(given.shape)
        return out, computed(mean).squeeze(1), computed(rstd).squeeze(1)
    del rstd
    out = computed(out).view(given.shape)
    return out, torch.empty(0, dtype=x.dtype), torch.empty(0, dtype=x.dtype)


_BATCH = "mean and variance by sums in float64, as torch; x·(rstd·γ) + (β − mean·rstd·γ)"


@rule("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training", _BATCH)
def _any_batch_norm(op: Operator, x: T, *rest: Any) -> tuple[T, T, T]:
    op.check(x)
    if op.func._overloadname == "no_stats":
        rest = (*rest[:2], None, None, *rest[2:])
    elif op.name.endswith("_no_training"):
        rest = (*rest[:4], False, *rest[4:])
    return _batch_norm(op, x, *rest)


@rule(
    "native_batch_norm_backward",
    "the sums in float64, as torch; (gradient − mean(gradient) − (x − mean)·k)·rstd·γ",
)
def _batch_norm_backward(
    op: Operator,
    g: T,
    x: T,
    weight: T | None,
    running_mean: T | None,
    running_var: T | None,
    save_mean: T | None,
    save_rstd: T | None,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    op.check(g, x)
    shape, n = x.shape, x.numel() // x.shape[1]
    g, x = _planes(g), _planes(x)
    weight, running_mean, running_var, save_mean, save_rstd = map(
        _column, (weight, running_mean, running_var, save_mean, save_rstd)
    )
    if training:
        assert save_mean is not None and save_rstd is not None
        mean, rstd = save_mean, save_rstd
    else:
        assert running_mean is not None and running_var is not None
        mean, rstd = running_mean, _rstd(op, running_var, eps)
    distance = op.sub(x, mean)
    total = _channel_sums(op, g)
    dot = _channel_sums(op, op.mul(distance, g))
    to_x = to_weight = to_bias = None
    if mask[0]:
        factor = rstd if weight is None else op.mul(rstd, weight)
        if training:
            wide = rstd.double()
            k = op.to(op.div(op.mul(op.mul(dot, wide), wide), n), x.dtype)
            center = op.to(op.div(total, n), x.dtype)
            to_x = op.mul(op.sub(op.sub(g, center), op.mul(distance, k)), factor)
        else:
            to_x = op.mul(g, factor)
    del distance  # what has no name any more is not stored
    if mask[1]:
        to_weight = op.to(op.mul(dot, rstd.double()), x.dtype)
    if mask[2]:
        to_bias = op.to(total, x.dtype)
    return (
        None if to_x is None else computed(to_x).view(shape),
        None if to_weight is None else computed(to_weight).squeeze(1),
        None if to_bias is None else computed(to_bias).squeeze(1),
    )


@rule("_fused_rms_norm", "mean of squares, 1 / √(· + eps); x·rstd·γ")
def _rms_norm(
    op: Operator, x: T, shape: Sequence[int], weight: T | None, eps: float | None
) -> tuple[T, T]:
    op.check(x)
    rows = x.reshape(-1, prod(shape))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = _rstd(op, op.mean(op.mul(rows, rows), [1], keepdim=True), eps)
    out = op.mul(rows, rstd)
    if weight is not None:
        out = op.mul(out, weight.reshape(-1))
    kept = [*x.shape[: x.dim() - len(shape)], *(1,) * len(shape)]
    return out.view(x.shape), rstd.view(kept)


@rule(
    "_weight_norm_interface_backward",
    "g: sum(gradient·v) / norm; v: (g / norm)·(gradient − v·(sum / (norm·norm)))",
)
def _weight_norm_backward(op: Operator, g_w: T, v: T, g: T, norms: T, dim: int) -> tuple[T, T]:
    op.check(g_w, v, g)
    axes = [d for d in range(v.dim()) if d != dim % v.dim()]
    total = op.sum(op.mul(g_w, v), axes, keepdim=True)
    to_g = op.div(total, norms)
    share = op.mul(v, op.div(total, op.mul(norms, norms)))
    return op.mul(op.div(g, norms), op.sub(g_w, share)), to_g
