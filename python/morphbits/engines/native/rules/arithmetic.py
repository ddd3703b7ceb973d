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

from morphbits.engines.native.kernels import functions, program, sums
from morphbits.engines.native.kernels.library import OPERATIONS, Rounding, elementwise
from morphbits.engines.native.kernels.precision import FLOAT32, FULL
from morphbits.engines.native.kernels.program import LONGEST_ROW, Recorder, computed
from morphbits.engines.native.orders import probe_sums
from morphbits.engines.native.orders.probe_sums import FoundSum
from morphbits.engines.native.rules.context import Context
from morphbits.engines.native.rules.registry import check
from morphbits.errors import UserError

CHAIN = 256  # terms of a chain of a sum: see `Operator.sum`
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
Operand = torch.Tensor | float | int


class Operator:
    """A call of an operator of torch, as its rule sees it.

    func: the overload that was called; name: that of its operator, under which everything is
    counted; context: the region. The methods are perturbed arithmetic.
    """

    def __init__(self, context: Context, func: Any) -> None:
        self.context, self.func, self.recorder = context, func, Recorder()
        self.name: str = func.overloadpacket.__name__

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

    # ---- one operation an element

    def _operation(self, operation: str, dtype: torch.dtype, *operands: Any) -> Any:
        """Recorded where that can be, else computed."""
        shape = _broadcast(operands)
        rounding = self.rounding(prod(shape))
        core = operation in OPERATIONS or (dtype == torch.float32 and rounding.format == FLOAT32)
        if core and program.takes(rounding, *operands):
            return self.recorder.operation(rounding, operation, dtype, shape, *operands)
        a, *b = (self.to(computed(x), dtype) for x in operands)
        kernel = elementwise if operation in OPERATIONS else functions.function
        return kernel(rounding, operation, a, b[0] if b else None)

    def _binary(self, operation: str, a: Operand, b: Operand) -> torch.Tensor:
        dtype, x, y = self._alike(a, b)
        return self._operation(operation, dtype, x, y)

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

    def sqrt(self, a: torch.Tensor) -> torch.Tensor:
        """√a."""
        return self._operation("sqrt", a.dtype, a)

    def function(self, name: str, a: Operand, b: Operand | None = None) -> torch.Tensor:
        """One of `functions.FUNCTIONS` of a (and b)."""
        if b is not None:
            return self._binary(name, a, b)
        assert not isinstance(a, int | float)
        return self._operation(name, a.dtype, a)

    def tensors(self, a: Operand, b: Operand) -> list[torch.Tensor]:
        """Both in the type that torch gives their result; floating-point in any case."""
        dtype, x, y = self._alike(a, b)
        return [self.to(v, dtype) for v in (x, y)]

    def _alike(self, a: Any, b: Any) -> tuple[torch.dtype, Any, Any]:
        """That type, and the operands; what is a number stays one."""
        known = [x.dtype for x in (a, b) if not isinstance(x, int | float)]
        if known and known[0] == known[-1] and known[0].is_floating_point:
            dtype = known[0]
        else:
            dtype = torch.result_type(computed(a), computed(b))
            if not dtype.is_floating_point:
                dtype = torch.get_default_dtype()
        x, y = (v if isinstance(v, int | float) else self.to(v, dtype) for v in (a, b))
        return dtype, x, y

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
        if x.dtype in (torch.int64, torch.uint64) and not torch.equal(wide.to(x.dtype), x):
            raise UserError(
                f"the native engine has no rule for integers beyond 2^53 ({self.name}); "
                "use smaller ones"
            )
        if dtype == torch.float64:
            return wide
        name = f"{self.name} (conversion)"
        rounding = self.context.next_rounding(name, x.numel())
        if program.takes(rounding, wide):
            shape = tuple(wide.shape)
            return self.recorder.operation(rounding, "narrow", dtype, shape, wide, read=wide.dtype)
        return elementwise(rounding, "narrow", computed(wide))

    def wide(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`, and then in the type in which numbers of `dtype` are computed."""
        return self.to(x, dtype).to(torch.promote_types(dtype, torch.float32))

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
        if axes == [x.dim() - 1] and 1 < terms <= LONGEST_ROW and inner:
            total = self._row_sum(x, terms, inner)
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

    def _row_sum(self, x: torch.Tensor, terms: int, rows: int) -> Any:
        """`sum` over the last axis, recorded, where that can be; None elsewhere."""
        context = self.context
        if context.accumulation == "probe" or context.precision != FULL:
            return None
        if not program.takes(Rounding(context.mode), x):
            return None
        context.not_probed(f"{self.name} (sums)", "chains of up to 256")
        roundings = []
        while terms > 1:
            chains = -(-terms // CHAIN)
            roundings.append(self.rounding((terms - chains) * rows))
            terms = chains
        return self.recorder.row_sum(roundings, x)

    def _order(self, x: torch.Tensor, axes: Sequence[int], torchs: bool) -> FoundSum | None:
        """The order of a sum, where it is measured from the framework's kernel."""
        context = self.context
        if context.accumulation != "probe" or not (torchs and context.probes(x)):
            context.not_probed(f"{self.name} (sums)", "chains of up to 256")
            return None
        kernel = partial(context.outside, partial(torch.sum, dim=axes))
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
        self, to: torch.Tensor, index: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        """See `sums.scatter_add`."""
        return sums.scatter_add(
            self.rounding(source.numel()), computed(to), index, computed(source)
        )


def _broadcast(operands: Sequence[Any]) -> tuple[int, ...]:
    """The shape of a result."""
    shapes = [x.shape for x in operands if not isinstance(x, int | float)]
    if not shapes or shapes.count(shapes[0]) == len(shapes):
        return tuple(shapes[0]) if shapes else ()
    return tuple(torch.broadcast_shapes(*shapes))
