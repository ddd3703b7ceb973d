"""Plans: recorded calls of operators, which are repeated without running their rules.

On the CPU a rule calls kernels and torch's operators. Which ones, and on which sizes, depends on
the kind of the call (operator, shapes, strides and types of tensors, values of Python numbers),
not on the values in its tensors. The second call of a kind is recorded; later ones repeat its
steps on their own tensors. Draws of random bits keep their numbers, so the bytes are the same. A
call that depends on values, or reads tensors that are not its operands, gets no plan (`refuse`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from threading import Lock, local
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

MEMORY = 2**26  # bytes of all plans that are kept
OVERHEAD = 5 * 2**10, 2**11  # bytes of a plan, and of each of its steps, without what arrays hold
KINDS = 2**15  # of calls of which is known that they came, but that have no plan
CONSTANT = 2**17  # bytes of tables in one plan: kernels with larger ones take longer than a rule
STEPS = 512  # the most in a plan

Step = Callable[[list[Any], list[int], int], None]  # of tensors, their addresses, first draw
_aten = torch.ops.aten
_NEW = frozenset(
    [
        _aten.empty.memory_format,
        _aten.empty_strided.default,
        _aten.empty_like.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    ]
)
_NOTHING = frozenset(  # operators that compute nothing from values
    [
        _aten.can_cast.default,
        _aten.detach_.default,
        _aten.promote_types.default,
        *(getattr(_aten.result_type, name) for name in _aten.result_type.overloads()),
    ]
)
_READS = frozenset(  # ways to read values that are no operators
    [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__]
)
_local = local()
_clock = count()
keeping = True  # False: every call by its rule; for the tests


class Changed(Exception):
    """A value that a plan relies on has changed: the call has to run its rule."""


def recording() -> Recording | None:
    """The recording of the calling thread, if it records."""
    return getattr(_local, "recording", None)


def refuse() -> None:
    """Make no plan of the call that this thread records: it depends on values, or does what a
    recording does not see."""
    if (now := recording()) is not None:
        now.refused = True


def constant(x: torch.Tensor) -> torch.Tensor:
    """The same tensor, which a rule made, and which depends on the kind of the call only."""
    if (now := recording()) is not None:
        now.constant(x)
    return x


def guard(x: torch.Tensor, holds: Callable[[torch.Tensor], bool]) -> bool:
    """Whether `holds(x)`, on which what a rule does depends."""
    now = recording()
    return holds(x) if now is None else now.guard(x, holds)


def unperturbed(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`function` of these tensors, a new one, which no mode sees: what Python computes from their
    values. A plan computes it in each call."""
    now = recording()
    return function(*tensors) if now is None else now.unperturbed(function, tensors)


class Plan:
    """The steps of a call, to be repeated: see `Recording.plan`."""

    __slots__ = (
        *("_counts", "_draws", "_first", "_kind", "_more", "_results", "_steps"),
        *("size", "used", "writes"),
    )

    def __init__(
        self,
        steps: Sequence[Step],
        guarded: int,
        more: Sequence[torch.Tensor | None],
        draws: int,
        counts: Sequence[tuple[str, int]],
        results: Sequence[Any],
        kind: Callable[[list[Any]], Any] | None,
        writes: Iterable[int],
        size: int,
    ) -> None:
        self._first, self._steps = tuple(steps[:guarded]), tuple(steps[guarded:])
        self._more, self._draws, self._counts = list(more), draws, tuple(counts)
        self._results, self._kind, self.writes = tuple(results), kind, tuple(writes)
        self.size, self.used = size, next(_clock)  # bytes; when it was run last

    def fits(self, operands: Sequence[torch.Tensor]) -> bool:
        """Whether what is written shares no memory with other operands."""
        if not self.writes:
            return True
        memory = [x.untyped_storage()._cdata for x in operands]
        return all(memory.count(memory[n]) == 1 for n in self.writes)

    def run(self, context: Stream, operands: list[torch.Tensor], addresses: list[int]) -> Any:
        """The result; raises Changed before anything is drawn."""
        self.used = next(_clock)
        tensors = operands + self._more
        places = addresses + [0] * len(self._more)
        for step in self._first:
            step(tensors, places, 0)
        start = context.next_draw
        if self._draws:
            context.advance(self._draws, self._counts)
        for step in self._steps:
            step(tensors, places, start)
        if self._kind is None:
            return self._results[0](tensors)
        return self._kind([result(tensors) for result in self._results])


