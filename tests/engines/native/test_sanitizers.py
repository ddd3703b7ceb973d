"""That the sanitized kernels stop at errors made on purpose, each in a process of its own.

`make sanitize` runs this over the library that it tests; `make test` compiles a small part of the
kernels for it, in seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from morphbits.engines.native.kernels import build
from morphbits.engines.native.kernels.library import available_variants

SCRIPT = Path(__file__).parents[3] / "scripts" / "with_sanitizers.sh"
KERNELS = ["elementwise_naive", "function_naive"]
if sanitized := "MORPHBITS_SANITIZE" in os.environ:  # all variants are there
    variants = set(available_variants()) - {"avx512_ifma"}  # whose kernel is that of avx512
    KERNELS += [f"elementwise_{v}" for v in sorted(variants)]

# Three calls of each kernel on arrays of 100 numbers: as they are; said to hold 101; a byte off.
# Prints what each ended with.
CALLS = """
import ctypes, os, sys, torch
os.environ.pop("MORPHBITS_SANITIZE")  # what is imported need not compile its own kernels for it
from morphbits.engines.native.kernels.functions import _Function
from morphbits.engines.native.kernels.library import Rounding, _Elementwise

library = ctypes.CDLL(sys.argv[1])
rounding = Rounding("random").as_c()
tensors = {name: torch.ones(100) for name in ("a", "b", "out")}

def call(kernel, count, shift):
    data = {name: x.data_ptr() + shift for name, x in tensors.items()}
    if kernel == "function_naive":
        arguments = _Function(count=count, **data)
    else:
        one = {name: (1,) for name in ("stride_a", "stride_b")}
        arguments = _Elementwise(dims=1, shape=(count,), **one, **data)
    return getattr(library, kernel)(ctypes.byref(rounding), ctypes.byref(arguments))

try:  # torch's own errors, exceptions of C++, end nothing
    torch.ones(2) + torch.ones(3)
except RuntimeError:
    pass
for kernel in sys.argv[2:]:
    for count, shift in (100, 0), (101, 0), (99, 1):
        child = os.fork()
        if not child:
            os._exit(call(kernel, count, shift))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("ended with", status, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sanitized kernels."""
    runtime = ["gcc", "-print-file-name=libasan.so"]
    if not shutil.which("gcc") or subprocess.check_output(runtime)[:1] != b"/":
        pytest.skip("no gcc with AddressSanitizer (libasan)")
    if sanitized:
        return build.build()
    path = tmp_path_factory.mktemp("sanitized") / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "gcc")
        build.link(path, ["naive", "scalar"], build.SANITIZERS)
    return path


def test_an_error_in_a_kernel_ends_the_process(library: Path) -> None:
    command = [SCRIPT, sys.executable, "-c", CALLS, library, *KERNELS]
    done = subprocess.run(
        command, cwd=build.SOURCES.parents[4], capture_output=True, text=True, check=True
    )
    reports = done.stderr.split("ended with ")
    statuses = [int(report.split()[0]) for report in reports[1:]]
    assert len(statuses) == 3 * len(KERNELS), done.stderr
    for number, kernel in enumerate(KERNELS):
        right, longer, shifted = statuses[3 * number : 3 * number + 3]
        assert right == 0, (kernel, done.stderr)
        assert longer != 0 and "heap-buffer-overflow" in reports[3 * number + 1], kernel
        assert shifted != 0 and "misaligned address" in reports[3 * number + 2], kernel
