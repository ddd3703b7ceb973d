"""Operators that round nothing but bring operands of several types to one: in torch's types, each
conversion rounded by the mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import NO_VALUES, ONE_TYPE, named, refused

# The result has the type of the first operand, and the others are brought to it; of the latter,
# torch takes tensors of this one type only.
_FIRST = frozenset(
    """
    as_strided_scatter diagonal_scatter fill fill_ hardtanh hardtanh_ index_fill index_fill_
    masked_fill masked_fill_ nan_to_num nan_to_num_ select_scatter slice_scatter threshold
    threshold_
    """.split()
)
_STRICT = frozenset(
    """
    heaviside heaviside_ index_copy index_copy_ masked_scatter masked_scatter_ scatter scatter_
    """.split()
)


def in_one_type(op: Operator, args: Any, kwargs: Any) -> Any:
    """What the operator gives for its values in torch's one type; NotImplemented if it is not one
    of those, or its values need no conversion to floating-point numbers."""
    if op.name not in ONE_TYPE:
        return NotImplemented
    given = named(op.func, args, kwargs)
    values = {n: v for n, v in given.items() if n not in NO_VALUES}
    leaves = tree_leaves(values)
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    first = op.name in _FIRST or op.name in _STRICT
    dtype = args[0].dtype if first else common(tensors, [x for x in leaves if type(x) is float])
    if op.name.startswith("copysign") and not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    if op.name in _FIRST and not dtype.is_floating_point and not dtype.is_complex:
        return op.func(*args, **kwargs)  # what stands after the point is cut off, not rounded
    if not dtype.is_floating_point or all(x.dtype in (dtype, torch.bool) for x in tensors):
        return NotImplemented
    if op.name in _STRICT:
        refused(op.func, *args, **kwargs)
    if op.name.endswith("_") and args[0].dtype != dtype:
        return _in_place(op, args, kwargs)

    def convert(x: Any) -> Any:  # a truth value is 0 or 1 in every type
        exact = not isinstance(x, torch.Tensor) or x.dtype in (dtype, torch.bool)
        return x if exact else op.to(x, dtype)

    return op.func(**given | {n: tree_map(convert, v) for n, v in values.items()})


def _in_place(op: Operator, args: Any, kwargs: Any) -> Any:
    """An operator that computes in another type than that of what it writes."""
    to = args[0]
    result = op.redispatch(getattr(torch.ops.aten, op.name.removesuffix("_")), *args, **kwargs)
    if result.shape != to.shape or not torch.can_cast(result.dtype, to.dtype):
        refused(op.func, *args, **kwargs)
    return to.copy_(op.to(result, to.dtype))


def stored(x: float, dtype: torch.dtype) -> float:
    """A number as a constant of type `dtype`: to nearest."""
    with _disable_current_modes():  # of a recording, which takes it for a value of a tensor
        return torch.tensor(x, dtype=dtype).item()


def common(tensors: list[torch.Tensor], numbers: Sequence[float] = ()) -> torch.dtype:
    """Torch's result type: that of tensors with axes, where single numbers (then Python's) are
    not of a higher kind."""
    groups = [[x.dtype for x in tensors if bool(x.dim()) == axes] for axes in (True, False)]
    kinds = [
        torch.empty([1] * axes, dtype=reduce(torch.promote_types, group), device="meta")
        for axes, group in zip((1, 0), groups, strict=True)
        if group
    ]
    dtype = torch.result_type(kinds[0], kinds[-1])
    return dtype if not numbers else torch.result_type(torch.empty(1, dtype=dtype), numbers[0])
