"""Bags of embeddings, and rows whose norm is limited (EmbeddingBag.cpp, Embedding.cpp)."""

from __future__ import annotations

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import rule
from morphbits.errors import UserError

T = torch.Tensor
_SUM, _MEAN, _MAX = 0, 1, 2


def _bags(offsets: T, count: int, include_last_offset: bool) -> tuple[T, int]:
    """The bag of each index, and how many bags there are."""
    starts = offsets[:-1] if include_last_offset and len(offsets) else offsets
    bags = len(starts)
    return torch.searchsorted(starts.long(), torch.arange(count), right=True) - 1, bags


@rule(
    "_embedding_bag _embedding_bag_forward_only",
    "a row times its weight, one addition a row, in the order of the indices; mean: one division",
)
def _embedding_bag(
    op: Operator,
    weight: T,
    indices: T,
    offsets: T,
    scale_grad_by_freq: bool = False,
    kind: int = _SUM,
    sparse: bool = False,
    per_sample_weights: T | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[T, T, T, T]:
    op.check(weight)
    # which row is in which bag, and the greatest: these round nothing
    out, bag_of, sizes, greatest = op.func(
        weight,
        indices,
        offsets,
        scale_grad_by_freq,
        kind,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )
    if kind == _MAX:
        return out, bag_of, sizes, greatest
    bag, bags = _bags(offsets, len(indices), include_last_offset)
    kept = indices != padding_idx
    rows, bag = weight[indices[kept].long()], bag[kept]
    if per_sample_weights is not None:
        rows = op.mul(rows, per_sample_weights[kept][:, None])
    zeros = torch.zeros(bags, weight.shape[1], dtype=weight.dtype)
    total = op.scatter_add(zeros.t(), bag, rows.t(), in_place=True).t()
    if kind == _MEAN:
        count = torch.bincount(bag, minlength=bags).clamp(min=1)
        total = op.div(total, count.to(weight.dtype)[:, None])
    return total, bag_of, sizes, greatest


@rule(
    "_embedding_bag_backward",
    "the bag's gradient times the row's weight, divided by the bag's size (mean); one addition a "
    "row, in the order of the indices",
)
def _embedding_bag_backward(
    op: Operator,
    gradient: T,
    indices: T,
    offsets: T,
    bag_of: T,
    sizes: T,
    greatest: T,
    num_weights: int,
    scale_grad_by_freq: bool,
    kind: int,
    sparse: bool,
    per_sample_weights: T | None,
    padding_idx: int = -1,
) -> T:
    op.check(gradient)
    if sparse or scale_grad_by_freq:  # torch's kernel takes the counts of other rows
        name = "sparse" if sparse else "scale_grad_by_freq"
        raise UserError(f"the native engine has no rule for {op.func} with {name}=True")
    width = gradient.shape[1]
    if kind == _MAX:
        filled = sizes > 0
        zeros = torch.zeros(width, num_weights, dtype=gradient.dtype)
        index, source = greatest[filled].long().t(), gradient[filled].t()
        return op.scatter_add(zeros, index, source).t().contiguous()
    kept = indices != padding_idx
    bag_of = bag_of if len(bag_of) else _bags(offsets, len(indices), False)[0]
    index, bag = indices[kept].long(), bag_of[kept].long()
    rows = gradient[bag]
    if per_sample_weights is not None:
        rows = op.mul(rows, per_sample_weights[kept][:, None])
    if kind == _MEAN:
        rows = op.div(rows, sizes[bag].to(rows.dtype)[:, None])
    zeros = torch.zeros(num_weights, width, dtype=rows.dtype)
    return op.scatter_add(zeros.t(), index, rows.t(), in_place=True).t()


@rule("_embedding_bag_per_sample_weights_backward", "the products of two rows, a chain")
def _per_sample_weights_backward(
    op: Operator,
    gradient: T,
    weight: T,
    indices: T,
    offsets: T,
    bag_of: T,
    kind: int,
    padding_idx: int = -1,
) -> T:
    op.check(gradient, weight)
    bag = bag_of if len(bag_of) else _bags(offsets, len(indices), False)[0]
    products = op.mul(gradient[bag.long()], weight[indices.long()])
    dots = op.chain("add", products.t().contiguous())
    return torch.where(indices == padding_idx, torch.zeros((), dtype=dots.dtype), dots)


@rule(
    "embedding_renorm_",
    "the norm as `linalg_vector_norm`; where it is too great, the row times limit / (norm + 10⁻⁷)",
)
def _embedding_renorm(op: Operator, weight: T, indices: T, max_norm: float, norm_type: float) -> T:
    op.check(weight)
    at = indices.reshape(-1).unique().long()
    rows = weight[at]
    norms = op.redispatch(torch.ops.aten.linalg_vector_norm, rows, norm_type, [1], True)
    limited = op.mul(rows, op.div(max_norm, op.add(norms, 1e-7)))
    return weight.index_copy_(0, at, torch.where(norms > max_norm, limited, rows))
