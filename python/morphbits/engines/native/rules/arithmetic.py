"""The elementary operations of one operator, each rounded by the mode: the rules' language.

    op.add(a, op.mul(op.mul(value, b), c))

Tensors broadcast; a Python number is a constant of the program and rounds to nearest when it
becomes a tensor, as in torch itself. Everything that is computed here is counted under the
operator's name. Every call is an operator of the random stream by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import prod
from typing import Any

import torch

from morphbits.engines.native.kernels import functions, plans, program, sums
from morphbits.engines.native.kernels.library import OPERATIONS, Rounding, elementwise
from morphbits.engines.native.kernels.precision import FLOAT32, FULL
from morphbits.engines.native.kernels.program import LONGEST_ROW, Recorder, Value, computed
from morphbits.engines.native.orders import probe_sums
from morphbits.engines.native.orders.probe_sums import FoundSum
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.registry import check, operator_name
from morphbits.errors import UserError

CHAIN = 256  # terms of a chain of a sum: see `Operator.sum`
SIDE_BY_SIDE = 16  # rows of several axes that are summed in place: as many as a vector has lanes
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
Operand = torch.Tensor | float | int


class Operator:
    """A call of an operator of torch, as its rule sees it.

    func: the overload that was called; name: that of its operator, under which everything is
    counted; context: the region. The methods are perturbed arithmetic.
    """

    def __init__(self, context: Context, func: Any) -> None:
        self.context, self.func, self.recorder = context, func, Recorder(context.start)
        self.name = operator_name(func)

    def named(self, name: str) -> Operator:
        """The same call, counted under another name."""
        other = copy(self)
        other.name = name
        return other

    def redispatch(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an operator of torch: it is perturbed by its own rule."""
        self.recorder.run()
        return self.context.apply(operator, *map(computed, args), **kwargs)

    def check(self, *tensors: torch.Tensor) -> None:
        """UserError unless the kernels take these tensors."""
        check(self.func, *tensors)

    def rounding(self, operations: int) -> Rounding:
        """The random bits of the next kernel, of so many elementary operations."""
        return self.context.next_rounding(self.name, operations)

    def call(self, handler: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        """What the rule returns, computed."""
        with torch._C._EnableTorchFunction():  # a class of tensors may have switched it off
            result = handler(self, *args, **kwargs)
            self.recorder.run()
            if isinstance(result, tuple | list):
                return type(result)(map(computed, result))
            return computed(result)

    def formula(
        self, formula: Callable[..., Any], *operands: Any, into: Any = None, **options: Any
    ) -> Any:
        """`formula(self, *operands, **options)`, computed; `into`: in the place of this tensor."""
        result = formula(self, *operands, **options)
        if into is not None:
            return into.copy_(self.to(result, into.dtype))
        return tuple(map(computed, result)) if isinstance(result, tuple) else computed(result)

    # ---- one operation an element

    def operation(self, operation: str, dtype: torch.dtype, *operands: Any) -> Any:
        """One elementary operation or function: recorded where that can be, else computed."""
        shape, context = broadcast(*operands), self.context
        like = context.unkeyed
        core = operation in OPERATIONS or (dtype == torch.float32 and like.format == FLOAT32)
        if core and program.takes(like, *operands):
            draw = context.draw(self.name, prod(shape))
            return self.recorder.operation(like, draw, operation, dtype, shape, *operands)
        rounding = self.rounding(prod(shape))
        a, *b = (self.to(computed(x), dtype) for x in operands)
        kernel = elementwise if operation in OPERATIONS else functions.function
        return kernel(rounding, operation, a, b[0] if b else None)

    def _binary(self, operation: str, a: Operand, b: Operand) -> torch.Tensor:
        x, y = self.alike(a, b)
        return self.operation(operation, type_of(x, y), x, y)

    def add(self, a: Operand, b: Operand) -> torch.Tensor:
        """a + b."""
        return self._binary("add", a, b)

    def sub(self, a: Operand, b: Operand) -> torch.Tensor:
        """a − b."""
        return self._binary("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> torch.Tensor:
        """a·b; a factor of exactly 1, given as a number, rounds nothing and is not counted."""
        for one, other in ((a, b), (b, a)):
            if isinstance(one, int | float) and one == 1 and not isinstance(other, int | float):
                return other.clone()
        return self._binary("mul", a, b)

    def div(self, a: Operand, b: Operand) -> torch.Tensor:
        """a / b."""
        return self._binary("div", a, b)

    def neg(self, a: torch.Tensor) -> Any:
        """−a, which rounds nothing."""
        if isinstance(a, Value) or not program.takes(self.context.unkeyed, a):
            return -a
        return self.recorder.negative(self.context.unkeyed, self.context.position, a)

    def positive(self, a: torch.Tensor) -> Any:
        """Where a > 0, as a recorded operation (`a > 0` of a tensor would be computed at once)."""
        return self.neg(a) < 0

    def sqrt(self, a: torch.Tensor) -> torch.Tensor:
        """√a."""
        return self.operation("sqrt", a.dtype, a)

    def function(self, name: str, a: Operand, b: Operand | None = None) -> torch.Tensor:
        """One of `functions.FUNCTIONS` of a (and b)."""
        if b is not None:
            return self._binary(name, a, b)
        assert not isinstance(a, int | float)
        return self.operation(name, a.dtype, a)

    def tensors(self, a: Operand, b: Operand) -> list[torch.Tensor]:
        """Both in the type that torch gives their result; floating-point in any case."""
        x, y = self.alike(a, b)
        dtype = type_of(x, y)
        return [self.to(v, dtype) for v in (x, y)]

    def alike(self, a: Any, b: Any) -> tuple[Any, Any]:
        """The same, but a number stays a number."""
        numbers = isinstance(a, int | float), isinstance(b, int | float)
        if numbers == (False, True) and a.dtype.is_floating_point:
            return a, b
        if numbers == (True, False) and b.dtype.is_floating_point:
            return a, b
        if numbers == (False, False) and a.dtype == b.dtype and a.dtype.is_floating_point:
            return a, b
        dtype = torch.result_type(computed(a), computed(b))
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        x, y = (v if n else self.to(v, dtype) for v, n in zip((a, b), numbers, strict=True))
        return x, y

    def to(self, x: Any, dtype: torch.dtype) -> Any:
        """`x` in `dtype`; bits that have to be given up are rounded by the mode."""
        if isinstance(x, int | float | complex):
            return torch.tensor(x, dtype=dtype)
        if x.dtype == dtype or not dtype.is_floating_point:
            return x.to(dtype)
        if dtype in SIXTEEN_BITS:
            name = f"{self.name} (conversion)"
            single = computed(self.to(x, torch.float32))
            return functions.narrow(self.context.next_rounding(name, x.numel()), single, dtype)
        if x.dtype.itemsize <= 2:
            return x.to(dtype)
        wide = x.to(torch.float64)
        if x.dtype in (torch.int64, torch.uint64) and not plans.guard(x, _exact_as_float64):
            raise UserError(
                f"the native engine has no rule for integers beyond 2^53 ({self.name}); "
                "use smaller ones"
            )
        if dtype == torch.float64:
            return wide
        name = f"{self.name} (conversion)"
        like = self.context.unkeyed
        if program.takes(like, wide):
            draw, shape = self.context.draw(name, x.numel()), tuple(wide.shape)
            return self.recorder.operation(
                like, draw, "narrow", dtype, shape, wide, read=wide.dtype
            )
        return elementwise(self.context.next_rounding(name, x.numel()), "narrow", computed(wide))

    def wide(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`, and then in the type in which numbers of `dtype` are computed."""
        return self.to(x, dtype).to(torch.promote_types(dtype, torch.float32))

    def double(self, x: torch.Tensor) -> Any:
        """`x` as float64, which is exact."""
        like = self.context.unkeyed
        if isinstance(x, Value) or x.dtype != torch.float32 or not program.takes(like, x):
            return x.double()
        return self.recorder.widened(like, self.context.position, x)

    # ---- sums

    def chain(
        self,
        operation: str,
        x: torch.Tensor,
        scan: bool = False,
        operations: int | None = None,
    ) -> torch.Tensor:
        """One chain over the first axis, from left to right: x[0] + x[1] + …

        operation: add or mul; scan: keep the partial results; operations: how many to count, where
        some of the terms are nothing.
        """
        x = computed(x)
        terms, rest = x.shape[0], x.shape[1:]
        if x.numel() == 0:
            return torch.full(x.shape if scan else rest, float(operation == "mul"), dtype=x.dtype)
        out = sums.reduce(
            self.rounding((terms - 1) * prod(rest) if operations is None else operations),
            operation,
            x.reshape(1, -1),
            max(prod(rest), 1),
            scan,
        )
        return out.reshape(x.shape if scan else rest)

    def scan(self, operation: str, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The partial results of a chain of `operation` (add or mul) over the axis `dim`, of x's
        shape."""
        context, terms = self.context, x.shape[dim]
        rows = dim % x.dim() == x.dim() - 1 and x.numel() and terms <= LONGEST_ROW
        if rows and context.precision == FULL and program.takes(context.unkeyed, x):
            draw = context.draw(self.name, x.numel() - x.numel() // terms)
            return computed(self.recorder.row_scan(context.unkeyed, draw, x, operation))
        return self.chain(operation, x.movedim(dim, 0), scan=True).movedim(0, dim)

    def sum(
        self,
        x: torch.Tensor,
        dims: Sequence[int] | None = None,
        keepdim: bool = False,
        torchs: bool = False,
    ) -> torch.Tensor:
        """The sum over `dims` (all if None or empty).

        Order: the n summed elements in row-major order; up to 256 of them are one chain from left
        to right; more are dealt out to C = ⌈n / 256⌉ chains (element i to chain i mod C), whose
        sums are summed in the same way. Where orders are probed, `torchs` says that the framework
        calls its own `sum` here: then in the order of that, if it can be read.
        """
        axes = sorted({d % x.dim() for d in dims}) if dims and x.dim() else list(range(x.dim()))
        out_shape = [n for d, n in enumerate(x.shape) if d not in axes]
        terms, inner = prod(x.shape[d] for d in axes), prod(out_shape)
        last = axes == list(range(x.dim() - len(axes), x.dim()))
        rows = inner >= (1 if len(axes) == 1 else SIDE_BY_SIDE)
        if last and rows and 1 < terms <= LONGEST_ROW:
            total = self._row_sum(x, terms, inner, len(axes))
            if total is not None:
                return total if keepdim else computed(total).view(out_shape)
        x = computed(x)
        flat = probe_sums.terms_first(x, axes).reshape(-1)
        order = self._order(x, axes, torchs) if terms > 1 and inner else None
        if order is not None:
            flat, terms = order.add(self.rounding, flat.view(terms, inner)), 1
        while terms > 1:
            chains = -(-terms // CHAIN)
            period = chains * inner
            operations = (terms - chains) * inner
            flat = sums.reduce(self.rounding(operations), "add", flat.view(1, -1), period)[0]
            terms = chains
        if terms == 0:
            flat = torch.zeros(inner, dtype=x.dtype)
        shape = [1 if d in axes else n for d, n in enumerate(x.shape)] if keepdim else out_shape
        return flat.clone().view(shape) if flat.data_ptr() == x.data_ptr() else flat.view(shape)

    def _row_sum(self, x: torch.Tensor, terms: int, rows: int, axes: int) -> Any:
        """`sum` over the last `axes`, recorded, where that can be; None elsewhere."""
        context = self.context
        if context.accumulation == "probe" or context.precision != FULL:
            return None
        if not program.takes(context.unkeyed, x):
            return None
        draws = []
        while terms > 1:
            chains = -(-terms // CHAIN)
            draws.append(context.draw(self.name, (terms - chains) * rows))
            terms = chains
        return self.recorder.row_sum(context.unkeyed, draws, x, axes)

    def _order(self, x: torch.Tensor, axes: Sequence[int], torchs: bool) -> FoundSum | None:
        """The order of a sum, where it is measured from the framework's kernel."""
        context = self.context
        if context.accumulation != "probe" or not (torchs and context.probes(x)):
            context.not_probed(f"{self.name} (sums)", "chains of up to 256")
            return None
        kernel = partial(context.as_framework, partial(torch.sum, dim=axes))
        found = probe_sums.sum_order(kernel, x, axes, context.threads)
        context.probed(f"{self.name} {found.layer}", found.words)
        return found if found.parts else None

    def mean(
        self,
        x: torch.Tensor,
        dims: Sequence[int] | None = None,
        keepdim: bool = False,
        torchs: bool = False,
    ) -> torch.Tensor:
        """The sum, divided by the number of terms, as torch does."""
        total = self.sum(x, dims, keepdim, torchs)
        return self.div(total, x.numel() // max(total.numel(), 1) if total.numel() else 0)

    def scatter_add(
        self,
        to: torch.Tensor,
        index: torch.Tensor,
        source: torch.Tensor,
        in_place: bool = False,
    ) -> torch.Tensor:
        """See `sums.scatter_add`."""
        rounding = self.rounding(source.numel())
        return sums.scatter_add(rounding, computed(to), index, computed(source), in_place)


def _exact_as_float64(x: torch.Tensor) -> bool:
    return torch.equal(x.to(torch.float64).to(x.dtype), x)


def broadcast(*operands: Any) -> tuple[int, ...]:
    """The shape of a result."""
    shapes = [x.shape for x in operands if not isinstance(x, int | float)]
    if not shapes or shapes.count(shapes[0]) == len(shapes):
        return tuple(shapes[0]) if shapes else ()
    out = [1] * max(len(shape) for shape in shapes)
    for shape in shapes:
        for d in range(-len(shape), 0):
            if out[d] == 1:
                out[d] = shape[d]
            elif shape[d] not in (1, out[d]):
                return tuple(torch.broadcast_shapes(*shapes))  # which says what is wrong
    return tuple(out)


def type_of(a: Any, b: Any) -> torch.dtype:
    """That of the tensor among two operands of one type."""
    tensor = b if isinstance(a, int | float) else a
    return torch.get_default_dtype() if isinstance(tensor, int | float) else tensor.dtype