class Stream(Protocol):
    """The part of `context.Context` that plans use."""

    @property
    def next_draw(self) -> int: ...
    def advance(self, draws: int, counts: Iterable[tuple[str, int]]) -> None: ...


class Plans:
    """Plans by the kind of the call; `memory` bounds the bytes of all."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.known: dict[Any, Plan] = {}
        self._bytes = 0
        self._seen: dict[int, bool] = {}  # hashes of other kinds; True: they get no plan
        self._lock = Lock()

    def to_record(self, kind: Any) -> bool:
        """Whether to record a call of this kind, which has no plan: True for the second call. (Not
        for the first: a number that changes in each step of a training makes a new kind.)"""
        if kind in self.known:
            return False
        number = hash(kind)
        refused = self._seen.get(number)
        if refused is None:
            self._see(number, False)
        return refused is False

    def enter(self, kind: Any, plan: Plan | None) -> None:
        """Keep a plan; where there is no more room, those that were not used for longest go."""
        with self._lock:
            if plan is None:
                return self._see(hash(kind), True)
            self._seen.pop(hash(kind), None)
            old = self.known.get(kind)
            self.known[kind] = plan
            self._bytes += plan.size - (old.size if old else 0)
            if self._bytes > self.memory:
                for one, _ in sorted(self.known.items(), key=lambda item: item[1].used):
                    if self._bytes <= self.memory // 2:
                        break
                    self._bytes -= self.known.pop(one).size
        return None

    def _see(self, number: int, refused: bool) -> None:
        if len(self._seen) >= KINDS:
            self._seen.clear()
        self._seen[number] = refused


kept = Plans(MEMORY)


class _Reads(TorchFunctionMode):
    """Refuses what reads values without an operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            refuse()
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """What a call of an operator does, below its rule: allocations, torch's operators, kernels.

    operands: the call's tensors, each once, which begin at different addresses; start: the number
    of the next draw.
    """

    def __init__(self, operands: Sequence[torch.Tensor], start: int) -> None:
        super().__init__()
        self.start = start
        self._operands = len(operands)
        self._known = list(operands)  # then constants and what is made; alive, with its address
        self._constant: set[int] = set()
        self._allocated: dict[int, tuple[Any, Any, torch.dtype]] = {}
        self._used: set[int] = set()  # as tensors, not only by their addresses
        self._written: set[int] = set()  # by torch's operators
        self._steps: list[Step | int] = []  # an integer: the tensor of this number is allocated
        self._guarded = 0  # steps that come before any draw
        self._drawn = False
        memory = [x.untyped_storage()._cdata for x in operands]
        self._shared = {m for m in memory if memory.count(m) > 1}
        self.refused = False
        self._size = 0  # bytes that kernels were given, or the plan's steps will hold
        self._outer: Recording | None = None
        self._reads = _Reads()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, for the reason that `RandomRounding` gives."""
        return False

    def __enter__(self) -> Recording:
        self._outer, _local.recording = recording(), self
        super().__enter__()
        self._reads.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reads.__exit__(*error)
        super().__exit__(*error)
        _local.recording = self._outer

    def constant(self, x: torch.Tensor) -> None:
        """Note a table that a rule made, and that depends on the kind of the call only."""
        self._constant.add(self._enter(x))

    def kernel(self, step: Step) -> None:
        """Note a call of a kernel."""
        self._add(step)
        self._drawn = True

    def unperturbed(
        self, function: Callable[..., torch.Tensor], given: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """See `unperturbed` above."""
        with _disable_current_modes():
            result = function(*given)
        found = [self._tensor(x) for x in given]
        if None in found:
            refuse()
        n = self._enter(result)

        def step(tensors: list[Any], addresses: list[int], start: int) -> None:
            x = tensors[n] = function(*(tensor(tensors) for tensor in found if tensor))
            addresses[n] = x.data_ptr()

        self._add(step)
        return result

    def _add(self, step: Step | int) -> None:
        self._steps.append(step)
        if len(self._steps) > STEPS:
            refuse()

    def guard(self, x: torch.Tensor, holds: Callable[[torch.Tensor], bool]) -> bool:
        """Whether `holds(x)`; the plan checks it again in each call and raises Changed if not."""
        with _disable_current_modes():
            found = holds(x)
        if self._owner(x) in self._constant:
            return found
        tensor = self._tensor(x)
        begun = self._drawn or any(n < self._operands for n in self._written)
        if tensor is None or not found or begun:
            refuse()
            return found

        def check(tensors: list[Any], addresses: list[int], start: int) -> None:
            if not holds(tensor(tensors)):
                raise Changed

        self._add(check)
        self._guarded = len(self._steps)
        return found

    def pointers(self, data: array, at: Iterable[int]) -> list[tuple[int, int, int]]:
        """Which of the places `at` in a kernel's arguments hold the address of a tensor that is no
        constant: (place, number of the tensor, bytes from its first element)."""
        found: list[tuple[int, int, int]] = []
        if self.refused:
            return found
        self._size += 8 * len(data)
        for place in at:
            where = self._place(data[place]) if data[place] else (-1, 0)
            if where is None:
                refuse()
            elif where[0] >= 0 and where[0] not in self._constant:
                found.append((place, *where))
        return found

    def _place(self, address: int) -> tuple[int, int] | None:
        for n, x in enumerate(self._known):
            if x.data_ptr() == address and x.numel():
                return n, 0
        inside = []
        for n, x in enumerate(self._known):
            memory = x.untyped_storage()
            if memory.data_ptr() <= address < memory.data_ptr() + memory.nbytes():
                inside.append((n, address - x.data_ptr()))
        return inside[0] if len(inside) == 1 else None

    def _enter(self, x: torch.Tensor) -> int:
        self._known.append(x)
        return len(self._known) - 1

    def _owner(self, x: torch.Tensor) -> int | None:
        """The number of the known tensor that this is, or lies in; None if there is none."""
        memory = x.untyped_storage()._cdata
        same = [n for n, y in enumerate(self._known) if y.untyped_storage()._cdata == memory]
        if len(same) > 1:  # operands that share memory
            same = [n for n in same if self._known[n].data_ptr() == x.data_ptr()]
        return same[0] if len(same) == 1 else None

    def _tensor(self, x: torch.Tensor) -> Callable[[list[Any]], Any] | None:
        """A function that takes this tensor from a plan's tensors; None if it is not known."""
        n = self._owner(x)
        if n is None or self._known[n].dtype != x.dtype:
            return None
        self._used.add(n)
        known = self._known[n]
        offset = x.storage_offset() - known.storage_offset()
        shape, strides = tuple(x.shape), x.stride()
        if not offset and known.shape == x.shape and known.stride() == strides:
            return itemgetter(n)

        def view(tensors: list[Any]) -> torch.Tensor:
            y = tensors[n]
            return y.as_strided(shape, strides, y.storage_offset() + offset)

        return view

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.refused and func not in _NOTHING:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if x is not None]
        if made and all(isinstance(x, torch.Tensor) and x.is_meta for x in made):
            return  # torch was asked for shapes and strides
        if not all(isinstance(x, torch.Tensor) and x.is_cpu for x in (*made, *given)):
            refuse()
        elif func is _aten.lift_fresh.default:  # a number as a tensor
            self.constant(made[0])
        elif func in _NEW:
            n = self._enter(made[0])
            self._allocated[n] = tuple(made[0].shape), made[0].stride(), made[0].dtype
            self._add(n)
        elif func._schema.is_mutable or any(self._owner(x) is None for x in made):
            self._call(func, args, kwargs, result)
        elif {x.data_ptr() for x in made} - {x.data_ptr() for x in given} and any(
            x.untyped_storage()._cdata in self._shared for x in made
        ):  # a view that may begin where another operand does
            refuse()

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a call of an operator of torch that computes something."""
        written = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        if written:
            first = len(written) == 1 and written[0] is func._schema.arguments[0]
            owner = self._owner(args[0]) if first and isinstance(args[0], torch.Tensor) else None
            if owner is None or torch.Tag.inplace_view in func.tags:
                return refuse()
            self._written.add(owner)
        known: dict[int, _Known] = {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):
                tensor = self._tensor(x)
                if tensor is None:
                    return refuse()
                known[id(x)] = _Known(tensor)
        given = tree_map_only(torch.Tensor, lambda x: known[id(x)], (args, kwargs))
        single = isinstance(result, torch.Tensor)
        results = [result] if single else list(result)
        to = [None if x is None or self._owner(x) is not None else self._enter(x) for x in results]

        def step(tensors: list[Any], addresses: list[int], start: int) -> None:
            numbered = [_found(x, tensors) for x in given[0]]
            out = func(*numbered, **{name: _found(x, tensors) for name, x in given[1].items()})
            for n, x in zip(to, (out,) if single else out, strict=True):
                if n is not None:
                    tensors[n], addresses[n] = x, x.data_ptr()

        self._add(step)
        return None

    def plan(
        self, result: Any, writes: Sequence[int], draws: int, counts: Sequence[tuple[str, int]]
    ) -> Plan | None:
        """The plan of what was recorded, if there is one.

        writes: the operands that the operator writes to, by its schema.
        """
        kind: Callable[[list[Any]], Any] | None = None
        leaves = [result]
        if result is None:
            kind, leaves = _nothing, []
        elif isinstance(result, tuple | list):
            kind, leaves = type(result), list(result)
        if self.refused or self._written & self._constant:
            return None
        if not all(isinstance(x, torch.Tensor) for x in leaves):
            return None
        for x in leaves:
            n = self._owner(x)
            if n is None or n in self._constant:
                return None
            if n < self._operands and x is not self._known[n]:
                return None
            made = self._known[n]
            alike = x.numel() == made.numel() and x.dtype == made.dtype
            dense = x.is_contiguous() and made.is_contiguous()
            if n in self._allocated and n not in self._used and alike and dense:
                self._allocated[n] = tuple(x.shape), x.stride(), x.dtype
                self._known[n] = x  # is made in the shape of the result
        results = [self._tensor(x) for x in leaves]
        more = [
            x if n in self._constant else None
            for n, x in enumerate(self._known)
            if n >= self._operands
        ]
        steps = [
            _allocation(s, *self._allocated[s]) if isinstance(s, int) else s for s in self._steps
        ]
        written = {*writes, *(n for n in self._written if n < self._operands)}
        tables = sum(x.untyped_storage().nbytes() for x in more if x is not None)
        size = tables + self._size + OVERHEAD[0] + OVERHEAD[1] * len(steps)
        plan = Plan(steps, self._guarded, more, draws, counts, results, kind, written, size)
        if None in results or (written and not plan.fits(self._known[: self._operands])):
            return None
        return plan if tables <= CONSTANT else None


def _nothing(results: list[Any]) -> None:
    """What an operator returns that has no result."""


@dataclass(slots=True)
class _Known:
    """Stands for a tensor in the arguments of an operator."""

    tensor: Callable[[list[Any]], torch.Tensor]


def _found(x: Any, tensors: list[Any]) -> Any:
    """An argument, with the tensors of this call."""
    if type(x) is _Known:
        return x.tensor(tensors)
    return [_found(y, tensors) for y in x] if isinstance(x, list | tuple) else x


def _allocation(n: int, shape: Any, strides: Any, dtype: torch.dtype) -> Step:
    def step(tensors: list[Any], addresses: list[int], start: int) -> None:
        x = tensors[n] = torch.empty_strided(shape, strides, dtype=dtype)
        addresses[n] = x.data_ptr()

    return step
