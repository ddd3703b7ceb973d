"""Elementary operations that are recorded and then computed together, in one call into C.

A rule computes on tensors, an operation at a time. Here an operation gives a `Value` that is not
computed yet; the program that it belongs to is computed when a tensor is needed: block by block,
so that what lies between stays in the cache. Each operation keeps the key that it drew when it was
recorded and each element its number, so the bytes are those of the separate kernels
(csrc/program.h; tests/engines/native/test_program.py compares all rules with both).

A program has one shape. Values have it, or the shape with one element for each row (the last
axis, or several), which sums over rows have and what is computed of them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any
from weakref import ref

import torch
from torch.utils._pytree import tree_map

from morphbits.choices import MODES
from morphbits.engines.native.kernels import functions, library, plans
from morphbits.engines.native.kernels.library import (
    OPERATIONS,
    TYPES,
    VARIANTS,
    Rounding,
)
from morphbits.engines.native.kernels.precision import FLOAT32

_OPCODES = {name: number for number, name in enumerate(OPERATIONS)} | {
    name: 16 + number
    for number, name in enumerate(
        """
        function widen neg abs gt ge lt le eq ne where and or not spread sum scan store store_mask
        fetch fetch_mask memory constant
        """.split()
    )
}
_FUNCTIONS = {name: number for number, name in enumerate(functions.FUNCTIONS)}
_FIELDS = 9  # of an instruction
_TYPE, _ROWS, _DRAW, _EXTRA, _OUT = 1, 2, 6, 7, 8  # of these
_ADDRESSES = {  # in `extra`
    _OPCODES[name] for name in ("memory", "fetch", "fetch_mask", "store", "store_mask")
}
_START = 2  # in the head of a program
_MAX_DIMS = 8
LONGEST_ROW = 256 * 256  # that a program sums

recording = True  # False: each operation by itself, at once; for the tests

Shape = tuple[int, ...]


class Value:
    """A result that is computed when it is needed; to a rule it looks like the tensor."""

    __slots__ = ("__weakref__", "_computed", "_index", "_program", "dtype", "shape")

    def __init__(self, program: Program, index: int, shape: Shape, dtype: torch.dtype) -> None:
        self._program, self._index, self.shape, self.dtype = program, index, shape, dtype
        self._computed: torch.Tensor | None = None

    def tensor(self) -> torch.Tensor:
        """The result."""
        if self._computed is None:
            self._program.run()
        assert self._computed is not None
        return self._computed

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RECORDED and not kwargs:
            result = _RECORDED[func](*args)
            if result is not NotImplemented:
                return result
        args, kwargs = tree_map(computed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def _exact(self, opcode: str, other: Any = None, dtype: torch.dtype | None = None) -> Any:
        operands = (self,) if other is None else (self, other)
        result = _exact(self, opcode, operands, dtype or self.dtype)
        if result is not NotImplemented:
            return result
        name = opcode if opcode in ("neg", "abs") else f"__{opcode}__"
        method = getattr(torch.Tensor, {"__not__": "__invert__"}.get(name, name))
        return method(*map(computed, operands))

    def __neg__(self) -> Any:
        return self._exact("neg")

    def abs(self) -> Any:
        return self._exact("abs")

    def __gt__(self, other: Any) -> Any:
        return self._exact("gt", other, torch.bool)

    def __ge__(self, other: Any) -> Any:
        return self._exact("ge", other, torch.bool)

    def __lt__(self, other: Any) -> Any:
        return self._exact("lt", other, torch.bool)

    def __le__(self, other: Any) -> Any:
        return self._exact("le", other, torch.bool)

    def __eq__(self, other: Any) -> Any:
        return self._exact("eq", other, torch.bool)

    def __ne__(self, other: Any) -> Any:
        return self._exact("ne", other, torch.bool)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Any:
        return self._exact("and", other, torch.bool)

    def __or__(self, other: Any) -> Any:
        return self._exact("or", other, torch.bool)

    def __invert__(self) -> Any:
        return self._exact("not", None, torch.bool)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.tensor()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.tensor())

    def __float__(self) -> float:
        return float(self.tensor())

    def isnan(self) -> Any:
        return self != self

    def double(self) -> Any:
        return self.to(torch.float64)

    def to(self, dtype: torch.dtype) -> Any:
        """As Tensor.to; a conversion that loses bits is none of a program's exact operations."""
        if dtype == self.dtype:
            return self
        program = self._program
        if dtype == torch.float64 and self.dtype == torch.float32 and self._computed is None:
            return program.add("widen", dtype, self.shape, (self,))
        return self.tensor().to(dtype)

    def clamp(self, min: float | None = None, max: float | None = None) -> Any:
        out: Any = self
        for bound, below in ((min, True), (max, False)):
            if bound is not None:
                out = torch.where(out < bound if below else out > bound, bound, out)
        return out


