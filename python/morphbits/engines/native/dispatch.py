"""Random rounding of torch operators: what is done with each of them.

A TorchDispatchMode sees every operator below autograd. One that rounds is sent to a compiled
kernel in which each elementary operation is rounded by the mode; one that moves, compares or
counts passes; any other, on floating-point data, is an error that names it: nothing is silently
left unperturbed. Semantics as Verrou's (Févotte & Lathuilière, "Verrou: a CESTAC evaluation
without recompilation", SCAN 2016), for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from morphbits.engines.native import layouts, operands, rules, selftest  # noqa: F401  (fills the table)
from morphbits.engines.native.kernels import plans
from morphbits.engines.native.kernels.gpu import NoKernel
from morphbits.engines.native.rules.arithmetic import SIXTEEN_BITS, Operator
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.corners import corners
from morphbits.engines.native.rules.optimizers import CHANGING, numbers_as_tensor
from morphbits.engines.native.rules.promotion import common, in_one_type, stored
from morphbits.engines.native.rules.registry import (
    ONE_TYPE,
    PASS,
    REAL,
    RULES,
    Rule,
    is_complex,
    is_floating,
    makes_a_type,
    named,
    onednn,
    operator_name,
    passes,
    refuse_as_torch,
    refuse_overlap,
    short_name,
    written,
)
from morphbits.errors import UserError

_hidden: list[bool] = []
_FLOATING = frozenset([torch.float32, torch.float64])


def _remembering(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what was refused last: TorchScript says only that an operator failed."""

    @wraps(dispatch)
    def remembering(self: RandomRounding, *args: Any) -> Any:
        try:
            result = dispatch(self, *args)
        except UserError as refusal:
            self.refusal = str(refusal)
            raise
        self.refusal = None
        return result

    return remembering


# Operators on 16 bits that take numbers, too, in the type of the result; others compute with them
# in float32, as torch does.
OF_ITS_TYPE = frozenset(
    """
    add add_ atan2 atan2_ fmod fmod_ pow pow_ remainder remainder_ rsub sub sub_
    """.split()
)

# Operators on 16 bits whose second and third results torch's kernels on the CPU keep in the type
# of the weights or running statistics.
STATISTICS = frozenset(
    """
    _native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm
    native_group_norm native_layer_norm
    """.split()
)


