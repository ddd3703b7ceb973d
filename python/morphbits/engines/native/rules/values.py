"""Operators that make values and round while they do it. What is drawn at random is the program's
input, not its arithmetic."""

from __future__ import annotations

import math
from typing import Any

import torch

from morphbits.engines.native.kernels.program import computed
from morphbits.engines.native.rules.arithmetic import SIXTEEN_BITS, Operator
from morphbits.engines.native.rules.registry import refused, rule
from morphbits.errors import UserError


def _wide(func: Any, dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are made; whole numbers are cut off there."""
    wide = torch.float32 if dtype in SIXTEEN_BITS else dtype
    if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        return torch.float64
    if wide not in (torch.float32, torch.float64):
        raise UserError(f"the native engine has no rule for {func} of {dtype}")
    return wide


def _ends(start: Any, end: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """What lies between: of whole numbers, whole ends, as in torch."""
    return (start, end) if dtype.is_floating_point else (int(start), int(end))


@rule(
    "linspace",
    "a step by one subtraction and division; i·step from the nearer end, then added",
    sixteen_bits=True,
)
def _linspace(
    op: Operator,
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    wide = _wide(op.func, dtype)
    if wide != dtype:
        ends = _ends(start, end, dtype)
        return op.to(_linspace(op.named("linspace"), *ends, steps, dtype=wide), dtype)
    first, last = op.to(start, dtype), op.to(end, dtype)
    if steps < 2:
        return first.expand(steps).clone()
    step = op.div(op.sub(last, first), steps - 1)
    index = torch.arange(steps, dtype=dtype)
    below = op.add(first, op.mul(step, index[: steps // 2]))
    above = op.sub(last, op.mul(step, index[: steps - steps // 2].flip(0)))
    return torch.cat([below, above])


@rule("arange", "whole steps: exact; else start + i·step", sixteen_bits=True)
def _arange(op: Operator, *limits: Any, **options: Any) -> torch.Tensor:
    dtype = options.get("dtype")
    if dtype is None:
        whole = all(isinstance(x, int) for x in limits)
        dtype = torch.int64 if whole else torch.get_default_dtype()
    if not dtype.is_floating_point or not any(isinstance(x, float) and x % 1 for x in limits):
        return op.func(*limits, **options)
    start, step = (0, 1) if len(limits) == 1 else (limits[0], *limits[2:], 1)[:2]
    count = len(op.func(*limits, **{**options, "dtype": torch.float64}))
    wide = _wide(op.func, dtype)
    steps = op.mul(torch.arange(count, dtype=wide), torch.tensor(step, dtype=wide))
    return op.to(op.add(steps, torch.tensor(start, dtype=wide)), dtype)


@rule("logspace", "as linspace, then base to its power", sixteen_bits=True)
def _logspace(
    op: Operator,
    start: Any,
    end: Any,
    steps: int,
    base: float = 10,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    wide = _wide(op.func, dtype)
    exponents = _linspace(op.named("linspace"), *_ends(start, end, dtype), steps, dtype=wide)
    return op.to(op.redispatch(torch.ops.aten.pow.Scalar, base, exponents), dtype)


@rule("histc", "edges as `linspace`; elements are compared with them and counted")
def _histc(
    op: Operator,
    x: torch.Tensor,
    bins: int = 100,
    low: float = 0,
    high: float = 0,
) -> torch.Tensor:
    plain = op.func(x, bins, low, high)  # says what does not fit
    if low == high and x.numel():
        low, high = float(x.min()), float(x.max())
    if low == high:
        low, high = low - 1, high + 1
    edges = op.redispatch(torch.ops.aten.linspace, low, high, bins + 1, dtype=x.dtype)
    inside = x[(x >= low) & (x <= high)].reshape(-1)
    place = torch.searchsorted(edges, inside, right=True).clamp(max=bins) - 1
    return torch.bincount(place, minlength=bins).to(plain.dtype)


_WINDOWS = {"hann_window": (0.5, 0.5, 0), "blackman_window": (0.42, 0.5, 0.08)}


@rule(
    "hann_window hamming_window blackman_window",
    "a − b·cos(2π·i / n) (+ c·cos(4π·i / n))",
    sixteen_bits=True,
)
def _window(
    op: Operator,
    n: int,
    periodic: bool = True,
    alpha: float = 0.54,
    beta: float = 0.46,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    name, dtype = op.name, dtype or torch.get_default_dtype()
    wide = _wide(op.func, dtype)
    if n <= 1:
        return torch.ones(n, dtype=dtype)
    position = torch.arange(n, dtype=wide)
    length = n if periodic else n - 1
    a, b, c = _WINDOWS.get(name, (alpha, beta, 0))
    angle = op.mul(position, 2 * math.pi / length)
    out = op.sub(a, op.mul(b, op.function("cos", angle)))
    if c:
        out = op.add(out, op.mul(c, op.function("cos", op.mul(angle, 2))))
    return op.to(out, dtype)


@rule("normal", "a normal number times a tensor of deviations, plus the mean", sixteen_bits=True)
def _normal(op: Operator, mean: Any, std: Any = 1.0, *size: Any, **options: Any) -> torch.Tensor:
    if size or not any(isinstance(x, torch.Tensor) for x in (mean, std)):
        return op.func(mean, std, *size, **options)  # numbers of the program: as `normal_`
    tensors = [x for x in (mean, std) if isinstance(x, torch.Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    out = torch.empty(shape, dtype=tensors[0].dtype)
    dtype, scaled = out.dtype, isinstance(std, torch.Tensor)
    out.normal_(0, 1 if scaled else std, generator=options.get("generator"))
    mean = mean if isinstance(mean, torch.Tensor) else torch.full((), mean, dtype=dtype)
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (out, mean)]
    if scaled:
        scale = std.to(torch.promote_types(std.dtype, torch.float32))
        wide[0] = op.wide(op.mul(wide[0], scale), dtype)
    return op.to(op.add(*wide), dtype)


@rule(
    "multinomial",
    "one draw, or without replacement: probabilities / exponential numbers, the greatest; else "
    "partial sums as one chain, one division each, and the place of a uniform number among them",
)
def _multinomial(
    op: Operator,
    x: torch.Tensor,
    count: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    rows = torch.atleast_2d(x)
    unfit = (rows < 0).any() or not rows.isfinite().all() or (rows == 0).all(1).any()
    if rows.dim() != 2 or bool(unfit) or (count > rows.shape[1] and not replacement):
        refused(op.func, x, count, replacement)
    if not replacement or count == 1:
        drawn = torch.empty_like(rows).exponential_(1, generator=generator)
        chances = op.div(rows, drawn)
        best = chances.topk(count, 1)[1] if count > 1 else chances.argmax(1, keepdim=True)
    else:
        partial = op.chain("add", rows.t().contiguous(), scan=True)
        partial = computed(op.div(partial, partial[-1:]))
        partial[-1] = 1
        drawn = torch.rand(len(rows), count, dtype=torch.float64, generator=generator)
        best = torch.searchsorted(partial.t().double().contiguous(), drawn)
    return best if x.dim() == 2 else best[0]


@rule("_efficientzerotensor", "zeros, which the kernels can read", sixteen_bits=True)
def _zeros(op: Operator, size: Any, **options: Any) -> torch.Tensor:
    return torch.zeros(size, **options)


@rule("allclose", "as isclose: one product and two additions an element", sixteen_bits=True)
def _allclose(op: Operator, *args: Any, **kwargs: Any) -> bool:
    return bool(op.redispatch(torch.isclose, *args, **kwargs).all())
