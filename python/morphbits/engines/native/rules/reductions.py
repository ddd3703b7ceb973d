"""Operators that bring many elements to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import Hand
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.registry import check, refused, rule

CASCADE = "chains of up to 256 terms, dealt out in turn; their sums again"


def as_dims(dim: int | Sequence[int] | None) -> list[int] | None:
    """The axes of a reduction as a list; None for all."""
    return None if dim is None else [dim] if isinstance(dim, int) else list(dim)


@rule("sum", CASCADE)
def _sum(
    context: Context,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if not (dtype or x.dtype).is_floating_point:
        whole = dim is None and func._overloadname != "dim_IntList"
        return func(x, dtype=dtype) if whole else func(x, dim, keepdim, dtype=dtype)
    hand = Hand(context, "sum")
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    return hand.sum(x, as_dims(dim), keepdim, torchs=True)


@rule("mean", f"{CASCADE}; one division")
def _mean(
    context: Context,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    hand = Hand(context, "mean")
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    return hand.mean(x, as_dims(dim), keepdim, torchs=True)


@rule("nansum", f"as sum, NaN as 0: {CASCADE}")
def _nansum(
    context: Context,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    present = torch.where(x.isnan(), torch.zeros((), dtype=x.dtype), x)
    return context.apply(torch.ops.aten.sum, present, as_dims(dim), keepdim, dtype=dtype)


def _centered(
    hand: Hand, x: torch.Tensor, dim: Any, correction: Any, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean: the sum of squared distances from the mean over n − correction."""
    dims = as_dims(dim) or list(range(x.dim()))
    mean = hand.mean(x, dims, keepdim=True)
    distance = hand.sub(x, mean)
    n = x.numel() // max(mean.numel(), 1)
    squares = hand.sum(hand.mul(distance, distance), dims, keepdim)
    variance = hand.div(squares, max(n - (1 if correction is None else correction), 0))
    return variance, mean.view(variance.shape)


@rule(
    "var std var_mean std_mean",
    "mean, then the sum of squared distances over n − 1 (torch: Welford's recurrence), of float32 "
    "in float64; the root",
)
def _variance(
    context: Context,
    func: Any,
    x: torch.Tensor,
    dim: Any = None,
    *unbiased: Any,
    correction: Any = None,
    keepdim: bool = False,
) -> Any:
    name = func.overloadpacket.__name__
    check(func, x)
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, (dim, *unbiased)
    if unbiased:
        correction = int(unbiased[0])
        keepdim = bool(unbiased[1]) if len(unbiased) > 1 else keepdim
    hand = Hand(context, name)
    wide = x if context.halves else x.double()
    variance, mean = _centered(hand, wide, dim, correction, keepdim)
    spread = hand.sqrt(variance) if name.startswith("std") else variance
    if name.endswith("_mean"):
        return hand.to(spread, x.dtype), hand.to(mean, x.dtype)
    return hand.to(spread, x.dtype)


@rule("linalg__powsum", f"as linalg_vector_norm, without the root: {CASCADE}")
@rule("linalg_vector_norm norm", f"2: root of the sum of squares; 1: sum; other powers; {CASCADE}")
def _norm(
    context: Context,
    func: Any,
    x: torch.Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    hand = Hand(context, func.overloadpacket.__name__)
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    dims, order = as_dims(dim), 2.0 if ord is None else float(ord)
    axes = dims if dims else list(range(x.dim()))
    if order == 2:
        total = hand.sum(hand.mul(x, x), dims, keepdim)
        return total if hand.name == "linalg__powsum" else hand.sqrt(total)
    if order == 1:
        return hand.sum(x.abs(), dims, keepdim)
    if order == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim)  # counts
    if order in (float("inf"), float("-inf")):
        return x.abs().amax(axes, keepdim) if order > 0 else x.abs().amin(axes, keepdim)
    total = hand.sum(hand.function("pow", x.abs(), order), dims, keepdim)
    return total if hand.name == "linalg__powsum" else hand.function("pow", total, 1 / order)


