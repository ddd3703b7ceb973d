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
    _assert_async _has_same_storage_numel _local_scalar_dense
    _new_zeros_with_same_feature_meta _pack_padded_sequence _pin_memory
    _record_function_enter_new _record_function_exit _reshape_alias _unique2 _unsafe_index
    _unsafe_view _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    abs abs_ absolute adaptive_max_pool2d adaptive_max_pool3d alias all amax amin aminmax any
    argmax argmin argsort as_strided as_strided_ as_strided_scatter bernoulli bernoulli_
    binomial bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
    bitwise_xor block_diag broadcast_tensors bucketize cat cauchy_ ceil ceil_ channel_shuffle
    chunk clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clone constant_pad_nd
    contiguous copysign count_nonzero cummax cummin detach detach_ diag diag_embed diagonal
    diagonal_backward diagonal_scatter embedding empty empty_like empty_strided eq eq_ equal
    expand expand_copy exponential_ eye fill fill_ flip floor floor_ fmax fmin frac frac_
    fractional_max_pool2d fractional_max_pool3d frexp full full_like gather ge ge_ geometric_
    gt gt_ hardshrink hardshrink_backward hardtanh hardtanh_ hardtanh_backward heaviside index
    index_copy index_copy_ index_fill index_fill_ index_select is_nonzero is_pinned
    is_same_size isfinite isin isinf isnan kthvalue le le_ lift lift_fresh log_normal_
    logical_and logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor
    logical_xor_ lt lt_ masked_fill masked_fill_ masked_scatter masked_scatter_
    masked_scatter_backward masked_select max max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d max_unpool3d maximum median min minimum mode msort nan_to_num nan_to_num_
    nanmedian narrow ne ne_ neg neg_ new_empty new_empty_strided new_full new_ones new_zeros
    nextafter nextafter_ nonzero normal_ ones ones_like permute pixel_shuffle pixel_unshuffle
    poisson rand rand_like randint randn randn_like random_ randperm reflection_pad1d
    reflection_pad2d reflection_pad3d relu relu_ repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d reshape resize_ resize_as_ roll rot90 scalar_tensor
    scatter scatter_ searchsorted select select_backward select_scatter set_ sgn sign sign_
    signbit slice slice_backward slice_scatter softshrink_backward sort split split_with_sizes
    squeeze squeeze_ stack t t_ take threshold threshold_ topk transpose transpose_ tril tril_
    triu triu_ trunc trunc_ unbind unfold unfold_copy uniform_ unique_consecutive unique_dim
    unsafe_chunk unsafe_split unsqueeze unsqueeze_ upsample_nearest1d upsample_nearest2d
    upsample_nearest3d view view_as_real view_copy where zero_ zeros zeros_like
    """.split()
)

# Of these, the ones that bring operands of several types to one: this would round unperturbed.
ONE_TYPE = frozenset(
    """
    as_strided_scatter block_diag bucketize cat clamp clamp_ clamp_max clamp_max_ clamp_min
    clamp_min_ copysign diagonal_scatter eq eq_ equal fill_ fmax fmin ge ge_ gt gt_ hardtanh
    hardtanh_ heaviside index_copy index_copy_ index_fill index_fill_ isin le le_ lt lt_
    masked_fill masked_fill_ masked_scatter masked_scatter_ max maximum min minimum nan_to_num
    nan_to_num_ ne ne_ nextafter nextafter_ scatter scatter_ searchsorted select_scatter
    slice_scatter stack threshold threshold_ where
    """.split()
)


def short_name(func: Any) -> str:
    """An operator of torch by its own name, one of another library as `library::name`."""
    name = str(func.overloadpacket.__name__)
    return name if func.namespace in ("aten", "profiler") else f"{func.namespace}::{name}"


def passes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator with just these arguments rounds nothing."""
    name = short_name(func)
    if name not in PASS or "reduce" in func._overloadname:  # scatter(reduce="add")
        return False
    if name not in ("abs", "abs_", "sgn") and name not in ONE_TYPE:
        return True
    leaves = tree_leaves((args, kwargs))
    types = {x.dtype for x in leaves if isinstance(x, torch.Tensor) and x.dtype != torch.bool}
    if name.startswith(("index_", "scatter")) or func._overloadname in ("dim_max", "dim_min"):
        types.discard(torch.int64)  # an index is beside the values
    if name not in ONE_TYPE:
        return not any(dtype.is_complex for dtype in types)
    if any(isinstance(x, float) for x in leaves):  # makes floating-point numbers of integers
        return all(dtype.is_floating_point for dtype in types) and len(types) <= 1
    return len(types) <= 1


def check(func: Any, *tensors: torch.Tensor) -> None:
    """UserError unless the kernels take these tensors."""
    for x in tensors:
        known = x.dtype in (torch.float32, torch.float64) and x.device.type in ("cpu", "cuda")
        if not known:
            raise UserError(
                "the native engine rounds float32 and float64 on CPUs and CUDA devices, but "
                f"{func} was given {x.dtype} on {x.device}; convert the model and its inputs"
            )


def onednn() -> UserError:
    return UserError(
        "the native engine has no rule for tensors in oneDNN's own layout (to_mkldnn, "
        "torch.jit.optimize_for_inference, torch.utils.mkldnn): use the model as it was before"
    )


def refuse_overlap(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Have torch refuse to write in place what it reads somewhere else in the same memory: a rule
    would compute on copies and take it."""
    to, values = args[0], (*args[1:], *kwargs.values())
    if not isinstance(to, torch.Tensor) or not to.numel() or to.layout != torch.strided:
        return
    twice = any(n > 1 and step == 0 for n, step in zip(to.shape, to.stride(), strict=True))
    if twice or any(isinstance(x, torch.Tensor) and _overlaps(to, x) for x in values):
        refused(func, *args, **kwargs)


def _overlaps(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether dense tensors share a part of their memory, but are not the same elements; torch
    does not ask this of tensors with gaps."""
    if a is b or not b.numel() or b.layout != torch.strided:
        return False
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    if not (_dense(a) and _dense(b)):
        return False
    (low, high), (start, end) = (
        (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in (a, b)
    )
    if (low, high) == (start, end):
        return a.stride() != b.stride()
    return low < end and start < high


def _dense(x: torch.Tensor) -> bool:
    """Whether the elements fill a piece of memory, each once."""
    step = 1
    for stride, n in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != step:
            return False
        step *= n
    return True


def refused(func: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Have torch say, in its own words, what is wrong with the arguments."""
    func(*args, **kwargs)
    raise UserError(f"the native engine has no rule for {func} on these arguments")
