"""The GPU's kernels on the CPU: csrc/gpu.cu compiled by g++, its threads taking turns.

Importing this module makes "emulated" a variant of the kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from morphbits.engines.native.kernels import gpu
from morphbits.engines.native.kernels.build import SOURCES, build, kernel_version

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-frounding-math", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)

FOUND = shutil.which("g++") is not None


@cache
def _library() -> ctypes.PyDLL:
    """Compiled once and kept beside the engine's own kernels. A PyDLL holds Python's lock: the
    emulator is one machine."""
    version = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
    library = build().parent / f"emulator-{kernel_version()}-{version}.so"
    if not library.exists():
        partial = library.with_suffix(f".{id(library)}")
        command = ["g++", *_FLAGS, f"-I{SOURCES}", str(_SOURCE), "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.rename(library)
    return ctypes.PyDLL(str(library))


class Emulator:
    """Runs kernels; `backwards`: blocks and threads in the opposite order."""

    def __init__(self, backwards: bool = False) -> None:
        self.backwards = backwards
        self.kernels: list[str] = []  # what was launched

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: Any) -> None:
        self.kernels.append(kernel)
        addresses = [ctypes.addressof(x) for x in arguments]
        status = _library().emulate(
            kernel.encode(),
            (ctypes.c_int64 * 3)(*grid),
            (ctypes.c_void_p * len(addresses))(*addresses),
            int(self.backwards),
        )
        assert status == 0, (kernel, status)


if FOUND:
    gpu.emulator = Emulator()