@rule("dist", "a − b, then as linalg_vector_norm")
def _dist(
    context: Context, func: Any, x: torch.Tensor, y: torch.Tensor, p: float = 2
) -> torch.Tensor:
    check(func, x, y)
    return _norm(context, func, Hand(context, "dist").sub(x, y), p)


def _scan(operation: str) -> Any:
    def handler(
        context: Context,
        func: Any,
        x: torch.Tensor,
        dim: int,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        name = func.overloadpacket.__name__
        if not (dtype or x.dtype).is_floating_point:
            return func(x, dim, dtype=dtype)
        hand = Hand(context, name)
        source = hand.to(x, dtype or x.dtype)
        check(func, source)
        if x.dim() == 0 or x.numel() == 0:
            out = source.clone()
        else:
            out = hand.chain(operation, source.movedim(dim, 0), scan=True).movedim(0, dim)
        return x.copy_(hand.to(out, x.dtype)) if name.endswith("_") else out.contiguous()

    return handler


rule("cumsum cumsum_", "one chain; every partial sum")(_scan("add"))
rule("cumprod cumprod_", "one chain; every partial product")(_scan("mul"))


@rule("trace", "one chain, of float32 in float64")
def _trace(context: Context, func: Any, x: torch.Tensor) -> torch.Tensor:
    check(func, x)
    if x.dim() != 2:
        refused(func, x)
    hand = Hand(context, "trace")
    return hand.to(hand.chain("add", x.diagonal().double()), x.dtype)


@rule("prod", "one chain of multiplications in row-major order")
def _prod(
    context: Context,
    func: Any,
    x: torch.Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if not (dtype or x.dtype).is_floating_point:
        return func(x, dim, keepdim, dtype=dtype) if dim is not None else func(x, dtype=dtype)
    hand = Hand(context, "prod")
    x = hand.to(x, dtype or x.dtype)
    check(func, x)
    if dim is None:
        return hand.chain("mul", x.reshape(-1))
    out = hand.chain("mul", x.movedim(dim, 0)) if x.dim() else x.clone()
    return out.unsqueeze(dim) if keepdim and x.dim() else out


@rule("logsumexp", "max + log(sum(exp(x − max)))")
def _logsumexp(
    context: Context, func: Any, x: torch.Tensor, dim: Any, keepdim: bool = False
) -> torch.Tensor:
    hand, dims = Hand(context, "logsumexp"), as_dims(dim) or list(range(x.dim()))
    if not x.is_floating_point():
        dtype = torch.get_default_dtype()
        whole = _logsumexp(context, func, hand.wide(x, dtype), dim, keepdim)
        return hand.to(whole, dtype)
    check(func, x)
    if x.numel() == 0:
        return hand.function("log", hand.sum(hand.function("exp", x), dims, keepdim))
    top = x.amax(dims, keepdim=True)
    top = torch.where(top.isinf(), torch.zeros((), dtype=x.dtype), top)
    total = hand.sum(hand.function("exp", hand.sub(x, top)), dims, keepdim)
    return hand.add(hand.function("log", total), top.view(total.shape))


@rule("logcumsumexp", "one chain; max + log1p(exp(min − max)) of every partial sum and the next")
def _logcumsumexp(context: Context, func: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
    check(func, x)
    if x.dim() == 0 or x.numel() == 0:
        return x.clone()
    hand, rows = Hand(context, "logcumsumexp"), x.movedim(dim, 0)
    partial = [rows[0].clone()]
    for row in rows[1:]:
        low, high = torch.minimum(partial[-1], row), torch.maximum(partial[-1], row)
        rest = hand.function("log1p", hand.function("exp", hand.sub(low, high)))
        same = low.isinf() & (low == high)  # −∞ and −∞
        partial.append(torch.where(same, high, hand.add(high, rest)))
    return torch.stack(partial).movedim(0, dim).contiguous()