class RandomRounding(Context, TorchDispatchMode):
    """The mode behind `random_rounding`; one object is one random stream."""

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

    @_remembering
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if os.getpid() != self._process or not self.scope.holds():  # a data loader's worker
            return func(*args, **kwargs)
        if types and (wrappers := operands.wrappers(types)):
            return self._by_parts(wrappers, func, args, kwargs)
        self._calls += 1
        name, rule, moves, plain = _known(func)
        if moves:
            return moves(*args, **kwargs)
        if plain and rule is not None:
            planned = numbers_as_tensor(args) if func in CHANGING and not kwargs else args
            call = operands.described(func, planned, kwargs)
            if call is not None and call.floating:
                return self._by_plan(call, rule, func, planned, kwargs)
        given = operands.leaves(args, kwargs)
        kinds = operands.plain_types(given) if plain and rule is None else None
        if kinds and len(kinds - {torch.bool}) == 1 and not kinds.isdisjoint(_FLOATING):
            return func(*args, **kwargs)  # of one type
        if rule is not None and operands.hold_no_values(func, given, kwargs.get("device")):
            return func(*args, **kwargs)
        if rule is not None and not any(map(is_complex, given)):
            with _where(func, args, kwargs):
                if written(func):
                    return self._into(func, args, kwargs)
                if name.endswith("_"):
                    refuse_overlap(func, args[0], args, kwargs)
                if any(isinstance(x, torch.Tensor) for x in given) and not _floats(given):
                    result = func(*args, **kwargs)
                    if not _floats(tree_leaves(result)):  # of whole numbers, whole numbers
                        return result
                return self._by_rule(rule, func, args, kwargs)
        if name == "to_mkldnn":
            raise onednn()
        if name in ONE_TYPE or name not in PASS:  # or it moves what it does not look at
            operands.refuse_kinds(func, given)
        if passes(func, args, kwargs):
            return func(*args, **kwargs)
        if written(func) and name not in self.allowed:
            return self._into(func, args, kwargs)
        result = in_one_type(Operator(self, func), args, kwargs)
        if result is not NotImplemented:
            return result
        if name in self.allowed:
            self.statistics.unperturbed[name] += 1
            return func(*args, **kwargs)
        with self:  # a composite operator: its parts come back here
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if any(map(is_floating, given)):
            if operands.hold_no_values(func, given):
                return func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
            if not any(map(is_floating, tree_leaves(result))):
                return result
        numbers = "complex numbers" if any(map(is_complex, given)) else "floating-point data"
        raise UserError(
            f"the native engine has no rule for the operator {func} on {numbers} of these types; "
            "write the model with operators it knows (notes/operators.md lists them) and "
            f"operands of one type, let it pass unperturbed by allow=['{name}'], or run the model "
            "under Verrou"
        )

    def _by_plan(
        self, call: operands.Described, rule: Rule, func: Any, args: Any, kwargs: Any
    ) -> Any:
        """The result of a rule on plain tensors: by the plan of such calls where there is one. The
        second call of a kind is recorded for it, with the operators that its rule calls."""
        way = self.way if plans.recording() is None else None
        kind = way, *call.kind
        plan = plans.kept.known.get(kind)
        if plan is not None and plan.fits(call.tensors):
            try:
                return plan.run(self, call.tensors, call.addresses)
            except plans.Changed:
                pass
        if operator_name(func).endswith("_"):
            refuse_overlap(func, args[0], args, kwargs)
        alike = len(set(call.addresses)) < len(call.addresses)  # an address names no operand
        if way is None or alike or not plans.kept.to_record(kind):
            return self._by_rule(rule, func, args, kwargs)
        first, before = self.position, dict(self.statistics.operators)
        with plans.Recording(call.tensors, self.next_draw) as recording:
            result = self._by_rule(rule, func, args, kwargs)
        counts = self.counts_since(before)
        written = _written(func, args)
        writes = [n for n, x in enumerate(call.tensors) if any(x is y for y in written)]
        plans.kept.enter(kind, recording.plan(result, writes, self.position - first, counts))
        return result

    def _by_rule(self, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of a rule, with torch's strides."""
        op, given = Operator(self, func), operands.leaves(args, kwargs)
        if not rule.sixteen_bits and any(map(_is_sixteen, given)):
            result = self._in_single(rule, op, args, kwargs)
        else:
            result = op.call(rule.handler, args, kwargs)
        if op.name.endswith("_"):
            return result
        returned = operands.leaves((result,), {})
        if all(map(layouts.in_order, given)) and all(map(layouts.in_order, returned)):
            return result
        return self.as_framework(layouts.laid_out, result, func, args, kwargs)

    def _by_parts(self, wrappers: list[type], func: Any, args: Any, kwargs: Any) -> Any:
        """An operator on tensors of classes with a dispatch of their own: they make of it
        operators on their parts, which come back here. UserError if none does."""
        if self._asking:  # the wrappers, who may be C++
            self._asking = False
            return NotImplemented
        if operands.without_values(wrappers):
            return func(*args, **kwargs)
        calls, self._asking = self._calls, True
        try:
            with self:
                result = func(*args, **kwargs)
        finally:
            self._asking = False
        if short_name(func) in RULES and calls == self._calls:
            names = " and ".join(kind.__qualname__ for kind in wrappers)
            raise UserError(
                f"the native engine cannot perturb {func} on tensors of the class {names}, which "
                "computes it without torch's dispatcher: give it the tensors that these hold"
            )
        return result

    def _into(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that writes into given tensors: what it returns without them, brought to
        their types."""
        names = written(func)
        to = tree_leaves([kwargs[name] for name in names])
        for x in to:
            refuse_overlap(func, x, args, kwargs)
        refuse_as_torch(func, args, kwargs)
        rest = {name: x for name, x in kwargs.items() if name not in names}
        if "dtype" not in named(func, args, rest) and makes_a_type(func):
            rest["dtype"] = to[0].dtype
        results = self.apply(func.overloadpacket, *args, **rest)
        op, single = Operator(self, func), isinstance(results, torch.Tensor)
        for x, result in zip(to, tree_leaves(results), strict=True):
            if is_complex(x) and x.dtype != result.dtype:
                raise UserError(
                    f"the native engine has no rule for {func} from {result.dtype} to {x.dtype}"
                )
            if x.shape != result.shape:
                x.resize_(result.shape).as_strided_(result.shape, result.stride())
            x.copy_(op.to(result, x.dtype))
        return to[0] if single else tuple(to)

    def _in_single(
        self, rule: Rule, op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """An operator on float16 or bfloat16: in float32, and its results rounded to the types
        that torch gives them."""
        if kwargs.get("dtype") in SIXTEEN_BITS:  # what is summed is brought to it first
            args = (op.to(args[0], kwargs["dtype"]), *args[1:])
        if op.name in OF_ITS_TYPE:
            args, kwargs = _of_one_type(op, args, kwargs)
        wide = tree_map(_in_float32, (args, kwargs))
        outer, self._widened = self._widened, True
        try:
            result = op.call(rule.handler, *wide)
        finally:
            self._widened = outer
        # what the operator changed in place
        for argument, *values in zip(op.func._schema.arguments, args, wide[0], strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not written and not argument.name.startswith("running_"):
                continue
            for before, after in zip(*map(tree_leaves, values), strict=True):
                if _is_sixteen(before) and not _same_bits(before.to(torch.float32), after):
                    before.resize_(after.shape).copy_(op.to(after, before.dtype))
        if op.name.endswith("_"):
            return args[0] if op.func._schema.returns else None
        leaves, structure = tree_flatten(result)
        try:
            returned = tree_leaves(layouts.on_meta(op.func, args, kwargs))
        except NotImplementedError:  # torch does not say: the type that came in
            first = next(x for x in tree_leaves((args, kwargs)) if _is_sixteen(x))
            returned = [first if is_floating(x) else x for x in leaves]
        types = [x.dtype if is_floating(x) else None for x in returned]
        if op.name in STATISTICS:
            single = any(x.dtype == torch.float32 for x in filter(is_floating, args[1:]))
            types[1:] = [torch.float32 if single else args[0].dtype] * 2
        narrowed = [
            op.to(x, dtype) if isinstance(x, torch.Tensor) and dtype is not None else x
            for x, dtype in zip(leaves, types, strict=True)
        ]
        return tree_unflatten(narrowed, structure)

    def corners(self, volume: torch.Tensor, indices: Any, weights: Any, shape: Any) -> Any:
        """`rules.corners` of plain tensors; NotImplemented where anything but this mode
        would see the operators for which it stands."""
        if (
            _get_current_dispatch_mode() is not self
            or os.getpid() != self._process
            or not self.scope.holds()
            or torch.is_grad_enabled()
            or forward_ad._current_level >= 0
            or torch._C._functorch.peek_interpreter_stack() is not None
            or torch._C._len_torch_function_stack()
            or torch.jit.is_tracing()
        ):
            return NotImplemented
        given = volume, *(x for pair in weights for x in pair)
        kinds = operands.plain_types(given)
        if kinds is None or len(kinds) > 1 or kinds.isdisjoint(_FLOATING):
            return NotImplemented
        with _pop_mode_temporarily():
            return corners(self, volume, indices, weights, shape)

    def apply(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        with self:
            return operator(*args, **kwargs)


@cache
def _known(func: Any) -> tuple[str, Rule | None, Callable[..., Any] | None, bool]:
    """Of an operator: its name; its rule; how it is called if it passes whatever its arguments
    are; whether it writes into none and, if it has no rule, passes where its operands have one
    type."""
    name = short_name(func)
    rule, writes = RULES.get(name), bool(written(func))
    reduces = "reduce" in func._overloadname
    moves = name in PASS and name not in ONE_TYPE and name not in REAL and not reduces
    plain = not writes and (
        rule is not None or (name in ONE_TYPE and name in PASS and not reduces)
    )
    call = partial(layouts.pooled, func) if name in layouts.POOLING else func
    return name, rule, call if moves and rule is None and not writes else None, plain


def _written(func: Any, args: Any) -> list[Any]:
    """The tensors that an operator writes to, also those in lists."""
    arguments = zip(func._schema.arguments, args, strict=False)
    return tree_leaves([x for a, x in arguments if a.alias_info and a.alias_info.is_write])


def _of_one_type(op: Operator, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Operands and numbers in the 16 bits of the result, if it has 16."""
    given = tree_leaves((args, kwargs))
    dtype = common([x for x in given if isinstance(x, torch.Tensor)])
    if dtype not in SIXTEEN_BITS:
        return args, kwargs

    def typed(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x if x.dtype in (dtype, torch.bool) else op.to(x, dtype)
        number = isinstance(x, int | float) and not isinstance(x, bool)
        return stored(x, dtype) if number else x

    return tree_map(typed, (args, kwargs))


def _in_float32(x: Any) -> Any:
    if not _is_sixteen(x):
        return x
    return x.to(torch.float32) if isinstance(x, torch.Tensor) else torch.float32


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of float32 are alike, with the signs of their zeros."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def _is_sixteen(x: Any) -> bool:
    return (x.dtype if isinstance(x, torch.Tensor) else x) in SIXTEEN_BITS


@contextmanager
def _where(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Tensors that a rule creates are on the operator's GPU, if its operands are on one."""
    device = next((x for x in map(_device, tree_leaves((args, kwargs))) if x is not None), None)
    if device is None:
        yield
        return
    selftest.once(device)
    try:
        with device:
            yield
    except NoKernel as missing:
        raise UserError(
            f"the native engine has no kernel on the GPU for the operator {func}: {missing}; run "
            "it on the CPU"
        ) from None


def _device(x: Any) -> torch.device | None:
    """The GPU that an argument lies on or names."""
    device = x.device if isinstance(x, torch.Tensor) else x
    return device if isinstance(device, torch.device) and device.type == "cuda" else None


def _floats(given: Sequence[Any]) -> bool:
    """Whether there are floating-point numbers, or a type of them, among the arguments."""
    types = (x.dtype if isinstance(x, torch.Tensor) else x for x in given)
    return any(isinstance(x, torch.dtype) and x.is_floating_point for x in types)
