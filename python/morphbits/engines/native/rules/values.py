"""Operators that make values and round while they do it. What is drawn at random is the program's
input, not its arithmetic."""

from __future__ import annotations

import math
from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import HALVES, Hand
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.registry import refused, rule
from morphbits.errors import UserError


def _wide(func: Any, dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are made; whole numbers are cut off there."""
    wide = torch.float32 if dtype in HALVES else dtype
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
    halves=True,
)
def _linspace(
    context: Context,
    func: Any,
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    h, wide = Hand(context, "linspace"), _wide(func, dtype)
    if wide != dtype:
        ends = _ends(start, end, dtype)
        return h.to(_linspace(context, func, *ends, steps, dtype=wide), dtype)
    first, last = h.to(start, dtype), h.to(end, dtype)
    if steps < 2:
        return first.expand(steps).clone()
    step = h.div(h.sub(last, first), steps - 1)
    index = torch.arange(steps, dtype=dtype)
    below = h.add(first, h.mul(step, index[: steps // 2]))
    above = h.sub(last, h.mul(step, index[: steps - steps // 2].flip(0)))
    return torch.cat([below, above])


@rule("arange", "whole steps: exact; else start + i·step", halves=True)
def _arange(context: Context, func: Any, *limits: Any, **options: Any) -> torch.Tensor:
    dtype = options.get("dtype")
    if dtype is None:
        whole = all(isinstance(x, int) for x in limits)
        dtype = torch.int64 if whole else torch.get_default_dtype()
    if not dtype.is_floating_point or not any(isinstance(x, float) and x % 1 for x in limits):
        return func(*limits, **options)
    start, step = (0, 1) if len(limits) == 1 else (limits[0], *limits[2:], 1)[:2]
    count = len(func(*limits, **{**options, "dtype": torch.float64}))
    h, wide = Hand(context, "arange"), _wide(func, dtype)
    steps = h.mul(torch.arange(count, dtype=wide), torch.tensor(step, dtype=wide))
    return h.to(h.add(steps, torch.tensor(start, dtype=wide)), dtype)


@rule("logspace", "as linspace, then base to its power", halves=True)
def _logspace(
    context: Context,
    func: Any,
    start: Any,
    end: Any,
    steps: int,
    base: float = 10,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    wide = _wide(func, dtype)
    exponents = _linspace(context, func, *_ends(start, end, dtype), steps, dtype=wide)
    h = Hand(context, "logspace")
    return h.to(context.apply(torch.ops.aten.pow.Scalar, base, exponents), dtype)


@rule("histc", "edges as `linspace`; elements are compared with them and counted")
def _histc(
    context: Context,
    func: Any,
    x: torch.Tensor,
    bins: int = 100,
    low: float = 0,
    high: float = 0,
) -> torch.Tensor:
    plain = func(x, bins, low, high)  # says what does not fit
    if low == high and x.numel():
        low, high = float(x.min()), float(x.max())
    if low == high:
        low, high = low - 1, high + 1
    edges = context.apply(torch.ops.aten.linspace, low, high, bins + 1, dtype=x.dtype)
    inside = x[(x >= low) & (x <= high)].reshape(-1)
    place = torch.searchsorted(edges, inside, right=True).clamp(max=bins) - 1
    return torch.bincount(place, minlength=bins).to(plain.dtype)


_WINDOWS = {"hann_window": (0.5, 0.5, 0), "blackman_window": (0.42, 0.5, 0.08)}


@rule(
    "hann_window hamming_window blackman_window",
    "a − b·cos(2π·i / n) (+ c·cos(4π·i / n))",
    halves=True,
)
def _window(
    context: Context,
    func: Any,
    n: int,
    periodic: bool = True,
    alpha: float = 0.54,
    beta: float = 0.46,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> torch.Tensor:
    name, dtype = func.overloadpacket.__name__, dtype or torch.get_default_dtype()
    h, wide = Hand(context, name), _wide(func, dtype)
    if n <= 1:
        return torch.ones(n, dtype=dtype)
    position = torch.arange(n, dtype=wide)
    length = n if periodic else n - 1
    a, b, c = _WINDOWS.get(name, (alpha, beta, 0))
    angle = h.mul(position, 2 * math.pi / length)
    out = h.sub(a, h.mul(b, h.function("cos", angle)))
    if c:
        out = h.add(out, h.mul(c, h.function("cos", h.mul(angle, 2))))
    return h.to(out, dtype)


@rule("normal", "a normal number times a tensor of deviations, plus the mean", halves=True)
def _normal(
    context: Context, func: Any, mean: Any, std: Any = 1.0, *size: Any, **options: Any
) -> torch.Tensor:
    if size or not any(isinstance(x, torch.Tensor) for x in (mean, std)):
        return func(mean, std, *size, **options)  # numbers of the program: as `normal_`
    tensors = [x for x in (mean, std) if isinstance(x, torch.Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    out = torch.empty(shape, dtype=tensors[0].dtype)
    h, dtype, scaled = Hand(context, "normal"), out.dtype, isinstance(std, torch.Tensor)
    out.normal_(0, 1 if scaled else std, generator=options.get("generator"))
    mean = mean if isinstance(mean, torch.Tensor) else torch.full((), mean, dtype=dtype)
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (out, mean)]
    if scaled:
        scale = std.to(torch.promote_types(std.dtype, torch.float32))
        wide[0] = h.wide(h.mul(wide[0], scale), dtype)
    return h.to(h.add(*wide), dtype)


@rule(
    "multinomial",
    "one draw, or without replacement: probabilities / exponential numbers, the greatest; else "
    "partial sums as one chain, one division each, and the place of a uniform number among them",
)
def _multinomial(
    context: Context,
    func: Any,
    x: torch.Tensor,
    count: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    h, rows = Hand(context, "multinomial"), torch.atleast_2d(x)
    unfit = (rows < 0).any() or not rows.isfinite().all() or (rows == 0).all(1).any()
    if rows.dim() != 2 or bool(unfit) or (count > rows.shape[1] and not replacement):
        refused(func, x, count, replacement)
    if not replacement or count == 1:
        drawn = torch.empty_like(rows).exponential_(1, generator=generator)
        chances = h.div(rows, drawn)
        best = chances.topk(count, 1)[1] if count > 1 else chances.argmax(1, keepdim=True)
    else:
        partial = h.chain("add", rows.t().contiguous(), scan=True)
        partial = h.div(partial, partial[-1:])
        partial[-1] = 1
        drawn = torch.rand(len(rows), count, dtype=torch.float64, generator=generator)
        best = torch.searchsorted(partial.t().double().contiguous(), drawn)
    return best if x.dim() == 2 else best[0]


@rule("_efficientzerotensor", "zeros, which the kernels can read", halves=True)
def _zeros(context: Context, func: Any, size: Any, **options: Any) -> torch.Tensor:
    return torch.zeros(size, **options)


@rule("allclose", "as isclose: one product and two additions an element", halves=True)
def _allclose(context: Context, func: Any, *args: Any, **kwargs: Any) -> bool:
    return bool(context.apply(torch.isclose, *args, **kwargs).all())
