"""Sums over the ranks of a process group: gathered, and added here in the order of the ranks.

Each rank adds for itself, so all must draw the same roundings: those of the stream of the group's
first rank. After a sum all ranks are at the same position of their streams. Of a scattered sum a
rank adds its own part, from a stream for it alone. Operators that only move have no rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from morphbits.engines.native.rules.arithmetic import SIXTEEN_BITS, Operator
from morphbits.engines.native.rules.registry import rule
from morphbits.errors import UserError

ADDS = {"SUM": "add", "AVG": "add", "PRODUCT": "mul"}  # others compare, or join bits
ORDER = (
    "gathered, then joined in the order of the ranks, one operation an element; AVG: then one "
    "division; all ranks draw from the stream of the first"
)


class _Ranks:
    """One operator on a group: its sums, under the name of the operator."""

    def __init__(self, op: Operator, group: Any, how: Any) -> None:
        self.op = op
        word = how if isinstance(how, str) else dist.ReduceOp.RedOpType(how.op()).name
        self.how = word.upper()
        if isinstance(group, str):
            group = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]
        elif isinstance(group, torch.ScriptObject):
            group = dist.ProcessGroup.unbox(group)
        self.group, self.size = group, group.size()

    def rounds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it rounds; UserError for what has no rule."""
        if self.size == 1 or not any(x.is_floating_point() for x in tensors):
            return False
        if self.how == "PREMUL_SUM":
            raise UserError(
                f"the native engine has no rule for {self.op.func} with {self.how}: multiply "
                "before"
            )
        return self.how in ADDS

    def reduce(self, tensors: Sequence[Tensor], root: int | None = None) -> None:
        """Write the result over each tensor: on all ranks, or on one."""
        with self._stream():
            for x in tensors:
                parts = self._gather(x)
                if root in (None, self.group.rank()):
                    x.copy_(self._join(parts))

    def scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]]) -> None:
        """Write this rank's part of each result; `inputs` has a part for each rank."""
        with self._stream(self.group.rank() + 1):
            for out, parts in zip(outputs, inputs, strict=True):
                out.copy_(self._join(self._exchange(out, parts)))

    @contextmanager
    def _stream(self, number: int = 0) -> Iterator[None]:
        """The stream `number` of this sum, the same on all ranks."""
        context, selected = self.op.context, self.op.context.selection.holds()
        kind = zlib.crc32(
            repr((context.mode, context.flush, context.precision, selected)).encode()
        )
        key = context.key() - (context.key() >> 63 << 64)  # signed
        row = torch.tensor([kind, context.position, key])
        rows_RN = torch.stack(self._gather(row.to(self._device()))).cpu()
        if len(set(rows_RN[:, 0].tolist())) > 1:
            raise UserError(
                f"the ranks that meet in {self.op.func} are in regions of random_rounding with "
                "other modes, precisions or stages: give all the same"
            )
        own = context.seed
        context.restart(int(rows_RN[0, 2]) % 2**64, number << 32)
        try:
            yield
        finally:
            context.restart(own, int(rows_RN[:, 1].max()) + 1)

    def _device(self) -> torch.device:
        cuda = torch.device("cuda", torch.cuda.current_device()) if _on_cuda(self.group) else None
        return cuda or torch.device("cpu")

    def _gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`, whatever its type."""
        mine = _as_bytes(x)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self.group.allgather([parts], [mine]).wait()
        return [_as_values(part, x) for part in parts]

    def _exchange(self, like: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """Every rank's part for this rank."""
        sent = [_as_bytes(part) for part in parts]
        size = like.numel() * like.element_size()
        received = torch.empty(size * self.size, dtype=torch.uint8, device=like.device)
        sizes = [size] * self.size, [len(part) for part in sent]
        self.group.alltoall_base(received, torch.cat(sent), *sizes).wait()
        return [_as_values(part, like) for part in received.split(size)]

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        op = Operator(self.op.context, self.op.func)  # of the stream that is open

        def joined(operation: str, a: Tensor, b: Tensor | int) -> Tensor:
            if a.dtype not in SIXTEEN_BITS:
                return getattr(op, operation)(a, b)  # type: ignore[no-any-return]
            wide = b.float() if isinstance(b, Tensor) else b
            return op.to(getattr(op, operation)(a.float(), wide), a.dtype)

        total = parts[0]
        for part in parts[1:]:
            total = joined(ADDS[self.how], total, part)
        return joined("div", total, self.size) if self.how == "AVG" else total


def _on_cuda(group: Any) -> bool:
    return not any(device.type == "cpu" for device in group._device_types)


def _as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def _as_values(bytes: Tensor, like: Tensor) -> Tensor:
    return bytes.view(like.dtype).view(like.shape)


def _done(tensors: Any) -> Any:
    """The work, which is done, as torch hands it out."""
    future: torch.futures.Future = torch.futures.Future()
    future.set_result(tensors)
    work = torch._C._distributed_c10d._create_work_from_future(future)  # type: ignore[attr-defined]
    return dist.Work.boxed(work)


if dist.is_available():

    @rule("c10d::allreduce_ c10d::allreduce_coalesced_", ORDER, sixteen_bits=True)
    def _allreduce(op: Operator, tensors: list[Tensor], group: Any, how: Any, *rest: Any) -> Any:
        ranks = _Ranks(op, group, how)
        if not ranks.rounds(tensors):
            return op.func(tensors, group, how, *rest)
        ranks.reduce(tensors)
        return _done(tensors) if len(op.func._schema.returns) == 1 else (tensors, _done(tensors))

    @rule("c10d::reduce_", ORDER, sixteen_bits=True)
    def _reduce(
        op: Operator, tensors: list[Tensor], group: Any, how: Any, root: int,
        *rest: Any,
    ) -> Any:  # fmt: skip
        ranks = _Ranks(op, group, how)
        if not ranks.rounds(tensors):
            return op.func(tensors, group, how, root, *rest)
        ranks.reduce(tensors, root)
        return _done(tensors)

    @rule(
        "c10d::reduce_scatter_ c10d::_reduce_scatter_base_ c10d::reduce_scatter_tensor_coalesced_",
        "each rank gathers its part, then joins it in the order of the ranks, one operation an "
        "element; AVG: then one division",
        sixteen_bits=True,
    )
    def _reduce_scatter(
        op: Operator, outputs: Any, inputs: Any, group: Any, how: Any,
        *rest: Any,
    ) -> Any:  # fmt: skip
        ranks = _Ranks(op, group, how)
        listed = [outputs] if isinstance(outputs, Tensor) else outputs
        given = [inputs] if isinstance(inputs, Tensor) else inputs
        if not ranks.rounds(listed):
            return op.func(outputs, inputs, group, how, *rest)
        parts = [
            list(x.contiguous().view(ranks.size, -1)) if isinstance(x, Tensor) else x
            for x in given
        ]
        ranks.scatter(listed, parts)
        return _done(listed) if len(op.func._schema.returns) == 1 else (outputs, _done(listed))

    @rule(
        "_c10d_functional::all_reduce _c10d_functional::all_reduce_ "
        "_c10d_functional::all_reduce_coalesced _c10d_functional::all_reduce_coalesced_",
        ORDER,
        sixteen_bits=True,
    )
    def _all_reduce(op: Operator, given: Any, how: str, group: Any) -> Any:
        ranks = _Ranks(op, group, how)
        tensors = [given] if isinstance(given, Tensor) else given
        if not ranks.rounds(tensors):
            return op.func(given, how, group)
        if not op.name.endswith("_"):
            tensors = [x.clone() for x in tensors]
        ranks.reduce(tensors)
        return tensors[0] if isinstance(given, Tensor) else tensors

    @rule(
        "_c10d_functional::reduce_scatter_tensor "
        "_c10d_functional::reduce_scatter_tensor_coalesced",
        "as reduce_scatter_",
        sixteen_bits=True,
    )
    def _scatter_tensor(op: Operator, given: Any, how: str, size: int, group: Any) -> Any:
        ranks = _Ranks(op, group, how)
        tensors = [given] if isinstance(given, Tensor) else given
        if not ranks.rounds(tensors):
            return op.func(given, how, size, group)
        outputs = [x.new_empty(x.shape[0] // size, *x.shape[1:]) for x in tensors]
        ranks.scatter(outputs, [list(x.chunk(size)) for x in tensors])
        return outputs[0] if isinstance(given, Tensor) else outputs
