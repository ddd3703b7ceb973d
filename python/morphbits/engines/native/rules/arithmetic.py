"""The elementary operations of one operator, each rounded by the mode: the rules' language.

    op.add(a, op.mul(op.mul(value, b), c))

Tensors broadcast; a Python number is a constant of the program and rounds to nearest when it
becomes a tensor, as in torch itself. Everything that is computed here is counted under the
operator's name. Every call is an operator of the random stream by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from math import prod
from typing import Any

import torch

from morphbits.engines.native.kernels import functions, sums
from morphbits.engines.native.kernels.library import Rounding, elementwise
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
        self.context, self.func = context, func
        self.name: str = func.overloadpacket.__name__

    def named(self, name: str) -> Operator:
        """The same call, counted under another name."""
        other = copy(self)
        other.name = name
        return other

    def redispatch(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an operator of torch: it is perturbed by its own rule."""
        return self.context.apply(operator, *args, **kwargs)

    def check(self, *tensors: torch.Tensor) -> None:
        """UserError unless the kernels take these tensors."""
        check(self.func, *tensors)

    def rounding(self, operations: int) -> Rounding:
        """The random bits of the next kernel, of so many elementary operations."""
        return self.context.next_rounding(self.name, operations)

    # ---- one operation an element

    def _binary(self, operation: str, a: Operand, b: Operand) -> torch.Tensor:
        x, y = self.tensors(a, b)
        shape = torch.broadcast_shapes(x.shape, y.shape)
        return elementwise(self.rounding(prod(shape)), operation, x, y)

    def add(self, a: Operand, b: Operand) -> torch.Tensor:
        """a + b."""
        return self._binary("add", a, b)

    def sub(self, a: Operand, b: Operand) -> torch.Tensor:
        """a − b."""
        return self._binary("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> torch.Tensor:
        """a·b; a factor of exactly 1, given as a number, rounds nothing and is not counted."""
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, torch.Tensor) and one == 1 and isinstance(other, torch.Tensor):
                return other.clone()
        return self._binary("mul", a, b)

    def div(self, a: Operand, b: Operand) -> torch.Tensor:
        """a / b."""
        return self._binary("div", a, b)

    def sqrt(self, a: torch.Tensor) -> torch.Tensor:
        """√a."""
        return elementwise(self.rounding(a.numel()), "sqrt", a)

    def function(self, name: str, a: Operand, b: Operand | None = None) -> torch.Tensor:
        """One of `functions.FUNCTIONS` of a (and b)."""
        if b is None:
            assert isinstance(a, torch.Tensor)
            return functions.function(self.rounding(a.numel()), name, a)
        x, y = self.tensors(a, b)
        count = prod(torch.broadcast_shapes(x.shape, y.shape))
        return functions.function(self.rounding(count), name, x, y)

    def tensors(self, a: Operand, b: Operand) -> list[torch.Tensor]:
        """Both in the type that torch gives their result; floating-point in any case."""
        dtype = torch.result_type(a, b)  # type: ignore[arg-type]
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        return [self.to(x, dtype) for x in (a, b)]

    def to(self, x: Any, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`; bits that have to be given up are rounded by the mode."""
        if not isinstance(x, torch.Tensor):
            return torch.tensor(x, dtype=dtype)
        if x.dtype == dtype or not dtype.is_floating_point:
            return x.to(dtype)
        if dtype in SIXTEEN_BITS:
            name = f"{self.name} (conversion)"
            single = self.to(x, torch.float32)
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
        return elementwise(self.context.next_rounding(name, x.numel()), "narrow", wide)

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
        return sums.scatter_add(self.rounding(source.numel()), to, index, source)
