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

from morphbits.engines.native.rules.arithmetic import Hand
from morphbits.engines.native.rules.registry import check, rule

T = torch.Tensor


def _rstd(h: Hand, variance: T, eps: float) -> T:
    """1 / √(variance + eps)."""
    return h.div(1, h.sqrt(h.add(variance, eps)))


def _moments(h: Hand, x_RN: T, eps: float) -> tuple[T, T]:
    """Mean and 1 / √(variance + eps) of each row, (R, 1)."""
    mean = h.mean(x_RN, [1], keepdim=True)
    distance = h.sub(x_RN, mean)
    variance = h.mean(h.mul(distance, distance), [1], keepdim=True)
    return mean, _rstd(h, variance, eps)


@rule(
    "native_layer_norm",
    "mean, then the mean of squared distances (torch: Welford's recurrence); (x − mean)·rstd·γ, "
    "+ β",
)
def _layer_norm(
    mode: Any, func: Any, x: T, shape: Sequence[int], weight: T | None, bias: T | None, eps: float
) -> tuple[T, T, T]:
    check(func, x)
    h = Hand(mode, "native_layer_norm")
    rows = x.reshape(-1, prod(shape))
    mean, rstd = _moments(h, rows, eps)
    out = h.mul(h.sub(rows, mean), rstd)
    if weight is not None:
        out = h.mul(out, weight.reshape(-1))
    if bias is not None:
        out = h.add(out, bias.reshape(-1))
    kept = [*x.shape[: x.dim() - len(shape)], *(1,) * len(shape)]
    return out.view(x.shape), mean.view(kept), rstd.view(kept)


