"""Products of matrices and vectors; `linear`, `matmul`, `einsum` and the like are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from morphbits.engines.native.kernels import sums
from morphbits.engines.native.orders import accumulation as orders
from morphbits.engines.native.orders import probe_sums
from morphbits.engines.native.rules.arithmetic import Hand
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.elementwise import write
from morphbits.engines.native.rules.registry import check, refused, rule

_ORDER = (
    "a chain of fused multiply-adds over the inner axis; blocked:K cuts it, the sums are added; "
    "probe: torch's own, measured"
)


def product(
    context: Context,
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    own: probe_sums.Product | None = None,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, M, K) times (B, K, N), plus `addend`, in the order of the option `accumulation`.

    One chain from zero over K in the orders `sequential` and `direct` (which speaks of channels of
    convolutions); with `blocked:K` a chain for every K terms, whose sums are added in order; with
    `probe` in that of the framework's operator `own`. The addition of `addend` is the last, but
    where `probe` found it elsewhere.
    """
    if own is None:
        context.not_probed(name, "one chain")
    elif context.probes(a) and a.shape[2] > 1 and a.shape[0] * a.shape[1] * b.shape[2]:
        kernel = partial(context.outside, own)
        found = probe_sums.product_order(kernel, a, b, addend, context.threads)
        context.probed(f"{name} {found.layer}", found.words)
        if found.parts:
            draw = partial(context.next_rounding, name, accumulates=True)
            sides = context.factor(a), context.factor(b)
            return context.store(name, found.compute(draw, *sides, addend))
    kind, length = orders.parse(context.accumulation)
    depth = a.shape[2]
    ends = sums.segments(depth, length if kind == "blocked" else None)
    count = a.shape[0] * a.shape[1] * b.shape[2] * (depth + len(ends) - 1 if depth else 0)
    rounding = context.next_rounding(name, count, accumulates=True)
    out = context.store(
        name, sums.matrix_product(rounding, context.factor(a), context.factor(b), ends)
    )
    return out if addend is None else Hand(context, name).add(out, addend)


def _fits(func: Any, given: tuple[Any, ...], a: torch.Tensor, b: torch.Tensor, dims: int) -> None:
    check(func, a, b)
    inner = a.dim() == b.dim() == dims and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype
    if not inner or (dims == 3 and a.shape[0] != b.shape[0]):
        refused(func, *given)


@rule("mm bmm", _ORDER)
def _product(context: Context, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if not a.is_floating_point():
        return func(a, b)
    _fits(func, (a, b), a, b, 3 if name == "bmm" else 2)
    if name == "bmm":
        return product(context, name, a, b, lambda a, b, _: func(a, b))
    return product(context, name, a[None], b[None], lambda a, b, _: func(a[0], b[0])[None])[0]


@rule("mv dot vdot", _ORDER)
def _vectors(context: Context, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if not a.is_floating_point():
        return func(a, b)
    check(func, a, b)
    rows = a if name == "mv" else a[None]
    if rows.dim() != 2 or b.dim() != 1 or rows.shape[1] != b.shape[0] or a.dtype != b.dtype:
        refused(func, a, b)

    def own(a: torch.Tensor, b: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        return func(a[0] if name == "mv" else a[0, 0], b[0, :, 0]).reshape(1, -1, 1)

    out = product(context, name, rows[None], b[None, :, None], own)[0, :, 0]
    return out if name == "mv" else out[0]


@rule(
    "addmm addmm_ addmv addmv_ baddbmm baddbmm_ addbmm addbmm_ addr addr_",
    f"{_ORDER}; then alpha·product and beta·addend (where not 1) and the addition",
)
def _add_product(
    context: Context,
    func: Any,
    to: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if not a.is_floating_point():
        return func(to, a, b, beta=beta, alpha=alpha)
    check(func, to)
    kind = name.removesuffix("_")
    given = (to, a, b)
    if kind == "addr":
        x, y, dims = a[:, None], b[None, :], 2
    elif kind == "addmv":
        x, y, dims = a, b[:, None], 2
    else:
        x, y, dims = a, b, 2 if kind == "addmm" else 3
    _fits(func, given, x, y, dims)
    h = Hand(context, name)
    three = (x, y) if dims == 3 else (x[None], y[None])
    shape = (*x.shape[:-1], y.shape[-1])[: 1 if kind == "addmv" else None]
    shape = shape[1:] if kind == "addbmm" else shape
    if to.dtype != x.dtype or torch.broadcast_shapes(to.shape, shape) != shape:
        refused(func, *given)
    if kind in ("addmm", "baddbmm") and alpha == beta == 1:
        whole = product(context, name, *three, partial(_own_addition, kind), to)
        out = whole if dims == 3 else whole[0]
    else:
        out = product(context, name, *three)
        out = out if dims == 3 else out[0]
        out = out[:, 0] if kind == "addmv" else h.chain("add", out) if kind == "addbmm" else out
        out = h.mul(alpha, out)
        out = h.add(h.mul(to, beta), out) if beta != 0 else out
    if not name.endswith("_"):
        return out
    if to.shape != out.shape and kind != "addbmm":
        refused(func, *given)
    return write(context, name, to.resize_(out.shape), out)


def _own_addition(
    kind: str, a: torch.Tensor, b: torch.Tensor, addend: torch.Tensor | None
) -> torch.Tensor:
    """torch's operator, on three dimensions."""
    assert addend is not None
    if kind == "baddbmm":
        return torch.baddbmm(addend, a, b)
    return torch.addmm(addend, a[0], b[0])[None]


@rule("_trilinear", "(a·b)·c, then as sum (torch: products of matrices)")
def _trilinear(
    context: Context,
    func: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll: int = 1,
) -> torch.Tensor:
    check(func, a, b, c)
    h = Hand(context, "_trilinear")
    factors = []
    for x, places in ((a, expand_a), (b, expand_b), (c, expand_c)):
        for d in places:
            x = x.unsqueeze(d)
        factors.append(x)
    out = h.mul(h.mul(factors[0], factors[1]), factors[2])
    return h.sum(out, list(summed)) if len(summed) else out
