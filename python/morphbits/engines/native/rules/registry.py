"""The table of operators: which have a rule, and what each rule does.

A rule is a function of the operator, which has the arithmetic, and of its arguments. From this
table, notes/operators.md is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch.utils._pytree import tree_leaves, tree_map

from morphbits.engines.native import layouts
from morphbits.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How one operator is perturbed.

    order: what its additions and operations are, in words; sixteen_bits: whether it takes
    float16 and bfloat16 itself (else they are widened before and rounded after it).
    """

    handler: Callable[..., Any]
    module: str
    order: str
    sixteen_bits: bool = False


RULES: dict[str, Rule] = {}


def rule(names: str, order: str, sixteen_bits: bool = False) -> Callable[[Callable], Callable]:
    """Enter a handler for the operators `names` (of aten, all overloads) into the table."""

    def enter(handler: Callable) -> Callable:
        module = handler.__module__.rpartition(".")[2]
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = Rule(handler, module, order, sixteen_bits)
        return handler

    return enter


# Operators that round nothing: they move, compare, count or select, or make values (constants and
# random numbers are the program's input, not its arithmetic).
PASS = frozenset(
    """
    _aminmax _assert_async _chunk_cat _conj _conj_copy _conj_physical _cummax_helper
    _cummin_helper _foreach_clone _foreach_frac _foreach_frac_ _foreach_max _foreach_zero
    _functional_assert_async _fw_primal_copy _has_same_storage_numel _is_all_true _is_any_true
    _lazy_clone _linalg_check_errors _local_scalar_dense _make_dual_copy _neg_view _neg_view_copy
    _new_zeros_with_same_feature_meta _pack_padded_sequence _pin_memory _record_function_enter_new
    _record_function_exit _reshape_alias _reshape_alias_copy _reshape_copy _resize_output_ _stack
    _unique _unique2 _unsafe_index _unsafe_masked_index _unsafe_view _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d abs abs_ absolute adaptive_max_pool2d
    adaptive_max_pool3d alias alias_copy all amax amin aminmax angle any argmax argmin argsort
    as_strided as_strided_ as_strided_copy as_strided_scatter bernoulli bernoulli_ binomial
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
    block_diag broadcast_tensors bucketize cat cauchy cauchy_ ceil ceil_ channel_shuffle chunk
    clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clone complex conj_physical
    conj_physical_ constant_pad_nd contiguous copysign copysign_ count_nonzero cummax cummin
    detach detach_ detach_copy diag diag_embed diagonal diagonal_backward diagonal_copy
    diagonal_scatter embedding empty empty_like empty_permuted empty_strided eq eq_ equal expand
    expand_copy exponential exponential_ eye fill fill_ flip floor floor_ fmax fmin frac frac_
    fractional_max_pool2d fractional_max_pool3d frexp full full_like gather ge ge_ geometric
    geometric_ gt gt_ hardshrink hardshrink_backward hardtanh hardtanh_ hardtanh_backward
    hash_tensor heaviside heaviside_ index index_copy index_copy_ index_fill index_fill_
    index_select is_nonzero is_pinned is_same_size is_set_to isfinite isin isinf isnan isneginf
    isposinf kthvalue le le_ lift lift_fresh lift_fresh_copy log_normal log_normal_ logical_and
    logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_ lt lt_
    lu_unpack masked_fill masked_fill_ masked_scatter masked_scatter_ masked_scatter_backward
    masked_select max max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
    maximum median min minimum mode msort nan_to_num nan_to_num_ nanmedian narrow narrow_copy ne
    ne_ neg neg_ new_empty new_empty_strided new_full new_ones new_zeros nextafter nextafter_
    nonzero nonzero_static normal_ normal_functional ones ones_like permute permute_copy
    pixel_shuffle pixel_unshuffle poisson rand rand_like randint randint_like randn randn_like
    random random_ randperm reflection_pad1d reflection_pad2d reflection_pad3d relu relu_ repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resize resize_
    resize_as resize_as_ roll rot90 scalar_tensor scatter scatter_ searchsorted select
    select_backward select_copy select_scatter set set_ sgn sgn_ sign sign_ signbit slice
    slice_backward slice_copy slice_inverse slice_scatter softshrink_backward sort split
    split_copy split_with_sizes split_with_sizes_copy squeeze squeeze_ squeeze_copy stack t t_
    t_copy take threshold threshold_ topk transpose transpose_ transpose_copy tril tril_ triu
    triu_ trunc trunc_ unbind unbind_copy unfold unfold_copy uniform uniform_ unique_consecutive
    unique_dim unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
    unsqueeze_ unsqueeze_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d view
    view_as_complex view_as_complex_copy view_as_real view_as_real_copy view_copy where zero zero_
    zeros zeros_like
    """.split()
)