Operand = torch.Tensor | Value | float | int


def computed(x: Any) -> Any:
    """The tensor, where `x` is a value of a program; else `x`."""
    return x.tensor() if isinstance(x, Value) else x


def takes(rounding: Rounding, *operands: Any) -> bool:
    """Whether an operation on these can be recorded."""
    if (
        not recording
        or rounding.chosen_variant not in VARIANTS  # the naive reference, a GPU's stand-in
        or rounding.operands != FLOAT32
        or (rounding.format != FLOAT32 and rounding.flush)
    ):
        return False
    return all(
        x.is_cpu and x.dtype in TYPES and x.numel() and x.dim() <= _MAX_DIMS
        for x in operands
        if isinstance(x, torch.Tensor)
    )


def _exact(first: Value, opcode: str, operands: Sequence[Any], dtype: torch.dtype) -> Any:
    """An operation that rounds nothing, as a part of the program of `first`."""
    program = first._program
    if first._computed is not None or program.done:
        return NotImplemented
    width = program.width(first)
    shape: Shape = first.shape
    for x in operands:
        if isinstance(x, Value):
            if x._program is not program or x._computed is not None:
                x = x.tensor()
            elif program.width(x) != width:
                return NotImplemented
        if isinstance(x, torch.Tensor):
            mask = x.dtype == torch.bool and opcode in ("and", "or", "where")
            if not x.is_cpu or not (mask or TYPES.get(x.dtype) == width):
                return NotImplemented
        if isinstance(x, torch.Tensor | Value) and x.shape != shape:
            shape = torch.broadcast_shapes(shape, x.shape)
    if not program.fits(shape):
        return NotImplemented
    read = torch.float64 if width == TYPES[torch.float64] else torch.float32
    return program.add(opcode, dtype, shape, operands, read=read)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    """torch.where, if one of these belongs to a program."""
    values = [x for x in (condition, yes, no) if isinstance(x, Value)]
    types = {x.dtype for x in (yes, no) if isinstance(x, torch.Tensor | Value)}
    floats = all(isinstance(x, torch.Tensor | Value | float | int) for x in (yes, no))
    if condition.dtype != torch.bool or len(types) != 1 or not floats:
        return NotImplemented
    dtype = types.pop()
    if dtype not in TYPES:
        return NotImplemented
    return _exact(values[0], "where", (condition, yes, no), dtype)


def _copy(to: Any, value: Any) -> Any:
    """Tensor.copy_ of a value: computed in its place, where nothing else lies there."""
    program = value._program
    if isinstance(to, Value) or value._computed is not None or not program.can_write(to, value):
        return NotImplemented
    program.run(to, value)
    return to


_RECORDED: dict[Any, Callable[..., Any]] = {torch.where: _where, torch.Tensor.copy_: _copy}


