"""Launches kernels on a CUDA device: compiled at run time by NVRTC, started by the driver.

Both libraries come with a CUDA build of torch and its device's driver; no nvcc is needed.
(torch.cuda._compile_kernel wants an installed CUDA toolkit and passes no structures.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from morphbits.engines.native.kernels.build import SOURCES
from morphbits.errors import UserError

# Nothing may be fused that is not written fused, flushed or approximated: the compiler's own
# defaults but for the first, said aloud.
FLAGS = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "-std=c++17")
THREADS = 256  # of a block, in every kernel
_STR, _PTR = ctypes.c_char_p, ctypes.c_void_p


def find_nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler: torch's, or the system's; UserError if there is none."""
    major = (torch.version.cuda or "13").partition(".")[0]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    for name in (f"libnvrtc.so.{major}", *packages.glob(f"*/lib/libnvrtc.so.{major}*")):
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    raise UserError(f"libnvrtc.so.{major} is not found: install torch for CUDA with its libraries")


def compile_kernel(nvrtc: ctypes.CDLL, kernel: str, architecture: str) -> tuple[bytes, bytes]:
    """An instance of a kernel of gpu.cu, such as "least<float>", as machine code for
    `architecture` (such as "sm_90"), and its name in there."""
    program, size, lowered = _PTR(), ctypes.c_size_t(), _STR()
    source = b'#include "gpu.cu"\n'
    options = [f"--gpu-architecture={architecture}", f"-I{SOURCES}", *FLAGS]

    def ask(function: str, *arguments: Any) -> int:
        return int(getattr(nvrtc, function)(*arguments))

    def want(function: str, *arguments: Any) -> None:
        if ask(function, *arguments):
            raise UserError(f"compiling the GPU's kernels failed in {function}: {log()}")

    def log() -> str:
        if ask("nvrtcGetProgramLogSize", program, ctypes.byref(size)):
            return "no log"
        text = ctypes.create_string_buffer(size.value)
        ask("nvrtcGetProgramLog", program, text)
        return text.value.decode()

    name = _STR(kernel.encode())
    want("nvrtcCreateProgram", ctypes.byref(program), source, b"morphbits.cu", 0, None, None)
    want("nvrtcAddNameExpression", program, name)
    array = (_STR * len(options))(*(option.encode() for option in options))
    want("nvrtcCompileProgram", program, len(options), array)
    want("nvrtcGetCUBINSize", program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    want("nvrtcGetCUBIN", program, code)
    want("nvrtcGetLoweredName", program, name, ctypes.byref(lowered))
    found = bytes(lowered.value or b"")
    ask("nvrtcDestroyProgram", ctypes.byref(program))
    return code.raw, found


class Cuda:
    """One device; every kernel is compiled when it is first launched (a second or so)."""

    def __init__(self, index: int) -> None:
        self.index, self._kernels = index, dict[str, ctypes.c_void_p]()
        self._nvrtc, self._driver = find_nvrtc(), ctypes.CDLL("libcuda.so.1")
        major, minor = torch.cuda.get_device_capability(index)
        self._architecture = f"sm_{major}{minor}"

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: Any) -> None:
        """See `gpu.Launcher`; in the order of torch's current stream."""
        with torch.cuda.device(self.index):
            if kernel not in self._kernels:
                self._kernels[kernel] = self._load(kernel)
            addresses = (_PTR * len(arguments))(*(ctypes.addressof(x) for x in arguments))
            stream = _PTR(torch.cuda.current_stream().cuda_stream)
            block = (THREADS, 1, 1, 0)  # and no shared memory but the kernel's own
            self._want(
                self._driver.cuLaunchKernel,
                *(self._kernels[kernel], *grid, *block, stream, addresses, None),
            )

    def _load(self, kernel: str) -> ctypes.c_void_p:
        code, name = compile_kernel(self._nvrtc, kernel, self._architecture)
        module, function = _PTR(), _PTR()
        self._want(self._driver.cuModuleLoadData, ctypes.byref(module), code)
        self._want(self._driver.cuModuleGetFunction, ctypes.byref(function), module, name)
        return function

    def _want(self, function: Callable[..., int], *arguments: Any) -> None:
        status = function(*arguments)
        if status:
            text = _STR()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            why = (text.value or b"an unknown error").decode()
            raise RuntimeError(f"a kernel of the GPU could not be run: {why}")