# Of torch.distributed: what one rank sends, another one has. (Those that add have rules.)
PASS |= frozenset(
    """
    _c10d_functional::_wrap_tensor_autograd _c10d_functional::all_gather_into_tensor
    _c10d_functional::all_gather_into_tensor_coalesced
    _c10d_functional::all_gather_into_tensor_out _c10d_functional::all_to_all_single
    _c10d_functional::batch_p2p_ops _c10d_functional::broadcast _c10d_functional::broadcast_
    _c10d_functional::irecv _c10d_functional::isend _c10d_functional::wait_tensor
    _dtensor::shard_dim_alltoall c10d::_allgather_base_ c10d::allgather_
    c10d::allgather_coalesced_ c10d::allgather_into_tensor_coalesced_ c10d::alltoall_
    c10d::alltoall_base_ c10d::barrier c10d::broadcast_ c10d::check_for_nan c10d::gather_
    c10d::monitored_barrier_ c10d::recv_ c10d::recv_any_source_ c10d::scatter_ c10d::send
    """.split()
)

# Of these, the ones that bring operands of several types to one: this would round unperturbed.
ONE_TYPE = frozenset(
    """
    _chunk_cat _stack as_strided_scatter block_diag bucketize cat clamp clamp_ clamp_max
    clamp_max_ clamp_min clamp_min_ copysign copysign_ diagonal_scatter eq eq_ equal fill_ fmax
    fmin ge ge_ gt gt_ hardtanh hardtanh_ heaviside heaviside_ index_copy index_copy_ index_fill
    index_fill_ isin le le_ lt lt_ masked_fill masked_fill_ masked_scatter masked_scatter_ max
    maximum min minimum nan_to_num nan_to_num_ ne ne_ nextafter nextafter_ scatter scatter_
    searchsorted select_scatter slice_scatter stack threshold threshold_ where
    """.split()
)


NO_VALUES = ("condition", "dim", "index", "mask", "sorter")  # arguments beside the values


@cache
def operator_name(func: Any) -> str:
    """Its name in its library."""
    return str(func.overloadpacket.__name__)


@cache
def short_name(func: Any) -> str:
    """An operator of torch by its own name, one of another library as `library::name`."""
    name = operator_name(func)
    return name if func.namespace in ("aten", "profiler") else f"{func.namespace}::{name}"


# Of the operators that pass, those that round complex numbers.
REAL = frozenset("abs abs_ absolute angle sgn sgn_".split())

# Of the operators with a rule, those that only move (where they neither accumulate nor convert).
_MOVE = frozenset(
    """
    _efficientzerotensor _foreach_copy _foreach_copy_ _foreach_zero_ _index_put_impl_ _to_copy
    _unsafe_index_put copy copy_ im2col index_put index_put_ put put_
    """.split()
)