@rule(
    "native_layer_norm_backward",
    "x: rstd·γ·gradient + b·x + c with the sums of torch's kernel; γ and β: sums over rows",
)
def _layer_norm_backward(
    mode: Any,
    func: Any,
    g: T,
    x: T,
    shape: Sequence[int],
    mean: T,
    rstd: T,
    weight: T | None,
    bias: T | None,
    mask: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    check(func, g, x)
    h = Hand(mode, "native_layer_norm_backward")
    n = prod(shape)
    rows, out = x.reshape(-1, n), g.reshape(-1, n)
    mean, rstd = mean.reshape(-1, 1), rstd.reshape(-1, 1)
    to_x = to_weight = to_bias = None
    if mask[0]:
        scaled = out if weight is None else h.mul(out, weight.reshape(-1))
        ds = h.sum(h.mul(scaled, rows), [1], keepdim=True)
        db = h.sum(scaled, [1], keepdim=True)
        to_x = _input_gradient(h, scaled, rows, mean, rstd, ds, db, n).view(x.shape)
    if mask[1]:
        normalized = h.mul(h.sub(rows, mean), rstd)
        to_weight = h.sum(h.mul(out, normalized), [0]).view(list(shape))
    if mask[2]:
        to_bias = h.sum(out, [0]).view(list(shape))
    return to_x, to_weight, to_bias


def _input_gradient(h: Hand, scaled: T, x: T, mean: T, rstd: T, ds: T, db: T, n: int) -> T:
    """rstd·scaled + b·x + c, with b = (db·mean − ds)·rstd³ / n and c = −b·mean − db·rstd / n,
    factors from left to right."""
    share = torch.full((), 1 / n, dtype=x.dtype)
    b = h.sub(h.mul(db, mean), ds)
    for factor in (rstd, rstd, rstd, share):
        b = h.mul(b, factor)
    c = h.sub(h.mul(-b, mean), h.mul(h.mul(db, rstd), share))
    return h.add(h.add(h.mul(rstd, scaled), h.mul(b, x)), c)


@rule(
    "native_group_norm",
    "mean, then the mean of squared distances (torch: Welford's recurrence); x·(rstd·γ) + "
    "(β − mean·rstd·γ)",
)
def _group_norm(
    mode: Any,
    func: Any,
    x: T,
    weight: T | None,
    bias: T | None,
    n: int,
    channels: int,
    voxels: int,
    groups: int,
    eps: float,
) -> tuple[T, T, T]:
    check(func, x)
    h = Hand(mode, "native_group_norm")
    mean, rstd = _moments(h, x.reshape(n * groups, channels // groups * voxels), eps)
    per_channel = (n, groups, channels // groups)
    scale = rstd.view(n, groups, 1).expand(per_channel)
    center = mean.view(n, groups, 1).expand(per_channel)
    if weight is not None:
        scale = h.mul(scale, weight.view(groups, -1))
    shift = h.mul(-scale, center)
    if bias is not None:
        shift = h.add(shift, bias.view(groups, -1))
    planes = x.reshape(n * channels, voxels)
    out = h.add(h.mul(planes, scale.reshape(-1, 1)), shift.reshape(-1, 1))
    return out.view(x.shape), mean.view(n, groups), rstd.view(n, groups)


@rule("native_group_norm_backward", "as native_layer_norm_backward, sums by channel and group")
def _group_norm_backward(
    mode: Any,
    func: Any,
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
    check(func, g, x)
    h = Hand(mode, "native_group_norm_backward")
    width = channels // groups
    planes, out = (v.reshape(n, groups, width, voxels) for v in (x, g))
    ds, db = h.sum(h.mul(out, planes), [3]), h.sum(out, [3])
    center, scale = mean.view(n, groups, 1), rstd.view(n, groups, 1)
    to_x = to_weight = to_bias = None
    if mask[0]:
        factor = None if weight is None else weight.view(groups, width)
        ds_group = h.sum(ds if factor is None else h.mul(ds, factor), [2], keepdim=True)
        db_group = h.sum(db if factor is None else h.mul(db, factor), [2], keepdim=True)
        scaled = out if factor is None else h.mul(out, factor[..., None])
        center4, scale4, ds4, db4 = (v[..., None] for v in (center, scale, ds_group, db_group))
        to_x = _input_gradient(h, scaled, planes, center4, scale4, ds4, db4, width * voxels)
        to_x = to_x.view(x.shape)
    if mask[1]:
        each = h.mul(h.sub(ds, h.mul(db, center)), scale)
        to_weight = h.sum(each, [0]).view(channels)
    if mask[2]:
        to_bias = h.sum(db, [0]).view(channels)
    return to_x, to_weight, to_bias


def _by_channel(v: T, x: T) -> T:
    return v.view(1, -1, *(1,) * (x.dim() - 2))


def _wide_mean(h: Hand, x: T, axes: list[int]) -> T:
    """A mean whose sum is float64's, as torch takes it; brought back by the mode."""
    return h.to(h.mean(x.double(), axes), x.dtype)


def _batch_norm(
    h: Hand,
    x: T,
    weight: T | None,
    bias: T | None,
    running_mean: T | None,
    running_var: T | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[T, T, T]:
    axes, n = [0, *range(2, x.dim())], x.numel() // x.shape[1]
    if training:
        mean = _wide_mean(h, x, axes)
        distance = h.sub(x, _by_channel(mean, x))
        squares = h.sum(h.mul(distance, distance).double(), axes)
        rstd = h.to(_rstd(h, h.div(squares, n), eps), x.dtype)
        for running, now in (
            (running_mean, mean.double()),
            (running_var, h.div(squares, max(n - 1, 1)) if running_var is not None else None),
        ):
            if running is not None and now is not None:
                kept = h.mul(running.double(), 1 - momentum)
                running.copy_(h.to(h.add(h.mul(now, momentum), kept), running.dtype))
    else:
        assert running_mean is not None and running_var is not None
        mean = running_mean
        rstd = _rstd(h, running_var, eps)
    alpha = rstd if weight is None else h.mul(rstd, weight)
    beta = h.mul(mean, alpha)
    beta = -beta if bias is None else h.sub(bias, beta)  # 0 − beta in torch: exact
    out = h.add(h.mul(x, _by_channel(alpha, x)), _by_channel(beta, x))
    nothing = torch.empty(0, dtype=x.dtype)
    return out, *((mean, rstd) if training else (nothing, nothing.clone()))


_BATCH = "mean and variance by sums in float64, as torch; x·(rstd·γ) + (β − mean·rstd·γ)"


@rule("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training", _BATCH)
def _any_batch_norm(mode: Any, func: Any, x: T, *rest: Any) -> tuple[T, T, T]:
    check(func, x)
    name = func.overloadpacket.__name__
    if func._overloadname == "no_stats":
        rest = (*rest[:2], None, None, *rest[2:])
    elif name.endswith("_no_training"):
        rest = (*rest[:4], False, *rest[4:])
    return _batch_norm(Hand(mode, name), x, *rest)


@rule(
    "native_batch_norm_backward",
    "the sums in float64, as torch; (gradient − mean(gradient) − (x − mean)·k)·rstd·γ",
)
def _batch_norm_backward(
    mode: Any,
    func: Any,
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
    check(func, g, x)
    h = Hand(mode, "native_batch_norm_backward")
    axes, n = [0, *range(2, x.dim())], x.numel() // x.shape[1]
    if training:
        assert save_mean is not None and save_rstd is not None
        mean, rstd = save_mean, save_rstd
    else:
        assert running_mean is not None and running_var is not None
        mean, rstd = running_mean, _rstd(h, running_var, eps)
    distance = h.sub(x, _by_channel(mean, x))
    total = h.sum(g.double(), axes)
    dot = h.sum(h.mul(distance, g).double(), axes)
    to_x = to_weight = to_bias = None
    if mask[0]:
        factor = rstd if weight is None else h.mul(rstd, weight)
        if training:
            wide = rstd.double()
            k = h.to(h.div(h.mul(h.mul(dot, wide), wide), n), x.dtype)
            center = h.to(h.div(total, n), x.dtype)
            inner = h.sub(h.sub(g, _by_channel(center, x)), h.mul(distance, _by_channel(k, x)))
            to_x = h.mul(inner, _by_channel(factor, x))
        else:
            to_x = h.mul(g, _by_channel(factor, x))
    if mask[1]:
        to_weight = h.to(h.mul(dot, rstd.double()), x.dtype)
    if mask[2]:
        to_bias = h.to(total, x.dtype)
    return to_x, to_weight, to_bias


@rule("_fused_rms_norm", "mean of squares, 1 / √(· + eps); x·rstd·γ")
def _rms_norm(
    mode: Any, func: Any, x: T, shape: Sequence[int], weight: T | None, eps: float | None
) -> tuple[T, T]:
    check(func, x)
    h = Hand(mode, "_fused_rms_norm")
    rows = x.reshape(-1, prod(shape))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = _rstd(h, h.mean(h.mul(rows, rows), [1], keepdim=True), eps)
    out = h.mul(rows, rstd)
    if weight is not None:
        out = h.mul(out, weight.reshape(-1))
    kept = [*x.shape[: x.dim() - len(shape)], *(1,) * len(shape)]
    return out.view(x.shape), rstd.view(kept)


@rule(
    "_weight_norm_interface_backward",
    "g: sum(gradient·v) / norm; v: (g / norm)·(gradient − v·(sum / (norm·norm)))",
)
def _weight_norm_backward(
    mode: Any, func: Any, g_w: T, v: T, g: T, norms: T, dim: int
) -> tuple[T, T]:
    check(func, g_w, v, g)
    h = Hand(mode, "_weight_norm_interface_backward")
    axes = [d for d in range(v.dim()) if d != dim % v.dim()]
    total = h.sum(h.mul(g_w, v), axes, keepdim=True)
    to_g = h.div(total, norms)
    share = h.mul(v, h.div(total, h.mul(norms, norms)))
    return h.mul(h.div(g, norms), h.sub(g_w, share)), to_g