class Recorder:
    """What records the operations of one operator, in one program after the other.

    start: the number in which the random stream begins (`Context.start`).
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._program: Program | None = None
        self._first = 0  # draw of the program

    def _joined(self, rounding: Rounding, draw: int, shape: Shape, axes: int = 0) -> Program:
        """The program of an operation; axes: of a row, if it reads whole rows."""
        program = self._program
        fits = program is not None and program.fits(shape) and program.mode == how(rounding)
        if program is None or not fits or (axes and program.by_rows and axes != program.axes):
            self.run()
            program = self._program = Program(rounding, self._start + draw, shape)
            self._first = draw
        if axes:
            program.by_rows, program.axes = True, axes
        return program

    def operation(
        self,
        rounding: Rounding,
        draw: int,
        opcode: str,
        dtype: torch.dtype,
        shape: Shape,
        *operands: Operand,
        read: torch.dtype | None = None,
    ) -> Value:
        """One elementary operation, or a function, of operands that are broadcast to `shape`;
        draw: the number of the operation in the random stream."""
        program = self._joined(rounding, draw, shape)
        extra = 0
        if opcode in _FUNCTIONS:
            opcode, extra = "function", _FUNCTIONS[opcode]
        return program.add(opcode, dtype, shape, operands, draw - self._first, extra, read)

    def negative(self, rounding: Rounding, draw: int, x: torch.Tensor) -> Value:
        """−x; draw: the number of the next operation."""
        shape = tuple(x.shape)
        return self._joined(rounding, draw, shape).add("neg", x.dtype, shape, (x,))

    def widened(self, rounding: Rounding, draw: int, x: torch.Tensor) -> Value:
        """float32 `x` as float64; draw: the number of the next operation."""
        shape = tuple(x.shape)
        program = self._joined(rounding, draw, shape)
        return program.add("widen", torch.float64, shape, (x,), read=torch.float32)

    def row_sum(
        self, rounding: Rounding, draws: Sequence[int], x: torch.Tensor | Value, axes: int = 1
    ) -> Value:
        """The sum over the last `axes`, which stay as one element; a draw for each level."""
        program = self._joined(rounding, draws[0], tuple(x.shape), axes)
        first, last = draws[0] - self._first, draws[-1] - self._first
        return program.add("sum", x.dtype, program.row_shape, (x,), first, last)

    def row_scan(
        self, rounding: Rounding, draw: int, x: torch.Tensor | Value, operation: str
    ) -> Value:
        """Partial sums (add) or products (mul) over the last axis, from left to right."""
        shape = tuple(x.shape)
        program = self._joined(rounding, draw, shape, 1)
        extra = OPERATIONS.index(operation)
        return program.add("scan", x.dtype, shape, (x,), draw - self._first, extra)

    def run(self) -> None:
        """Compute what is still needed."""
        if self._program is not None:
            self._program.run()
            self._program = None


class Program:
    """Operations on tensors of one shape, all rounded by one mode; `run` computes them."""

    def __init__(self, rounding: Rounding, start: int, shape: Shape) -> None:
        self.start, self.shape = start, shape
        self.mode = how(rounding)
        self.by_rows = False
        self.axes = 1  # of a row: the last ones
        self._code: list[int] = []
        self._values: dict[int, ref[Value]] = {}
        self._places: dict[Any, int] = {}  # of operands, by what they are
        self._kept: list[tuple[torch.Tensor, int | None]] = []  # operands, and their versions
        self._fetched: list[tuple[int, torch.Tensor]] = []
        self.done = False

    def fits(self, shape: Shape) -> bool:
        """Whether an operation of this shape can join; one of rows makes this a program of rows,
        and the first one of the whole after such of one element a row, too."""
        if self.done:
            return False
        if shape == self.shape or (self.by_rows and shape == self.row_shape):
            return True
        if self.axes > 1 or shape[:-1] != self.shape[:-1] or not shape or not self.shape:
            return False
        if shape[-1] == 1 and self.shape[-1] <= LONGEST_ROW:
            self.by_rows = True
            return True
        if self.shape[-1] == 1 and not self._fetched and shape[-1] <= LONGEST_ROW:
            self.shape, self.by_rows = shape, True
            self._code[_ROWS::_FIELDS] = [1] * (len(self._code) // _FIELDS)
            self._places = {
                key if key[-1] is None else (*key[:-1], True): place
                for key, place in self._places.items()
            }
            return True
        return False

    @property
    def row_shape(self) -> Shape:
        return (*self.shape[: -self.axes], *(1,) * self.axes)

    def add(
        self,
        opcode: str,
        dtype: torch.dtype,
        shape: Shape,
        operands: Sequence[Operand],
        draw: int = 0,
        extra: int = 0,
        read: torch.dtype | None = None,
    ) -> Value:
        """The value of an operation; its operands have the type `read`, or `dtype`."""
        rows = shape != self.shape
        places = [self._place(x, read or dtype, rows and opcode != "sum") for x in operands]
        width = read if dtype == torch.bool and read is not None else dtype
        index = self._emit(opcode, width, rows, places, draw, extra)
        value = Value(self, index, shape, dtype)
        self._values[index] = ref(value)
        return value

    def _emit(
        self,
        opcode: str,
        dtype: torch.dtype,
        rows: bool,
        places: Sequence[int] = (),
        draw: int = 0,
        extra: int = 0,
    ) -> int:
        a, b, c = (*places, -1, -1, -1)[:3]
        self._code += (_OPCODES[opcode], TYPES[dtype], rows, a, b, c, draw, extra, 0)
        return len(self._code) // _FIELDS - 1

    def _place(self, x: Operand, dtype: torch.dtype, rows: bool) -> int:
        """The number of the value that an operand is."""
        if isinstance(x, Value):
            if x._program is self and x._computed is None:
                if rows or x.shape == self.shape:
                    return x._index
                return self._once((x._index, None), "spread", dtype, False, [x._index])
            x = x.tensor()
        if not isinstance(x, torch.Tensor):
            if abs(x) > 2**53 and isinstance(x, int):  # rounded once, not by way of float64
                x = torch.tensor(x, dtype=dtype).item()
            bits = struct.unpack("q", struct.pack("d", x))[0]
            return self._once((bits, dtype, None), "constant", dtype, False, extra=bits)
        shape = self.row_shape if rows else self.shape
        mask = x.dtype == torch.bool
        if rows and not (x.shape == shape and x.is_contiguous()):
            x = x.expand(shape).contiguous()
        key = (id(x), dtype, rows)
        if key in self._places:
            return self._places[key]
        self._kept.append((x, None if x.is_inference() else x._version))
        if not mask and x.shape == shape and x.is_contiguous():
            return self._once(key, "memory", dtype, rows, extra=x.data_ptr())
        strides = len(self._fetched)
        name = "fetch_mask" if mask else "fetch"
        place = self._once(key, name, dtype, rows, [strides], extra=x.data_ptr())
        self._fetched.append((place, x))
        return place

    def _once(
        self,
        key: Any,
        opcode: str,
        dtype: torch.dtype,
        rows: bool,
        places: Sequence[int] = (),
        extra: int = 0,
    ) -> int:
        if key not in self._places:
            self._places[key] = self._emit(opcode, dtype, rows, places, 0, extra)
        return self._places[key]

    def width(self, value: Value) -> int:
        """The type of a mask's operands, as a number."""
        return self._code[_FIELDS * value._index + _TYPE]

    def can_write(self, to: torch.Tensor, value: Value) -> bool:
        """Whether this value can be computed in the place of a tensor."""
        if value.shape != to.shape or value.dtype != to.dtype or not to.is_contiguous():
            return False
        size = to.numel() * to.element_size()
        begin = to.data_ptr()
        for x, _ in self._kept:
            same = x.data_ptr() == begin and x.is_contiguous() and x.shape == self.shape
            if not same and x.untyped_storage().data_ptr() == to.untyped_storage().data_ptr():
                return False
        return to.is_cpu and size > 0

    def run(self, into: torch.Tensor | None = None, value: Value | None = None) -> None:
        """Compute all that is still needed; `value` in the place of `into`."""
        if self.done:
            return
        self.done = True
        code = self._code
        for x, version in self._kept:
            if version is not None and x._version != version:
                raise RuntimeError("an operand was changed between its use and the computation")
        for index, reference in self._values.items():
            living = reference()
            if living is None:
                continue
            at = _FIELDS * index
            in_place = into is not None and living is value
            out = torch.empty(living.shape, dtype=living.dtype) if not in_place else into
            assert out is not None
            living._computed = out
            if in_place or living.dtype == torch.bool:  # after all that reads what was there
                store = "store" if in_place else "store_mask"
                width, rows = code[at + _TYPE : at + _ROWS + 1]
                code += (_OPCODES[store], width, rows, index, -1, -1, 0, out.data_ptr(), 0)
            else:
                code[at + _OUT] = out.data_ptr()
        total = prod(self.shape)
        dims, strides = [total], []
        if self._fetched:
            wide = [x.expand(self.shape).stride() for _, x in self._fetched]
            dims, merged = library.coalesced(self.shape, wide)
            strides = [n for each in merged for n in library.padded(each)]
        inner = prod(self.shape[-self.axes :]) if self.by_rows else 0
        head = [len(code) // _FIELDS, total, 0, inner, len(dims), *library.padded(dims), 0, 0]
        tables = array("q", head), array("q", code), array("q", strides)
        _call(self.mode, self.start, *tables)
        self._code, self._kept, self._values = [], [], {}


def _call(mode: bytes, start: int, head: array, code: array, strides: array) -> None:
    if (now := plans.recording()) is not None:
        now.kernel(_again(now, mode, start, head, code, strides))
    head[_START] = library.signed(start)
    head[-2], head[-1] = code.buffer_info()[0], strides.buffer_info()[0]
    library.check_status(_function()(mode, head.buffer_info()[0]))


def _again(
    now: plans.Recording, mode: bytes, start: int, head: array, code: array, strides: array
) -> plans.Step:
    """The same call as a step of a plan: with the addresses and random bits of a later call."""
    data, size = head + code + strides, len(head)
    at, end = [], size + len(code)
    for place in range(size, end, _FIELDS):
        if data[place] in _ADDRESSES:
            at.append(place + _EXTRA)
        at.append(place + _OUT)
    pointers, draw, function = now.pointers(data, at), start - now.start, _function()

    def step(tensors: list[Any], addresses: list[int], start: int) -> None:
        given = data[:]
        for place, n, offset in pointers:
            given[place] = addresses[n] + offset
        begin = given.buffer_info()[0]
        given[_START] = library.signed(start + draw)
        given[size - 2], given[size - 1] = begin + 8 * size, begin + 8 * end
        library.check_status(function(mode, begin))

    return step


def _function() -> Callable[[bytes, int], int]:
    return library.by_address("morphbits_program")


def how(rounding: Rounding) -> bytes:
    """A rounding as C reads it, without its key."""
    format = rounding.format
    fields = MODES.index(rounding.mode), rounding.flush, rounding.threads
    return _packed(*fields, VARIANTS.index(rounding.chosen_variant), format.bits, format.emin)


@lru_cache
def _packed(mode: int, flush: bool, threads: int, variant: int, bits: int, emin: int) -> bytes:
    return struct.pack("iiiiQii", mode, flush, threads, variant, 0, bits, emin)