def passes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator with just these arguments rounds nothing."""
    name = short_name(func)
    leaves = tree_leaves((args, kwargs))
    if name in _MOVE and any(map(is_complex, leaves)):
        return _moves(func, args, kwargs)
    if name not in PASS or "reduce" in func._overloadname:  # scatter(reduce="add")
        return False
    if name in REAL and any(map(is_complex, leaves)):
        return False
    to = tree_leaves([kwargs.get(n) for n in written(func)])
    if name not in ONE_TYPE and not to:
        return True
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if name in ONE_TYPE:
        given = named(func, args, kwargs)
        values = tree_leaves([x for n, x in given.items() if n not in NO_VALUES])
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
    types = {x.dtype for x in tensors if x.dtype != torch.bool}
    numbers = {dtype for dtype in types if dtype.is_floating_point or dtype.is_complex}
    if name not in ONE_TYPE:  # values, beside indices, in the type of what is written
        read = tree_leaves((args, {n: x for n, x in kwargs.items() if n not in written(func)}))
        return len(numbers) <= 1 and (not numbers or any(map(is_floating, read)))
    if func._overloadname in ("dim_max", "dim_min"):
        types.discard(torch.int64)  # indices are written beside the values
    if name.startswith("copysign") or any(isinstance(x, float) for x in leaves):
        return types == numbers and len(types) <= 1  # of integers, floating-point numbers
    return len(types) <= 1


def _moves(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that can only move does so here, for complex numbers: every value is one
    of the type that it becomes."""
    given = named(func, args, kwargs)
    if given.get("accumulate"):
        return False
    to = given.get("dtype") or tree_leaves(args)[0].dtype
    values = [x.dtype for x in tree_leaves((args, kwargs)) if is_floating(x)]
    return not (to.is_floating_point or to.is_complex) or all(
        torch.promote_types(dtype.to_real(), to.to_real()) == to.to_real() for dtype in values
    )


def named(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by their names."""
    return {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}


@cache
def makes_a_type(func: Any) -> bool:
    """Whether an operator that writes into a tensor computes in the type of that."""
    plain = func._overloadname.removesuffix("out").removesuffix("_") or "default"
    forms = (func, getattr(func.overloadpacket, plain, func))
    return any(a.name == "dtype" for form in forms for a in form._schema.arguments)


@cache
def written(func: Any) -> list[str]:
    """The names of the arguments that results are written into."""
    return [a.name for a in func._schema.arguments if a.kwarg_only and a.is_out]


def is_floating(x: Any) -> bool:
    """Whether this is a tensor of floating-point or complex numbers."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def is_complex(x: Any) -> bool:
    """Whether this is a complex tensor, number or type."""
    if isinstance(x, torch.Tensor):
        return x.is_complex()
    return isinstance(x, complex) or (isinstance(x, torch.dtype) and x.is_complex)


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


def refuse_overlap(func: Any, to: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Have torch refuse to write into `to` what it reads somewhere else in the same memory: a rule
    would compute on copies and take it."""
    if not isinstance(to, torch.Tensor) or not to.numel() or to.layout != torch.strided:
        return
    if not kwargs and to.is_contiguous() and all(map(partial(apart, to), args)):
        return
    twice = any(n > 1 and step == 0 for n, step in zip(to.shape, to.stride(), strict=True))
    values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if twice or any(_overlaps(to, x) for x in values):
        refused(func, *args, **kwargs)


def apart(to: torch.Tensor, x: Any) -> bool:
    """Whether this is `to` itself, or no tensor or list, or lies in other memory."""
    if x is to or isinstance(x, int | float):
        return True
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        return False
    return x.untyped_storage()._cdata != to.untyped_storage()._cdata


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


def refuse_as_torch(func: Any, args: Any, kwargs: Any) -> None:
    """Raise what torch raises of these shapes and types."""
    try:
        layouts.on_meta(func, args, kwargs)
    except NotImplementedError:  # it knows only tensors with data
        return
    except RuntimeError:
        func(*tree_map(_copied, args), **tree_map(_copied, kwargs))


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


def refused(func: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Have torch say, in its own words, what is wrong with the arguments."""
    func(*args, **kwargs)
    raise UserError(f"the native engine has no rule for {func} on these arguments")
