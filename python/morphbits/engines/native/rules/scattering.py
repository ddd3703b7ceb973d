"""Additions to places that an index names, and the gradients of gathering."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.elementwise import write
from morphbits.engines.native.rules.registry import apart, refused, rule

_ORDER = "one addition a source element, in the order of the sources"


def _moved(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The axis `dim` first, everything else flat behind it."""
    moved = x.movedim(dim, 0)
    return moved.reshape(moved.shape[0], prod(moved.shape[1:]))


@rule("index_add index_add_", f"{_ORDER}; a factor alpha is one operation more")
def _index_add(
    op: Operator,
    to: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
    alpha: float = 1,
) -> torch.Tensor:
    if not to.is_floating_point():
        return op.func(to, dim, index, source, alpha=alpha)
    if to.dim() == 0 and source.dim() <= 1 and source.numel() == index.numel() == 1:
        one, at, added = to.reshape(1), index.reshape(1), source.reshape(1)
        result = _index_add(op, one, 0, at, added, alpha)
        return to if op.name.endswith("_") else result.reshape(())
    if to.dim() == 0 or source.dim() != to.dim() or index.dim() != 1 or source.dtype != to.dtype:
        refused(op.func, to, dim, index, source)
    op.check(to, source)
    others = [n for d, n in enumerate(to.shape) if d != dim % to.dim()]
    if index.shape[0] != source.shape[dim] or others != [
        n for d, n in enumerate(source.shape) if d != dim % to.dim()
    ]:
        refused(op.func, to, dim, index, source)
    target, added = _moved(to, dim).t(), _moved(source, dim).t()
    if alpha != 1:
        added = op.mul(alpha, added)
    in_place = op.name.endswith("_") and not op.context.widened and to.is_contiguous()
    separate = source is not to and apart(to, source) and apart(to, index)
    if in_place and separate and target.data_ptr() == to.data_ptr():
        op.scatter_add(target, index.long(), added, in_place=True)
        return to
    result = op.scatter_add(target.clone(), index.long(), added, in_place=True)
    moved_shape = [to.shape[dim], *others]
    result = result.t().reshape(moved_shape).movedim(0, dim)
    return write(op, to, result) if op.name.endswith("_") else result.contiguous()


@rule("scatter_add scatter_add_", _ORDER)
def _scatter_add(
    op: Operator,
    to: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
) -> torch.Tensor:
    if not to.is_floating_point() or index.numel() == 0 or source.numel() == 0:
        return op.func(to, dim, index, source)
    if to.dim() == 0:
        to1, index, source = to.view(1), index.reshape(1), source.reshape(1)
    else:
        to1 = to
    if index.dim() != to1.dim() or source.dim() != to1.dim() or source.dtype != to.dtype:
        refused(op.func, to, dim, index, source)
    op.check(to, source)
    if any(i > s for i, s in zip(index.shape, source.shape, strict=True)):
        refused(op.func, to, dim, index, source)
    source = source[tuple(slice(n) for n in index.shape)]
    flat = _flat_index(to1.shape, dim, index)
    result = op.scatter_add(to1.reshape(1, -1), flat.reshape(-1), source.reshape(1, -1))
    result = result.view(to.shape)
    return write(op, to, result) if op.name.endswith("_") else result


