"""The native engine on a GPU: kernels of csrc/gpu.cu on CUDA tensors, with the bytes of the CPU.

Calls, random bits and orders of accumulation are those of the CPU's kernels (csrc/morphbits.h);
`library` and `sums` come here when their tensors lie on a CUDA device. What has no kernel on the
GPU raises `NoKernel`. What was checked without a GPU: notes/decisions/0006-gpu.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch

from morphbits.engines.native.kernels.cuda import THREADS, Cuda
from morphbits.engines.native.kernels.header import names

_SIDE = 16
_COLUMNS = 4 * _SIDE
_SAFE_EXPONENT = -70  # no sum of products can underflow above it (csrc/kernels.c: from -80 on)


class NoKernel(Exception):
    """The GPU has no kernel for what is named."""


class RoundingLike(Protocol):
    """What is asked of a `library.Rounding`."""

    @property
    def mode(self) -> str: ...
    @property
    def flush(self) -> bool: ...
    @property
    def chosen_variant(self) -> str: ...
    def as_c(self) -> Any: ...


class Launcher(Protocol):
    """Runs kernels on one device."""

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: Any) -> None:
        """Start `kernel` (an instance, such as "least<float>") on `grid` blocks of THREADS
        threads, with ctypes values as arguments."""


emulator: Launcher | None = None  # what stands in for a GPU in the tests: variant "emulated"


def takes(rounding: RoundingLike, device: torch.device) -> bool:
    """Whether a kernel on data of `device` is the GPU's."""
    return device.type == "cuda" or rounding.chosen_variant == "emulated"


def pack(
    weight_OCxyz: torch.Tensor, tap: torch.Tensor, channel: torch.Tensor, dilation: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution's weight as (terms, O), and its terms as (terms, 4) int32: the distance from
    the first voxel along three axes, and the channel; `tap`, `channel`: (terms) int64."""
    rows, columns = weight_OCxyz.shape[3:]
    taps = weight_OCxyz[0, 0].numel()
    packed = weight_OCxyz.flatten(1)[:, channel * taps + tap].t().contiguous()
    steps = (tap // (rows * columns), tap // columns % rows, tap % columns)
    places = [step * spread for step, spread in zip(steps, dilation, strict=True)]
    return packed, torch.stack([*places, channel], 1).to(torch.int32)


def call(name: str, rounding: RoundingLike, arguments: Any, device: torch.device) -> None:
    """The kernel `name` ("elementwise", "reduction", …) with the structure that its counterpart on
    the CPU takes; pointers in it lie on `device`. Raises NoKernel where there is none."""
    run = _RUN.get(name)
    if run is None:
        raise NoKernel(_WITHOUT[name])
    if rounding.mode == "nearness" and rounding.flush and arguments.type:
        raise NoKernel(f"{name} of float64 in mode nearness with subnormals=flush")
    run(_launcher(device), rounding, arguments, device)


def _elementwise(on: Launcher, rounding: RoundingLike, c: Any, device: torch.device) -> None:
    total = 1
    for size in c.shape[: c.dims]:
        total *= size
    on.launch(f"elementwise<{_type(c)}>", _blocks(total), rounding.as_c(), c)


def _reduction(on: Launcher, rounding: RoundingLike, c: Any, device: torch.device) -> None:
    on.launch(f"reduction<{_type(c)}>", _blocks(c.outer * c.period), rounding.as_c(), c)


def _convolution(on: Launcher, rounding: RoundingLike, c: Any, device: torch.device) -> None:
    image = c.batch * c.channels_in * c.size_in[0] * c.size_in[1] * c.size_in[2]
    sides = [(c.input, image), (c.weight, c.terms * c.channels_out)]
    # a chain that starts from the bias may underflow, or stay -0
    if c.bias_first == names("bias").index("start"):
        kernel = f"convolution<{_type(c)}, ANY, true>"
    else:
        many = c.segments > 1 or bool(c.bias_first)
        kernel = f"convolution<{_instance(on, rounding, c, many, sides, device)}>"
    rows = c.size_out[0] * c.size_out[1] * c.size_out[2]
    on.launch(kernel, _tiles(c, rows, c.channels_out), rounding.as_c(), c)


def _contraction(on: Launcher, rounding: RoundingLike, c: Any, device: torch.device) -> None:
    sides = [(c.left, c.left_size), (c.right, c.batch * c.depth * c.columns)]
    kernel = f"contraction<{_instance(on, rounding, c, c.segments > 1, sides, device)}>"
    on.launch(kernel, _tiles(c, c.rows, c.columns), rounding.as_c(), c)


_WITHOUT = {
    "function": "functions of the C library and conversions to 16 bits",
    "scatter": "additions to scattered places",
}
_RUN = {
    "elementwise": _elementwise,
    "reduction": _reduction,
    "convolution": _convolution,
    "contraction": _contraction,
}


def _instance(
    on: Launcher,
    rounding: RoundingLike,
    c: Any,
    many: bool,
    sides: list[tuple[int, int]],
    device: torch.device,
) -> str:
    """Which instance of a kernel that sums products; `sides`: address and size of both factors."""
    fast = c.type == 0 and not rounding.flush and rounding.as_c().precision == 24
    if fast and rounding.mode == "nearest":
        return f"float, PLAIN, {str(many).lower()}"
    if fast and rounding.mode in ("random", "upward", "downward"):
        least = torch.full((2,), 2**63 - 1, dtype=torch.int64, device=device)
        for i, (address, size) in enumerate(sides):
            arguments = (ctypes.c_void_p(address), ctypes.c_int64(size))
            to = ctypes.c_void_p(least[i:].data_ptr())
            on.launch("least<float>", (min(-(-size // THREADS), 4096), 1, 1), *arguments, to)
        if sum((bits >> 23) - 127 for bits in least.tolist()) >= _SAFE_EXPONENT:
            return f"float, DIRECTIONS, {str(many).lower()}"
    return f"{_type(c)}, ANY, true"


def _type(c: Any) -> str:
    return {"float32": "float", "float64": "double"}[names("type")[c.type]]


def _blocks(threads: int) -> tuple[int, int, int]:
    return -(-threads // THREADS), 1, 1


def _tiles(c: Any, rows: int, columns: int) -> tuple[int, int, int]:
    height = _SIDE * (4 if c.type else 8)
    grid = -(-rows // height), -(-columns // _COLUMNS), c.batch
    if max(grid[1:]) > 65535:
        raise NoKernel(f"a batch of {c.batch} and {columns} columns")
    return grid


@cache
def _cuda(index: int) -> Launcher:
    return Cuda(index)


def _launcher(device: torch.device) -> Launcher:
    if device.type == "cuda":
        return _cuda(torch.cuda.current_device() if device.index is None else device.index)
    assert emulator is not None
    return emulator
