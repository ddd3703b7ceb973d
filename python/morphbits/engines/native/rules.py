"""The table of operators: which have a rule, and what each rule does.

A rule is a function of (mode, the operator, its arguments). The table in notes/native-engine.md
is printed from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.utils._pytree import tree_leaves

from morphbits.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How one operator is perturbed.

    order: what its additions and operations are, in words; halves: whether it takes float16 and
    bfloat16 itself (else they are widened before and rounded after it).
    """

    handler: Callable[..., Any]
    room: str
    order: str
    halves: bool = False


RULES: dict[str, Rule] = {}


def rule(names: str, order: str, halves: bool = False) -> Callable[[Callable], Callable]:
    """Enter a handler for the operators `names` (of aten, all overloads) into the table."""

    def enter(handler: Callable) -> Callable:
        room = handler.__module__.rpartition(".")[2]
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = Rule(handler, room, order, halves)
        return handler

    return enter


# Operators that round nothing: they move, compare, count or select, or make values (constants and
# random numbers are the program's input, not its arithmetic).
PASS = frozenset(
    """
    _assert_async _local_scalar_dense _record_function_enter_new _record_function_exit
    _reshape_alias _unsafe_view abs abs_ alias all amax amin any arange argmax argmin as_strided
    bernoulli bernoulli_ bitwise_and bitwise_not bitwise_or broadcast_tensors cat ceil ceil_ chunk
    clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clone constant_pad_nd contiguous detach
    detach_ diagonal embedding empty empty_like empty_strided eq expand fill fill_ flip floor
    floor_ full full_like gather ge gt index index_select is_same_size isfinite isinf isnan le
    lift_fresh logical_and logical_not logical_or lt masked_fill masked_fill_ max
    max_pool2d_with_indices max_pool3d_with_indices maximum min minimum narrow ne neg neg_
    new_empty new_empty_strided new_full new_ones new_zeros normal_ ones ones_like permute rand
    rand_like randint randn randn_like random_ randperm relu relu_ repeat reshape roll round round_
    scalar_tensor select select_backward sign slice slice_backward sort split split_with_sizes
    squeeze stack t take topk transpose trunc unbind unfold uniform_ unsqueeze upsample_nearest1d
    upsample_nearest2d upsample_nearest3d view view_as_real where zero_ zeros zeros_like
    """.split()
)

# Of these, the ones that bring operands of several types to one: this would round unperturbed.
ONE_TYPE = frozenset(
    """
    cat clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ eq fill_ ge gt le lt masked_fill
    masked_fill_ max maximum min minimum ne stack where
    """.split()
)


def passes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator with just these arguments rounds nothing."""
    name = func.overloadpacket.__name__
    if name not in PASS:
        return False
    if name in ("round", "round_"):  # to decimals: multiplied, rounded, divided
        return bool(func._overloadname != "decimals")
    if name not in ("arange", "abs", "abs_") and name not in ONE_TYPE:
        return True
    leaves = tree_leaves((args, kwargs))
    types = {x.dtype for x in leaves if isinstance(x, torch.Tensor) and x.dtype != torch.bool}
    if name == "arange":  # start + i·step
        return not any(isinstance(x, float) and x % 1 for x in leaves)
    if name not in ONE_TYPE:
        return not any(dtype.is_complex for dtype in types)
    if any(isinstance(x, float) for x in leaves):  # makes floating-point numbers of integers
        return all(dtype.is_floating_point for dtype in types) and len(types) <= 1
    return len(types) <= 1


def check(func: Any, *tensors: torch.Tensor) -> None:
    """UserError unless the kernels take these tensors."""
    for x in tensors:
        if x.dtype not in (torch.float32, torch.float64) or x.device.type != "cpu":
            raise UserError(
                f"the native engine rounds float32 and float64 on the CPU, but {func} was given "
                f"{x.dtype} on {x.device}; convert the model and its inputs"
            )


def refused(func: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Have torch say, in its own words, what is wrong with the arguments."""
    func(*args, **kwargs)
    raise UserError(f"the native engine has no rule for {func} on these arguments")
