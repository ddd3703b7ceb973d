"""Operators that bring many elements to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from morphbits.engines.native.kernels.program import LONGEST_ROW
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import refused, rule

CASCADE = "chains of up to 256 terms, dealt out in turn; their sums again"


def as_dims(dim: int | Sequence[int] | None) -> list[int] | None:
    """The axes of a reduction as a list; None for all."""
    return None if dim is None else [dim] if isinstance(dim, int) else list(dim)


def _total(op: Operator, rows: torch.Tensor) -> torch.Tensor:
    return op.sum(rows, [rows.dim() - 1], keepdim=True)


def _average(op: Operator, rows: torch.Tensor) -> torch.Tensor:
    return op.mean(rows, [rows.dim() - 1], keepdim=True)


def _reduced(op: Operator, x: torch.Tensor, dims: list[int] | None, keepdim: bool) -> Any:
    """The sum or mean over rows, if `dims` are the last axis, or all of a whole; else None."""
    if op.context.accumulation == "probe" or not x.dim():
        return None
    axes = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
    if axes != {x.dim() - 1} and (len(axes) < x.dim() or not x.is_contiguous()):
        return None
    rows = x if axes == {x.dim() - 1} else x.reshape(1, -1)
    if not 1 < rows.shape[-1] <= LONGEST_ROW or not rows.numel():
        return None
    out = op.formula(_average if op.name == "mean" else _total, rows)
    kept = [1 if d in axes else n for d, n in enumerate(x.shape)]
    return out.view(kept if keepdim else [n for d, n in enumerate(x.shape) if d not in axes])


@rule("sum", CASCADE)
def _sum(
    op: Operator,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if not (dtype or x.dtype).is_floating_point:
        whole = dim is None and op.func._overloadname != "dim_IntList"
        return op.func(x, dtype=dtype) if whole else op.func(x, dim, keepdim, dtype=dtype)
    x = op.to(x, dtype or x.dtype)
    op.check(x)
    found = _reduced(op, x, as_dims(dim), keepdim)
    return op.sum(x, as_dims(dim), keepdim, torchs=True) if found is None else found


@rule("mean", f"{CASCADE}; one division")
def _mean(
    op: Operator,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    x = op.to(x, dtype or x.dtype)
    op.check(x)
    found = _reduced(op, x, as_dims(dim), keepdim)
    return op.mean(x, as_dims(dim), keepdim, torchs=True) if found is None else found


@rule("nansum", f"as sum, NaN as 0: {CASCADE}")
def _nansum(
    op: Operator,
    x: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    present = torch.where(x.isnan(), torch.zeros((), dtype=x.dtype), x)
    return op.redispatch(torch.ops.aten.sum, present, as_dims(dim), keepdim, dtype=dtype)


def _centered(
    op: Operator, x: torch.Tensor, dim: Any, correction: Any, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean: the sum of squared distances from the mean over n − correction."""
    dims = as_dims(dim) or list(range(x.dim()))
    mean = op.mean(x, dims, keepdim=True)
    distance = op.sub(x, mean)
    n = x.numel() // max(mean.numel(), 1)
    squares = op.sum(op.mul(distance, distance), dims, keepdim)
    variance = op.div(squares, max(n - (1 if correction is None else correction), 0))
    return variance, mean.view(variance.shape)


@rule(
    "var std var_mean std_mean",
    "mean, then the sum of squared distances over n − 1 (torch: Welford's recurrence), of float32 "
    "in float64; the root",
)
def _variance(
    op: Operator,
    x: torch.Tensor,
    dim: Any = None,
    *unbiased: Any,
    correction: Any = None,
    keepdim: bool = False,
) -> Any:
    op.check(x)
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, (dim, *unbiased)
    if unbiased:
        correction = int(unbiased[0])
        keepdim = bool(unbiased[1]) if len(unbiased) > 1 else keepdim
    wide = x if op.context.widened else x.double()
    variance, mean = _centered(op, wide, dim, correction, keepdim)
    spread = op.sqrt(variance) if op.name.startswith("std") else variance
    if op.name.endswith("_mean"):
        return op.to(spread, x.dtype), op.to(mean, x.dtype)
    return op.to(spread, x.dtype)


