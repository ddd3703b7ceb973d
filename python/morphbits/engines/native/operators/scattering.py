"""Additions to places that an index names, and the gradients of gathering."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from morphbits.engines.native.arithmetic import Hand
from morphbits.engines.native.operators.elementwise import write
from morphbits.engines.native.rules import check, refused, rule

if TYPE_CHECKING:
    from morphbits.engines.native.mode import RandomRounding

_ORDER = "one addition a source element, in the order of the sources"


def _moved(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The axis `dim` first, everything else flat behind it."""
    return x.movedim(dim, 0).reshape(x.shape[dim], -1)


@rule("index_add index_add_", f"{_ORDER}; a factor alpha is one operation more")
def _index_add(
    mode: RandomRounding,
    func: Any,
    to: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
    alpha: float = 1,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if not to.is_floating_point():
        return func(to, dim, index, source, alpha=alpha)
    if to.dim() == 0 or source.dim() != to.dim() or index.dim() != 1 or source.dtype != to.dtype:
        refused(func, to, dim, index, source)
    check(func, to, source)
    hand = Hand(mode, name)
    others = [n for d, n in enumerate(to.shape) if d != dim % to.dim()]
    if index.shape[0] != source.shape[dim] or others != [
        n for d, n in enumerate(source.shape) if d != dim % to.dim()
    ]:
        refused(func, to, dim, index, source)
    result = hand.scatter_add(
        _moved(to, dim).t(), index.long(), hand.mul(alpha, _moved(source, dim).t())
    )
    moved_shape = [to.shape[dim], *others]
    result = result.t().reshape(moved_shape).movedim(0, dim)
    return write(mode, name, to, result) if name.endswith("_") else result.contiguous()


@rule("scatter_add scatter_add_", _ORDER)
def _scatter_add(
    mode: RandomRounding,
    func: Any,
    to: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if not to.is_floating_point() or index.numel() == 0:
        return func(to, dim, index, source)
    if to.dim() == 0:
        to1, index, source = to.view(1), index.reshape(1), source.reshape(1)
    else:
        to1 = to
    if index.dim() != to1.dim() or source.dim() != to1.dim() or source.dtype != to.dtype:
        refused(func, to, dim, index, source)
    check(func, to, source)
    if any(i > s for i, s in zip(index.shape, source.shape, strict=True)):
        refused(func, to, dim, index, source)
    source = source[tuple(slice(n) for n in index.shape)]
    flat = _flat_index(to1.shape, dim, index)
    hand = Hand(mode, name)
    result = hand.scatter_add(to1.reshape(1, -1), flat.reshape(-1), source.reshape(1, -1))
    result = result.view(to.shape)
    return write(mode, name, to, result) if name.endswith("_") else result


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


@rule("index_put index_put_ _index_put_impl_ _unsafe_index_put", _ORDER, halves=False)
def _index_put(
    mode: RandomRounding,
    func: Any,
    to: torch.Tensor,
    indices: Any,
    values: torch.Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> torch.Tensor:
    name = func.overloadpacket.__name__
    if values.dtype != to.dtype:
        refused(func, to, indices, values, accumulate)
    if not accumulate or not to.is_floating_point():
        if name in ("_index_put_impl_",):
            return func(to, indices, values, accumulate, unsafe)
        return func(to, indices, values, accumulate)
    check(func, to, values)
    places = torch.arange(to.numel()).view(to.shape)
    index = torch.ops.aten.index.Tensor(places, indices)
    values = values.expand(index.shape)
    hand = Hand(mode, name)
    result = hand.scatter_add(to.reshape(1, -1), index.reshape(-1), values.reshape(1, -1))
    result = result.view(to.shape)
    return write(mode, name, to, result) if name.endswith("_") else result


@rule("embedding_dense_backward", _ORDER)
def _embedding_dense_backward(
    mode: RandomRounding,
    func: Any,
    gradient: torch.Tensor,
    indices: torch.Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> torch.Tensor:
    check(func, gradient)
    hand = Hand(mode, "embedding_dense_backward")
    width = gradient.shape[-1]
    index, rows = indices.reshape(-1).long(), gradient.reshape(-1, width)
    keep = index != padding_idx
    index, rows = index[keep], rows[keep]
    if scale_grad_by_freq:
        counts = torch.bincount(index, minlength=num_weights)[index].to(rows.dtype)
        rows = hand.mul(rows, hand.div(1, counts)[:, None])
    zeros = torch.zeros(width, num_weights, dtype=rows.dtype)
    return hand.scatter_add(zeros, index, rows.t()).t().contiguous()
