"""Products of matrices and vectors; `linear`, `matmul`, `einsum` and the like are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from morphbits.engines.native.kernels import sums
from morphbits.engines.native.orders import accumulation as orders
from morphbits.engines.native.orders import probe_sums
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.elementwise import write
from morphbits.engines.native.rules.registry import refused, rule

_ORDER = (
    "a chain of fused multiply-adds over the inner axis; blocked:K cuts it, the sums are added; "
    "probe: torch's own, measured"
)


def product(
    op: Operator,
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
        op.context.not_probed(op.name, "one chain")
    elif op.context.probes(a) and a.shape[2] > 1 and a.shape[0] * a.shape[1] * b.shape[2]:
        kernel = partial(op.context.as_framework, own)
        found = probe_sums.product_order(kernel, a, b, addend, op.context.threads)
        op.context.probed(f"{op.name} {found.layer}", found.words)
        if found.parts:
            draw = partial(op.context.next_rounding, op.name, accumulates=True)
            sides = op.context.factor(a), op.context.factor(b)
            return op.context.store(op.name, found.compute(draw, *sides, addend))
    kind, length = orders.parse(op.context.accumulation)
    depth = a.shape[2]
    ends = sums.segments(depth, length if kind == "blocked" else None)
    count = a.shape[0] * a.shape[1] * b.shape[2] * (depth + len(ends) - 1 if depth else 0)
    rounding = op.context.next_rounding(op.name, count, accumulates=True)
    out = op.context.store(
        op.name, sums.matrix_product(rounding, op.context.factor(a), op.context.factor(b), ends)
    )
    return out if addend is None else op.add(out, addend)


def _fits(
    op: Operator, given: tuple[Any, ...], a: torch.Tensor, b: torch.Tensor, dims: int
) -> None:
    op.check(a, b)
    inner = a.dim() == b.dim() == dims and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype
    if not inner or (dims == 3 and a.shape[0] != b.shape[0]):
        refused(op.func, *given)


@rule("mm bmm", _ORDER)
def _product(op: Operator, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if not a.is_floating_point():
        return op.func(a, b)
    _fits(op, (a, b), a, b, 3 if op.name == "bmm" else 2)
    if op.name == "bmm":
        return product(op, a, b, lambda a, b, _: op.func(a, b))
    return product(op, a[None], b[None], lambda a, b, _: op.func(a[0], b[0])[None])[0]


@rule("mv dot vdot", _ORDER)
def _vectors(op: Operator, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if not a.is_floating_point():
        return op.func(a, b)
    op.check(a, b)
    rows = a if op.name == "mv" else a[None]
    if rows.dim() != 2 or b.dim() != 1 or rows.shape[1] != b.shape[0] or a.dtype != b.dtype:
        refused(op.func, a, b)

    def own(a: torch.Tensor, b: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        return op.func(a[0] if op.name == "mv" else a[0, 0], b[0, :, 0]).reshape(1, -1, 1)

    out = product(op, rows[None], b[None, :, None], own)[0, :, 0]
    return out if op.name == "mv" else out[0]


@rule(
    "addmm addmm_ addmv addmv_ baddbmm baddbmm_ addbmm addbmm_ addr addr_",
    f"{_ORDER}; then alpha·product and beta·addend (where not 1) and the addition",
)
def _add_product(
    op: Operator,
    to: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    if not a.is_floating_point():
        return op.func(to, a, b, beta=beta, alpha=alpha)
    op.check(to)
    kind = op.name.removesuffix("_")
    given = (to, a, b)
    if kind == "addr":
        x, y, dims = a[:, None], b[None, :], 2
    elif kind == "addmv":
        x, y, dims = a, b[:, None], 2
    else:
        x, y, dims = a, b, 2 if kind == "addmm" else 3
    _fits(op, given, x, y, dims)
    three = (x, y) if dims == 3 else (x[None], y[None])
    shape = (*x.shape[:-1], y.shape[-1])[: 1 if kind == "addmv" else None]
    shape = shape[1:] if kind == "addbmm" else shape
    if to.dtype != x.dtype or torch.broadcast_shapes(to.shape, shape) != shape:
        refused(op.func, *given)
    if kind in ("addmm", "baddbmm") and alpha == beta == 1:
        whole = product(op, *three, partial(_own_addition, kind), to)
        out = whole if dims == 3 else whole[0]
    else:
        out = product(op, *three)
        out = out if dims == 3 else out[0]
        out = out[:, 0] if kind == "addmv" else op.chain("add", out) if kind == "addbmm" else out
        out = op.mul(alpha, out)
        out = op.add(op.mul(to, beta), out) if beta != 0 else out
    if not op.name.endswith("_"):
        return out
    if to.shape != out.shape and kind != "addbmm":
        refused(op.func, *given)
    return write(op, to.resize_(out.shape), out)


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
    op: Operator,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll: int = 1,
) -> torch.Tensor:
    op.check(a, b, c)
    factors = []
    for x, places in ((a, expand_a), (b, expand_b), (c, expand_c)):
        for d in places:
            x = x.unsqueeze(d)
        factors.append(x)
    out = op.mul(op.mul(factors[0], factors[1]), factors[2])
    return op.sum(out, list(summed)) if len(summed) else out
