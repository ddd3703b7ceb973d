"""The compiled kernels, called through ctypes on torch tensors.

Every function returns a new contiguous tensor; the naive reference is the variant "naive". See
csrc/morphbits.h.
"""

from __future__ import annotations

import ctypes
import math
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from morphbits.engines.native.kernels import gpu, plans
from morphbits.engines.native.kernels.build import build
from morphbits.engines.native.kernels.header import names
from morphbits.engines.native.kernels.precision import FLOAT32, Format
from morphbits.errors import UserError

*VARIANTS, _ = names("variant")
OPERATIONS, MODES = names("operation"), names("mode")
TYPES = {getattr(torch, name): number for number, name in enumerate(names("type"))}
_MAX_DIMS = 8
_MASK = 2**64 - 1
_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


@dataclass(slots=True)
class Rounding:
    """How the operations of one operator are rounded; `key` stands for (seed, number of the
    operator).

    format: of each float32 result; operands: what an elementwise operator's float32 operands are
    first rounded to, to nearest; number: of the draw in the stream, from which `key` is made.
    """

    mode: str
    flush: bool = False
    threads: int = 1
    key: int = 0
    variant: str | None = None
    format: Format = FLOAT32
    operands: Format = FLOAT32
    number: int | None = None

    @property
    def chosen_variant(self) -> str:
        return self.variant or default_variant()

    def as_c(self) -> _Rounding:
        variant = (*VARIANTS, "naive", "emulated").index(self.chosen_variant)
        mode, format = MODES.index(self.mode), (self.format.bits, self.format.emin)
        return _Rounding(mode, self.flush, self.threads, variant, self.key, *format)


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one output of a convolution, in the order of accumulation.

    tap, channel: (terms,) int64, position in the kernel (row-major) and input channel of each
    term; segment_end: (segments,) int64, the term after the last one of each chain. bias_starts:
    the first chain starts from the bias; bias_first: the bias is added to the first chain's sum;
    neither: the bias is added last.
    """

    tap: np.ndarray
    channel: np.ndarray
    segment_end: np.ndarray
    bias_first: bool = False
    bias_starts: bool = False


class _Rounding(ctypes.Structure):
    _fields_ = (
        ("mode", _I32),
        ("flush", _I32),
        ("threads", _I32),
        ("variant", _I32),
        ("key", ctypes.c_uint64),
        ("precision", _I32),
        ("emin", _I32),
    )


_KEY = _Rounding.key.offset // 8


class _Elementwise(ctypes.Structure):
    _fields_ = (
        ("operation", _I32),
        ("type", _I32),
        ("dims", _I32),
        ("shape", _I64 * _MAX_DIMS),
        ("stride_a", _I64 * _MAX_DIMS),
        ("stride_b", _I64 * _MAX_DIMS),
        ("a", _PTR),
        ("b", _PTR),
        ("out", _PTR),
    )


class _Convolution(ctypes.Structure):
    _fields_ = (
        ("type", _I32),
        ("bias_first", _I32),
        ("batch", _I64),
        ("channels_in", _I64),
        ("channels_out", _I64),
        ("size_in", _I64 * 3),
        ("size_out", _I64 * 3),
        ("kernel", _I64 * 3),
        ("stride", _I64 * 3),
        ("padding", _I64 * 3),
        ("dilation", _I64 * 3),
        ("terms", _I64),
        ("segments", _I64),
        ("tap", _PTR),
        ("channel", _PTR),
        ("segment_end", _PTR),
        ("input", _PTR),
        ("weight", _PTR),
        ("bias", _PTR),
        ("output", _PTR),
    )


@cache
def load() -> ctypes.CDLL:
    """The kernel library, built at the first call."""
    path = build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"the compiled kernels cannot be loaded ({error}): delete {path}, and they are "
            "compiled again"
        ) from error
    library.morphbits_control.restype = ctypes.c_uint64
    return library


@cache
def available_variants() -> tuple[str, ...]:
    """The variants that this processor can run, the fastest last."""
    mask = load().morphbits_variants()
    return tuple(name for bit, name in enumerate(VARIANTS) if mask >> bit & 1)


@cache
def default_variant() -> str:
    """The fastest variant, or the one that the environment variable MORPHBITS_VARIANT names."""
    chosen = os.environ.get("MORPHBITS_VARIANT", available_variants()[-1])
    if chosen not in available_variants():
        names = ", ".join(available_variants())
        raise UserError(f"MORPHBITS_VARIANT={chosen} cannot run here; this processor runs {names}")
    return chosen


def control_register() -> int:
    """The floating-point control register of the calling thread."""
    return int(load().morphbits_control())


def elementwise(
    rounding: Rounding,
    operation: str,
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    in_place: bool = False,
) -> torch.Tensor:
    """`operation` on each element of `a` and `b`, broadcast; one rounding an element.

    a, b: both float32 or both float64, any shape and strides. "narrow" takes float64 and returns
    float32; "leaky_relu" returns a where a > 0 and a·b elsewhere; "round" takes float32 and rounds
    it to `rounding.format`. `in_place` writes the result over `a`, which must have the shape and
    type of the result.
    """
    if rounding.operands != FLOAT32 and a.dtype == torch.float32:
        rounding, stored = replace(rounding, operands=FLOAT32), rounding.operands
        first = rounded(a, stored, rounding.threads)
        second = None if b is None else rounded(b, stored, rounding.threads)
        out = elementwise(rounding, operation, first, second)
        return a.copy_(out) if in_place else out
    operands = on_one_device(*([a] if b is None else [a, b]))
    a, b = operands[0], None if b is None else operands[1]
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    if in_place and not (a.is_contiguous() and (b is None or not _overlap(a, b))):
        return a.copy_(elementwise(rounding, operation, a, b))
    dtype = torch.float32 if operation == "narrow" else a.dtype
    out = a if in_place else torch.empty(shape, dtype=dtype, device=a.device)
    check_size(out)
    if out.numel() == 0:
        return out
    dims, strides = coalesced(shape, [x.expand(shape).stride() for x in operands])
    if len(dims) > _MAX_DIMS:
        a = a if in_place else a.expand(shape).contiguous()
        b = None if b is None else b.expand(shape).contiguous()
        return elementwise(rounding, operation, a, b, in_place)
    arguments = _Elementwise(
        operation=OPERATIONS.index(operation),
        type=TYPES[out.dtype],
        dims=len(dims),
        shape=padded(dims),
        stride_a=padded(strides[0]),
        stride_b=padded(strides[-1]),
        a=a.data_ptr(),
        b=None if b is None else b.data_ptr(),
        out=out.data_ptr(),
    )
    call(load().morphbits_elementwise, rounding, arguments, out.device, fits=True)
    return out


def rounded(x: torch.Tensor, format: Format, threads: int = 1) -> torch.Tensor:
    """`x` (float32) to nearest in a format; other types stay."""
    if format == FLOAT32 or x.dtype != torch.float32:
        return x
    return elementwise(Rounding("nearest", threads=threads, format=format), "round", x)


def convolution(
    rounding: Rounding,
    input_BCXYZ: torch.Tensor,
    weight_OCxyz: torch.Tensor,
    bias_O: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    terms: Terms,
) -> torch.Tensor:
    """A 3-D convolution (cross-correlation, zero padding) accumulated in the order that `terms`
    names.

    input (B, C, X, Y, Z), weight (O, C, x, y, z), bias (O): all float32 or all float64; returns
    (B, O, X', Y', Z').
    """
    given = (input_BCXYZ, weight_OCxyz) if bias_O is None else (input_BCXYZ, weight_OCxyz, bias_O)
    x, w, *biases = (v.contiguous() for v in on_one_device(*given))
    b = biases[0] if biases else None
    size = convolution_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    out = torch.empty((x.shape[0], w.shape[0], *size), dtype=x.dtype, device=x.device)
    check_size(out)
    if out.numel() == 0:
        return out
    tap, ends = table(terms.tap, x.device), table(terms.segment_end, x.device)
    channel = table(terms.channel, x.device)
    finite = plans.guard(w, _is_finite)
    on_gpu = gpu.takes(rounding, x.device)
    if on_gpu:
        if not finite:
            raise UserError("the native engine takes no infinite or NaN weights on a GPU")
        w, tap = gpu.pack(w, tap, channel, dilation)
    place = "start" if terms.bias_starts else "first" if terms.bias_first else "last"
    arguments = _Convolution(
        type=TYPES[x.dtype],
        bias_first=names("bias").index("last" if b is None else place),
        batch=x.shape[0],
        channels_in=x.shape[1],
        channels_out=out.shape[1],
        size_in=tuple(x.shape[2:]),
        size_out=tuple(size),
        kernel=tuple(weight_OCxyz.shape[2:]),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        terms=len(terms.tap),
        segments=len(terms.segment_end),
        tap=tap.data_ptr(),
        channel=channel.data_ptr(),
        segment_end=ends.data_ptr(),
        input=x.data_ptr(),
        weight=w.data_ptr(),
        bias=None if b is None else b.data_ptr(),
        output=out.data_ptr(),
    )
    by_naive = terms.bias_starts and x.dtype == torch.float64  # no fast kernel starts from it
    # outside the image the fast kernels multiply by zero
    if not on_gpu and (by_naive or not finite):
        rounding = replace(rounding, threads=1, variant="naive")
    fits = rounding.format.emin == FLOAT32.emin
    call(load().morphbits_convolution, rounding, arguments, x.device, fits)
    return out


def _is_finite(x: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN."""
    return all(math.isfinite(bound) for bound in torch.aminmax(x))


def convolution_size(
    size_in: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The spatial size of a convolution's output."""
    return [
        (size_in[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(len(size_in))
    ]


def call(
    function: Callable[..., int],
    rounding: Rounding,
    arguments: ctypes.Structure,
    device: torch.device,
    fits: bool = False,
) -> None:
    """Call a kernel on data of `device`; `fits` says that it knows formats of fewer bits."""
    name = function.__name__.removeprefix("morphbits_")  # type: ignore[attr-defined]
    if rounding.format != FLOAT32 and (rounding.flush or not fits):
        why = " and with subnormals=flush" if rounding.flush else ""
        raise UserError(
            f"the native engine has no rule for {name} in fewer than float32's bits{why}"
        )
    if gpu.takes(rounding, device):
        plans.refuse()
        gpu.call(name, rounding, arguments, device)
        return
    if (now := plans.recording()) is not None:
        now.kernel(_again(now, name, rounding, arguments))
    check_status(function(ctypes.byref(rounding.as_c()), ctypes.byref(arguments)))


def _again(
    now: plans.Recording, name: str, rounding: Rounding, arguments: ctypes.Structure
) -> plans.Step:
    """The same call as a step of a plan: with the addresses and random bits of a later call."""
    data = array("q", bytes(rounding.as_c()) + bytes(arguments))
    fields = [field for field, kind, *_ in arguments._fields_ if kind is _PTR]
    begin = ctypes.sizeof(_Rounding)
    at = [(begin + getattr(type(arguments), field).offset) // 8 for field in fields]
    pointers = now.pointers(data, at)
    draw = None if rounding.number is None else rounding.number - now.start
    if draw is None and rounding.mode in ("random", "nearness"):
        plans.refuse()
    function = by_address(f"morphbits_{name}")

    def step(tensors: list[torch.Tensor], addresses: list[int], start: int) -> None:
        given = data[:]
        for place, n, offset in pointers:
            given[place] = addresses[n] + offset
        if draw is not None:
            given[_KEY] = signed(mix64(start + draw))
        at = given.buffer_info()[0]
        check_status(function(at, at + begin))

    return step


@cache
def by_address(name: str) -> Callable[[Any, int], int]:
    """The kernel of this name, which is called with two addresses (or bytes objects): those of its
    rounding and its arguments."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, _PTR, _PTR)
    return kind((name, load()))


def mix64(x: int) -> int:
    """Splitmix64's step (Steele, Lea, Flood 2014): the key of draw number `x` of a stream."""
    x = (x + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def signed(x: int) -> int:
    """The number modulo 2^64 as a signed 64-bit integer."""
    return (x + 2**63 & _MASK) - 2**63


def check_status(status: int) -> None:
    """Raise what a kernel's result says."""
    if status == names("status").index("out_of_memory"):
        raise UserError(
            "out of memory in a kernel of the native engine; use a smaller image or model"
        )
    if status:
        raise RuntimeError(f"a kernel of the native engine failed with status {status}")


def check_size(out: torch.Tensor) -> None:
    """UserError if a result has more elements than can be numbered."""
    if out.numel() >= 2**32:
        raise UserError(
            f"a result of {out.numel()} elements: the native engine numbers at most 2^32 - 1"
        )


def on_one_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors where the kernel runs; a number on the CPU follows the others, as in torch."""
    devices = {x.device for x in tensors if x.dim() or x.device.type != "cpu"}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise UserError(f"the native engine was given one operator's tensors on {names}")
    return [x.to(device) for device in devices for x in tensors] or list(tensors)


def table(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Numbers that a kernel reads, where it runs."""
    return plans.constant(torch.from_numpy(values).to(device))


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the tensors may share memory other than element by element."""
    same = a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    (start_a, end_a), (start_b, end_b) = _extent(a), _extent(b)
    return not same and start_a < end_b and start_b < end_a


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """First byte of a tensor, and the one after its last."""
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def padded(values: Sequence[int]) -> tuple[int, ...]:
    """As many as a kernel's structure has room for."""
    return (*values, *(0 for _ in range(_MAX_DIMS - len(values))))


def coalesced(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dimensions that every operand walks through as one; at least one
    dimension is left."""
    dims: list[int] = [1]
    merged: list[list[int]] = [[0] for _ in strides]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        step = [s[d] for s in strides]
        if dims[-1] == 1:
            dims[-1], merged = size, [[s] for s in step]
        elif all(m[-1] == s * size for m, s in zip(merged, step, strict=True)):
            dims[-1] *= size
            for m, s in zip(merged, step, strict=True):
                m[-1] = s
        else:
            dims.append(size)
            for m, s in zip(merged, step, strict=True):
                m.append(s)
    return dims, merged
