"""The kernels on AArch64, under qemu's user mode: the same bytes as here.

Debian: apt install gcc-aarch64-linux-gnu qemu-user; without them this is skipped. A lane that a
vector function leaves to the C library is not compared: such are no arguments here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from morphbits.engines.native.kernels import functions
from morphbits.engines.native.kernels.build import FLAGS, SOURCES

PROGRAM = Path(__file__).parents[2] / "support" / "other_processor.c"
TOOLS = "aarch64-linux-gnu-gcc", "qemu-aarch64"
LAST_SINE = 2.0**19  # of what vectors compute


def _built(compiler: str, folder: Path) -> str:
    """The program with the kernels that every processor has."""
    to = folder / compiler
    sources = [SOURCES / f"{name}.c" for name in ("kernels", "scalar")]
    command = [compiler, *FLAGS, "-DVARIANT=portable", "-static"]
    subprocess.run(
        [*command, f"-I{SOURCES}", PROGRAM, *sources, "-lm", "-o", to], check=True, timeout=900
    )
    return str(to)


def _arguments() -> bytes:
    """Of every exponent, and those that networks compute with."""
    generator = np.random.default_rng(8)
    patterns = generator.integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    usual = generator.standard_normal(2000).astype(np.float32) * 4
    positive = np.abs(patterns[np.abs(patterns) <= LAST_SINE])
    return np.concatenate([positive[positive > 0], np.abs(usual)]).tobytes()


@pytest.mark.slow
def test_aarch64_has_the_same_bytes(tmp_path: Path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {missing[0]}: apt install gcc-aarch64-linux-gnu qemu-user")
    numbers = [str(functions.FUNCTIONS.index(name)) for name in (*functions.CORES, "pow")]
    here, there = (
        subprocess.run(
            [*start, _built(compiler, tmp_path), *numbers],
            input=_arguments(),
            stdout=subprocess.PIPE,
            check=True,
            timeout=600,
        ).stdout
        for compiler, *start in (("cc",), TOOLS)
    )
    assert len(here) > 10**6 and here == there