def _flat_index(shape: torch.Size, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Where the elements that `index` names along `dim` lie in a contiguous tensor of `shape`."""
    flat = torch.zeros_like(index)
    step = prod(shape)
    for d, n in enumerate(shape):
        step //= max(n, 1)
        if d == dim % len(shape):
            if int(index.min()) < 0 or int(index.max()) >= n:
                raise IndexError(f"an index is out of range: the size is {n}")
            at = index
        else:
            at = torch.arange(index.shape[d]).view(
                [-1 if e == d else 1 for e in range(len(shape))]
            )
        flat = flat + at * step
    return flat


@rule("index_put index_put_ _index_put_impl_ _unsafe_index_put", _ORDER)
def _index_put(
    op: Operator,
    to: torch.Tensor,
    indices: Any,
    values: torch.Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> torch.Tensor:
    if values.dtype != to.dtype:
        mask = all(i is None or i.dtype in (torch.bool, torch.uint8) for i in indices)
        if values.numel() != 1 or accumulate or not (mask and to.is_floating_point()):
            refused(op.func, to, indices, values, accumulate)
        values = op.to(values, to.dtype)
    if not accumulate or not to.is_floating_point():
        if op.name in ("_index_put_impl_",):
            return op.func(to, indices, values, accumulate, unsafe)
        return op.func(to, indices, values, accumulate)
    op.check(to, values)
    places = torch.arange(to.numel()).view(to.shape)
    index = torch.ops.aten.index.Tensor(places, indices)
    values = values.expand(index.shape)
    result = op.scatter_add(to.reshape(1, -1), index.reshape(-1), values.reshape(1, -1))
    result = result.view(to.shape)
    return write(op, to, result) if op.name.endswith("_") else result


@rule("embedding_dense_backward", _ORDER)
def _embedding_dense_backward(
    op: Operator,
    gradient: torch.Tensor,
    indices: torch.Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> torch.Tensor:
    op.check(gradient)
    width = gradient.shape[-1]
    index, rows = indices.reshape(-1).long(), gradient.reshape(-1, width)
    keep = index != padding_idx
    index, rows = index[keep], rows[keep]
    if scale_grad_by_freq:
        counts = torch.bincount(index, minlength=num_weights)[index].to(rows.dtype)
        rows = op.mul(rows, op.div(1, counts)[:, None])
    zeros = torch.zeros(num_weights, width, dtype=rows.dtype)
    return op.scatter_add(zeros.t(), index, rows.t(), in_place=True).t()


def _joined(
    op: Operator,
    kind: str,
    to_S: torch.Tensor,
    index_N: torch.Tensor,
    source_N: torch.Tensor,
    include_self: bool,
) -> torch.Tensor:
    """`to` with the sources joined to it at their places, in their order."""
    count = torch.bincount(index_N, minlength=len(to_S))
    touched = count > 0
    if kind in ("amax", "amin"):  # rounds nothing
        return to_S.scatter_reduce(0, index_N, source_N, kind, include_self=include_self)
    neutral = float(kind == "prod")
    out = to_S if include_self else torch.where(touched, neutral, to_S).to(to_S.dtype)
    if kind == "prod":
        # the k-th source of every place in one step
        order = index_N.argsort(stable=True)
        first = torch.cumsum(count, 0) - count
        turn = torch.empty_like(index_N)
        turn[order] = torch.arange(len(index_N)) - first[index_N[order]]
        out = out.clone()
        for k in range(int(count.max()) if len(count) else 0):
            now = turn == k
            out[index_N[now]] = op.mul(out[index_N[now]], source_N[now])
        return out
    out = op.scatter_add(out[None], index_N, source_N[None])[0]
    if kind == "mean":
        terms = (count + include_self).clamp(min=1).to(out.dtype)
        out = torch.where(touched, op.div(out, terms), out)
    return out


_REDUCED = (
    "sum, prod: one operation a source element, in the order of the sources; mean: then one "
    "division; greatest and least: exact"
)


@rule("scatter_reduce scatter_reduce_ index_reduce index_reduce_", _REDUCED)
def _reduce_into(
    op: Operator,
    to: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> torch.Tensor:
    if not to.is_floating_point() or index.numel() == 0 or source.numel() == 0:
        return op.func(to, dim, index, source, reduce, include_self=include_self)
    if source.dtype != to.dtype:
        refused(op.func, to, dim, index, source, reduce, include_self=include_self)
    op.check(to, source)
    kind = {"add": "sum", "multiply": "prod"}.get(reduce, reduce)
    op.func(
        to.to("meta"), dim, index.to("meta"), source.to("meta"), reduce, include_self=include_self
    )
    shape = to.shape or torch.Size([1])
    if op.name.startswith("index_"):
        along = [-1 if d == dim % len(shape) else 1 for d in range(len(shape))]
        index = index.reshape(along).expand(source.shape or (1,))
    index = index.reshape(index.shape or (1,))
    source = source.reshape(source.shape or (1,))[tuple(slice(n) for n in index.shape)]
    flat = _flat_index(shape, dim, index).reshape(-1)
    out = _joined(op, kind, to.reshape(-1), flat, source.reshape(-1), include_self)
    return write(op, to, out.view(to.shape)) if op.name[-1] == "_" else out.view(to.shape)


@rule("put put_", f"with accumulate: {_ORDER}; else exact")
def _put(
    op: Operator,
    to: torch.Tensor,
    index: torch.Tensor,
    source: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    if not (accumulate and to.is_floating_point()) or source.dtype != to.dtype:
        return op.func(to, index, source, accumulate)
    op.check(to, source)
    at = torch.where(index < 0, index + to.numel(), index).reshape(-1)
    out = op.scatter_add(to.reshape(1, -1), at, source.reshape(1, -1))
    return write(op, to, out.view(to.shape)) if op.name[-1] == "_" else out.view(to.shape)


@rule("bincount", f"weights: {_ORDER}; a count rounds nothing", sixteen_bits=True)
def _bincount(
    op: Operator,
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    minlength: int = 0,
) -> torch.Tensor:
    if weights is None:
        return op.func(x, None, minlength)
    zeros = torch.zeros_like(op.func(x, None, minlength)[None], dtype=torch.float32)
    if weights.dtype != torch.float32:  # as in torch
        zeros, weights = zeros.double(), op.to(weights, torch.float64)
    op.check(weights)
    if weights.shape != x.shape:
        refused(op.func, x, weights, minlength)
    return op.scatter_add(zeros, x.long(), weights[None])[0]
