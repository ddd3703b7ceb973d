"""Random rounding of torch operators: `random_rounding` and what it does with each operator.

A TorchDispatchMode sees every operator below autograd. One that rounds is sent to a compiled
kernel in which each elementary operation is rounded by the mode; one that moves, compares or
counts passes; any other, on floating-point data, is an error that names it: nothing is silently
left unperturbed. Semantics as Verrou's (Févotte & Lathuilière, "Verrou: a CESTAC evaluation
without recompilation", SCAN 2016), for torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morphbits import stages
from morphbits.engines.native import accumulation as orders
from morphbits.engines.native import precision as formats
from morphbits.engines.native.library import (
    MODES,
    Rounding,
    convolution,
    convolution_size,
    elementwise,
    rounded,
)
from morphbits.engines.native.selftest import self_test
from morphbits.errors import UserError

SUBNORMALS = ("keep", "flush")

# Operators that round nothing: they move, compare, count or select, or make values (constants and
# random numbers are the program's input, not its arithmetic).
_PASS = frozenset(
    """
    _assert_async _local_scalar_dense _reshape_alias _unsafe_view abs abs_ alias all amax amin any
    arange argmax argmin as_strided bernoulli bernoulli_ bitwise_and bitwise_not bitwise_or
    broadcast_tensors cat ceil ceil_ chunk clamp clamp_ clamp_max clamp_min clone constant_pad_nd
    contiguous detach detach_ diagonal empty empty_like empty_strided eq expand fill fill_ flip
    floor floor_ full full_like gather ge gt index index_select is_same_size isfinite isinf isnan
    le lift_fresh logical_and logical_not logical_or lt masked_fill masked_fill_ max
    max_pool2d_with_indices max_pool3d_with_indices maximum min minimum narrow ne neg neg_
    new_empty new_full new_ones new_zeros normal_ ones ones_like permute rand rand_like randint
    randn randn_like random_ randperm relu relu_ repeat reshape roll round round_ scalar_tensor
    select sign slice sort split split_with_sizes squeeze stack t take topk transpose trunc unbind
    unfold uniform_ unsqueeze upsample_nearest1d upsample_nearest2d upsample_nearest3d view
    view_as_real where zero_ zeros zeros_like
    """.split()
)

# Of these, the ones that bring operands of several types to one: this would round unperturbed.
_ONE_TYPE = frozenset(
    """
    cat clamp clamp_ clamp_max clamp_min eq fill_ ge gt le lt masked_fill masked_fill_ max maximum
    min minimum ne stack where
    """.split()
)


@dataclass
class Statistics:
    """What was done so far: elementary operations in all and by operator."""

    operators: dict[str, int] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        """Elementary operations that the engine rounded."""
        return sum(self.operators.values())


@contextmanager
def random_rounding(
    mode: str = "random",
    seed: int = 1,
    accumulation: str = "sequential",
    subnormals: str = "keep",
    threads: int | None = None,
    precision: str | int = 24,
    perturb: str = "all",
) -> Iterator[Statistics]:
    """Round every floating-point operation of the torch operators inside by `mode`.

        with random_rounding(mode="random", seed=1) as stats:
            y = model(x)
        print(stats.operations)

    mode: nearest, random, nearness, upward, downward or toward_zero (Verrou's names);
    seed: names the random stream, 0 to 2^64 - 1; equal seeds give equal bytes, with any number of
    threads and on any instruction set; accumulation: order of the additions in a convolution (see
    `accumulation`); subnormals: keep, or flush operands and results to zero; threads: torch's
    number if None; precision: bits of each result, or a format's name (see `precision`);
    perturb: all, or only:NAME or except:NAME of the stages that the model announces
    (`morphbits.stages`): outside them each rounding is float32's to nearest.

    Holds for the calling thread's float32 and float64 tensors on the CPU. Raises UserError for an
    option that is not known and, inside, for an operator that the engine does not perturb.
    """
    if mode not in MODES:
        raise UserError(f"rounding mode '{mode}' is not known; use one of {', '.join(MODES)}")
    if subnormals not in SUBNORMALS:
        raise UserError(f"subnormals '{subnormals}' is not known; use keep or flush")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} is out of range; use 0 to 2^64 - 1")
    if threads is not None and threads < 1:
        raise UserError(f"threads {threads} is out of range; use 1 or more")
    orders.parse(accumulation)
    fewer = formats.parse(precision)
    if fewer != formats.FULL and subnormals == "flush":
        raise UserError(f"precision {precision} needs subnormals=keep: its own format has them")
    _self_test_once()
    rounding = RandomRounding(mode, seed, accumulation, subnormals == "flush", threads, fewer)
    rounding.selection = stages.select(perturb)
    with rounding:
        yield rounding.statistics
    rounding.check_stages()


_tested: list[bool] = []
_hidden: list[bool] = []


def _self_test_once() -> None:
    if not _tested:
        self_test()
        _tested.append(True)


class RandomRounding(TorchDispatchMode):
    """The mode behind `random_rounding`; one object is one random stream."""

    def __init__(
        self,
        mode: str,
        seed: int,
        accumulation: str,
        flush: bool,
        threads: int | None,
        precision: formats.Precision = formats.FULL,
    ) -> None:
        super().__init__()
        self.mode, self.seed, self.accumulation, self.flush = mode, seed, accumulation, flush
        self.threads = threads or torch.get_num_threads()
        self._precision, self.selection = precision, stages.ALL
        self._stages: set[str] = set()
        self.statistics = Statistics()
        self._operators = 0

    def next_rounding(self, name: str, operations: int, accumulates: bool = False) -> Rounding:
        """Count an operator of `operations` elementary operations and give it its own random
        bits. One that accumulates rounds its factors and its result by `factor` and `store`."""
        selected = self.selection.holds()
        self._stages.update(stages.current())
        if selected:
            self.statistics.operators[name] += operations
        key = _mix64(_mix64(self.seed) + self._operators)
        self._operators += 1
        stored = self.precision.stored
        format, operands = self.precision.each, formats.FLOAT32
        if stored != formats.FLOAT32 and not accumulates:
            format, operands = stored, stored
        mode = self.mode if selected else "nearest"
        return Rounding(mode, self.flush, self.threads, key, format=format, operands=operands)

    @property
    def precision(self) -> formats.Precision:
        """What is rounded to what in the stage that is running."""
        return self._precision if self.selection.holds() else formats.FULL

    def check_stages(self) -> None:
        """UserError if a selected stage was none of those that ran."""
        missing = self.selection.names - self._stages
        if missing:
            ran = ", ".join(sorted(self._stages)) or "none"
            raise UserError(
                f"no stage {', '.join(sorted(missing))} was run; this model's stages are: {ran}"
            )

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as an operator that accumulates multiplies it."""
        return rounded(x, self.precision.factors, self.threads)

    def store(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The result `x` of an operator that accumulates, in the format in which it is kept."""
        if self.precision.stored == formats.FLOAT32 or x.dtype != torch.float32:
            return x
        rounding = self.next_rounding(f"{name} (storage)", x.numel())
        return elementwise(rounding, "round", x, in_place=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or torch would load its compiler (seconds of every process) at the first
        operator, only to hide this class from it; `__enter__` does so where it is loaded."""
        return False

    def __enter__(self) -> RandomRounding:
        if "torch._dynamo" in sys.modules and not _hidden:
            hidden = torch._dynamo.disable(RandomRounding.__torch_dispatch__)
            RandomRounding.__torch_dispatch__ = hidden  # type: ignore[method-assign]
            _hidden.append(True)
        super().__enter__()
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        handler = _HANDLERS.get(name)
        if handler is not None and "out" not in kwargs:
            return handler(self, func, *args, **kwargs)
        if name in _PASS and not _rounds(func, args, kwargs):
            return func(*args, **kwargs)
        with self:
            result = func.decompose(
                *args, **kwargs
            )  # a composite operator: its parts come back here
        if result is not NotImplemented:
            return result
        if not any(_is_floating(x) for x in tree_leaves((args, kwargs))):
            result = func(*args, **kwargs)
            if not any(_is_floating(x) for x in tree_leaves(result)):
                return result
        raise UserError(
            f"the native engine has no rule for the operator {func} on floating-point data of "
            "these types; write the model with operators it knows "
            "(morphbits/engines/native/mode.py lists them) and operands of one type, or run it "
            "under Verrou"
        )


def _mix64(x: int) -> int:
    """Splitmix64's step (Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    x = (x + 1) * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def _rounds(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operator of `_PASS` rounds with just these arguments."""
    name = func.overloadpacket.__name__
    if name in ("round", "round_"):  # to decimals: multiplied, rounded, divided
        return bool(func._overloadname == "decimals")
    if name not in ("arange", "abs", "abs_") and name not in _ONE_TYPE:
        return False
    leaves = tree_leaves((args, kwargs))
    types = {x.dtype for x in leaves if isinstance(x, torch.Tensor) and x.dtype != torch.bool}
    if name == "arange":  # start + i·step
        return any(isinstance(x, float) and x % 1 for x in leaves)
    if name not in _ONE_TYPE:
        return any(dtype.is_complex for dtype in types)
    if any(isinstance(x, float) for x in leaves):  # makes floating-point numbers of integers
        return not all(dtype.is_floating_point for dtype in types) or len(types) > 1
    return len(types) > 1


def _refused(func: Any, *args: Any) -> NoReturn:
    """Have torch say, in its own words, what is wrong with the arguments."""
    func(*args)
    raise UserError(f"the native engine has no rule for {func} on these arguments")


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def _check(func: Any, *tensors: torch.Tensor) -> None:
    for x in tensors:
        if x.dtype not in (torch.float32, torch.float64) or x.device.type != "cpu":
            raise UserError(
                f"the native engine rounds float32 and float64 on the CPU, but {func} was given "
                f"{x.dtype} on {x.device}; convert the model and its inputs"
            )


def _as_type(mode: RandomRounding, name: str, x: Any, dtype: torch.dtype) -> torch.Tensor:
    """`x` in `dtype`.

    A Python number is a constant of the program and rounds to nearest, as in torch itself; a
    tensor that has to give up bits is rounded by the mode.
    """
    if not isinstance(x, torch.Tensor):
        return torch.tensor(x, dtype=dtype)
    if x.dtype == dtype or x.dtype.itemsize <= 2 or dtype.is_complex:
        return x.to(dtype)
    wide = x.to(torch.float64)
    if x.dtype in (torch.int64, torch.uint64) and not torch.equal(wide.to(x.dtype), x):
        raise UserError(
            f"the native engine has no rule for integers beyond 2^53 ({name}); use smaller ones"
        )
    if dtype == torch.float64:
        return wide
    return elementwise(mode.next_rounding(f"{name} (conversion)", x.numel()), "narrow", wide)


def _binary(operation: str) -> Callable[..., Any]:
    def handler(
        mode: RandomRounding, func: Any, a: Any, b: Any, alpha: float = 1, **options: Any
    ) -> Any:
        name = func.overloadpacket.__name__
        dtype = torch.result_type(a, b)
        if operation == "div" and not dtype.is_floating_point and not dtype.is_complex:
            dtype = torch.get_default_dtype()
        if not dtype.is_floating_point and not dtype.is_complex:
            return func(a, b, **({"alpha": alpha} if alpha != 1 else {}), **options)
        if options:
            raise UserError(f"the native engine has no rule for {func} with {', '.join(options)}")
        in_place = name.endswith("_")
        try:
            shape = np.broadcast_shapes(*(v.shape for v in (a, b) if hasattr(v, "shape")))
        except ValueError:
            _refused(func, a, b)
        if in_place and not (shape == a.shape and torch.can_cast(dtype, a.dtype)):
            _refused(func, a, b)
        x, y = (_as_type(mode, name, v, dtype) for v in (a, b))
        if name == "rsub":
            x, y = y, x
        _check(func, x, y)
        if alpha != 1:
            scale = torch.tensor(alpha, dtype=dtype)
            y = elementwise(mode.next_rounding(name, y.numel()), "mul", y, scale)
        rounding = mode.next_rounding(name, prod(shape))
        if in_place and a.dtype != dtype:
            wide = elementwise(rounding, operation, x, y)
            return _copy(mode, torch.ops.aten.copy_.default, a, wide)
        return elementwise(rounding, operation, x, y, in_place)

    return handler


def _sqrt(mode: RandomRounding, func: Any, a: torch.Tensor) -> torch.Tensor:
    _check(func, a)
    name = func.overloadpacket.__name__
    rounding = mode.next_rounding(name, a.numel())
    return elementwise(rounding, "sqrt", a, in_place=name.endswith("_"))


def _leaky_relu(
    mode: RandomRounding, func: Any, a: torch.Tensor, negative_slope: float = 0.01
) -> torch.Tensor:
    _check(func, a)
    name = func.overloadpacket.__name__
    slope = torch.tensor(negative_slope, dtype=a.dtype)
    rounding = mode.next_rounding(name, a.numel())
    return elementwise(rounding, "leaky_relu", a, slope, in_place=name.endswith("_"))


def _to_copy(mode: RandomRounding, func: Any, a: torch.Tensor, **options: Any) -> torch.Tensor:
    dtype = options.get("dtype") or a.dtype
    if dtype == a.dtype or not (dtype.is_floating_point or dtype.is_complex or a.is_complex()):
        return func(a, **options)
    if dtype not in (torch.float32, torch.float64) or a.is_complex():
        raise UserError(
            f"the native engine has no rule for a conversion from {a.dtype} to {dtype}"
        )
    return func(_as_type(mode, "to", a, dtype), **options)


def _copy(
    mode: RandomRounding, func: Any, to: torch.Tensor, a: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    return func(
        to, _to_copy(mode, torch.ops.aten._to_copy.default, a, dtype=to.dtype), non_blocking
    )


def _convolution(
    mode: RandomRounding,
    func: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    tensors = [x, weight, *([] if bias is None else [bias])]
    _check(func, *tensors)
    dims = weight.dim() - 2
    if transposed or groups != 1 or dims > 3:
        raise UserError(
            "the native engine has no rule for transposed, grouped or 4-D convolutions"
        )
    # one and two dimensions are three with a first size of one
    missing = 3 - dims
    x3, w3 = (v.reshape(*v.shape[:2], *(1,) * missing, *v.shape[2:]) for v in (x, weight))
    step, pad, spread = (
        [default] * missing + list(v) * (dims if len(v) == 1 else 1)
        for v, default in ((stride, 1), (padding, 0), (dilation, 1))
    )
    if not (
        len({v.dtype for v in tensors}) == 1
        and x.dim() == weight.dim()
        and x.shape[1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and min(*step, *spread, *weight.shape[2:]) > 0
        and min(pad) >= 0
        and min(convolution_size(x3.shape[2:], w3.shape[2:], step, pad, spread)) > 0
    ):
        _refused(
            func, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )
    terms = orders.terms(mode.accumulation, prod(w3.shape[2:]), w3.shape[1])
    sizes = (x3.shape[2:], w3.shape[2:], step, pad, spread)
    operations = _operations(x3.shape, w3.shape, *sizes[2:], terms, bias is not None)
    name = func.overloadpacket.__name__
    rounding = mode.next_rounding(name, operations, accumulates=True)
    if bias is not None:
        bias = rounded(bias, mode.precision.stored)
    out = convolution(rounding, mode.factor(x3), mode.factor(w3), bias, step, pad, spread, terms)
    out = mode.store(name, out)
    return out.reshape(*out.shape[:2], *out.shape[2 + missing :])


def _operations(
    shape_in: Sequence[int],
    shape_weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    terms: orders.Terms,
    bias: bool,
) -> int:
    """Elementary operations of a convolution: a fused multiply-add for each product inside the
    image, an addition for each chain after the first, and one for the bias."""
    size = convolution_size(shape_in[2:], shape_weight[2:], stride, padding, dilation)
    products = shape_in[0] * shape_weight[0] * shape_weight[1]
    for d in range(3):
        at = np.arange(size[d])[:, None] * stride[d] - padding[d]
        at = at + np.arange(shape_weight[2 + d]) * dilation[d]
        products *= int(((at >= 0) & (at < shape_in[2 + d])).sum())
    additions = len(terms.segment_end) - 1 + bias
    return products + additions * shape_in[0] * shape_weight[0] * prod(size)


_HANDLERS: dict[str, Callable[..., Any]] = {
    "add": _binary("add"),
    "add_": _binary("add"),
    "sub": _binary("sub"),
    "sub_": _binary("sub"),
    "rsub": _binary("sub"),
    "mul": _binary("mul"),
    "mul_": _binary("mul"),
    "div": _binary("div"),
    "div_": _binary("div"),
    "sqrt": _sqrt,
    "sqrt_": _sqrt,
    "leaky_relu": _leaky_relu,
    "leaky_relu_": _leaky_relu,
    "_to_copy": _to_copy,
    "copy_": _copy,
    "convolution": _convolution,
}