@rule("linalg__powsum", f"as linalg_vector_norm, without the root: {CASCADE}")
@rule("linalg_vector_norm norm", f"2: root of the sum of squares; 1: sum; other powers; {CASCADE}")
def _norm(
    op: Operator,
    x: torch.Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    x = op.to(x, dtype or x.dtype)
    op.check(x)
    dims, order = as_dims(dim), 2.0 if ord is None else float(ord)
    axes = dims if dims else list(range(x.dim()))
    if order == 2:
        total = op.sum(op.mul(x, x), dims, keepdim)
        return total if op.name == "linalg__powsum" else op.sqrt(total)
    if order == 1:
        return op.sum(x.abs(), dims, keepdim)
    if order == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim)  # counts
    if order in (float("inf"), float("-inf")):
        return x.abs().amax(axes, keepdim) if order > 0 else x.abs().amin(axes, keepdim)
    total = op.sum(op.function("pow", x.abs(), order), dims, keepdim)
    return total if op.name == "linalg__powsum" else op.function("pow", total, 1 / order)


@rule("dist", "a − b, then as linalg_vector_norm")
def _dist(op: Operator, x: torch.Tensor, y: torch.Tensor, p: float = 2) -> torch.Tensor:
    op.check(x, y)
    return _norm(op, op.sub(x, y), p)


def _scan(operation: str) -> Any:
    def handler(
        op: Operator,
        x: torch.Tensor,
        dim: int,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        if not (dtype or x.dtype).is_floating_point:
            return op.func(x, dim, dtype=dtype)
        source = op.to(x, dtype or x.dtype)
        op.check(source)
        plain = x.dim() == 0 or x.numel() == 0
        out = source.clone() if plain else op.scan(operation, source, dim)
        return x.copy_(op.to(out, x.dtype)) if op.name.endswith("_") else out.contiguous()

    return handler


rule("cumsum cumsum_", "one chain; every partial sum")(_scan("add"))
rule("cumprod cumprod_", "one chain; every partial product")(_scan("mul"))


@rule("trace", "one chain, of float32 in float64")
def _trace(op: Operator, x: torch.Tensor) -> torch.Tensor:
    op.check(x)
    if x.dim() != 2:
        refused(op.func, x)
    return op.to(op.chain("add", x.diagonal().double()), x.dtype)


@rule("prod", "one chain of multiplications in row-major order")
def _prod(
    op: Operator,
    x: torch.Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if not (dtype or x.dtype).is_floating_point:
        return (
            op.func(x, dim, keepdim, dtype=dtype) if dim is not None else op.func(x, dtype=dtype)
        )
    x = op.to(x, dtype or x.dtype)
    op.check(x)
    if dim is None:
        return op.chain("mul", x.reshape(-1))
    out = op.chain("mul", x.movedim(dim, 0)) if x.dim() else x.clone()
    return out.unsqueeze(dim) if keepdim and x.dim() else out


@rule("logsumexp", "max + log(sum(exp(x − max)))")
def _logsumexp(op: Operator, x: torch.Tensor, dim: Any, keepdim: bool = False) -> torch.Tensor:
    dims = as_dims(dim) or list(range(x.dim()))
    if not x.is_floating_point():
        dtype = torch.get_default_dtype()
        whole = _logsumexp(op, op.wide(x, dtype), dim, keepdim)
        return op.to(whole, dtype)
    op.check(x)
    if x.numel() == 0:
        return op.function("log", op.sum(op.function("exp", x), dims, keepdim))
    top = x.amax(dims, keepdim=True)
    top = torch.where(top.isinf(), torch.zeros((), dtype=x.dtype), top)
    total = op.sum(op.function("exp", op.sub(x, top)), dims, keepdim)
    return op.add(op.function("log", total), top.view(total.shape))


@rule("logcumsumexp", "one chain; max + log1p(exp(min − max)) of every partial sum and the next")
def _logcumsumexp(op: Operator, x: torch.Tensor, dim: int) -> torch.Tensor:
    op.check(x)
    if x.dim() == 0 or x.numel() == 0:
        return x.clone()
    rows = x.movedim(dim, 0)
    partial = [rows[0].clone()]
    for row in rows[1:]:
        low, high = torch.minimum(partial[-1], row), torch.maximum(partial[-1], row)
        rest = op.function("log1p", op.function("exp", op.sub(low, high)))
        same = low.isinf() & (low == high)  # −∞ and −∞
        partial.append(torch.where(same, high, op.add(high, rest)))
    return torch.stack(partial).movedim(0, dim).contiguous()
