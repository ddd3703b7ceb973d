"""Build the C kernels: the one function that `make setup`, the wheel and the first import call.

python -m morphbits.engines.native.build
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from morphbits.errors import UserError

SOURCES = Path(__file__).parent / "csrc"
# Nothing may assume round-to-nearest (-frounding-math), fuse what is not written fused
# (-ffp-contract=off) or reorder.
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-frounding-math", "-ffp-contract=off"),
    *("-fno-fast-math", "-fno-math-errno", "-fno-strict-aliasing", "-Wall", "-Wextra"),
    "-Wno-psabi",
]
VARIANT_FLAGS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANT_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    extensions = ("avx512f", "avx512dq", "avx512bw", "avx512vl")
    VARIANT_FLAGS["avx512"] = [*VARIANT_FLAGS["avx2"], *(f"-m{name}" for name in extensions)]
# What is compiled, and the flags of each; what follows a colon is no part of the file's name.
UNITS: dict[str, list[str]] = {
    **{f"kernels:{v}": [f"-DVARIANT={v}", *flags] for v, flags in VARIANT_FLAGS.items()},
    **{"naive": ["-O1"], "scalar": [], "library": []},
}
# Added where MORPHBITS_SANITIZE is set (scripts/with_sanitizers.sh): an access out of bounds, or
# an operation that C leaves undefined, ends the process. -O1, or the compiler takes ten minutes.
SANITIZERS = [
    *("-g", "-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
]


@cache
def kernel_version() -> str:
    """A hash of everything that the kernels are built from, the same on every machine."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr(FLAGS).encode())
    return digest.hexdigest()[:16]


@cache
def engine_version() -> str:
    """A hash of everything that decides the engine's bytes: the kernels, and the Python beside
    this file that chooses and orders them. The same on every machine."""
    digest = hashlib.sha256(kernel_version().encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def library_path() -> Path:
    """Where the built library lies: beside this file, or in the user's cache if that is read-
    only."""
    kind = "-sanitized" if os.environ.get("MORPHBITS_SANITIZE") else ""
    name = f"kernels-{kernel_version()}-{platform.machine()}{kind}.so"
    beside = Path(__file__).parent / "_build" / name
    if beside.exists() or os.access(Path(__file__).parent, os.W_OK):
        return beside
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "morphbits" / name


def build() -> Path:
    """Compile the kernels if they are not there yet and return the library's path.

    Raises UserError if there is no C compiler or it fails.
    """
    library = library_path()
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        link(library, UNITS, SANITIZERS if os.environ.get("MORPHBITS_SANITIZE") else [])
    return library


def link(library: Path, units: Iterable[str], extra: Sequence[str] = ()) -> None:
    """Compile some of UNITS, with `extra` flags, into a library.

    Two processes may do so at once: each works in a folder of its own and renames the result into
    place.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise UserError(
            "no C compiler found; install one (Debian and Ubuntu: apt install gcc libc6-dev)"
        )
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = {name: f"{folder}/{name.replace(':', '-')}.o" for name in units}
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for done in [
                pool.submit(
                    _run, [compiler, *FLAGS, *UNITS[name], *extra, "-c", _source(name), "-o", to]
                )
                for name, to in objects.items()
            ]:
                done.result()
        built = f"{folder}/kernels.so"
        _run([compiler, "-shared", "-fopenmp", *extra, *objects.values(), "-lm", "-o", built])
        os.replace(built, library)


def _source(unit: str) -> str:
    return str(SOURCES / f"{unit.split(':')[0]}.c")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        first = next(
            (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()
        )
        raise UserError(f"compiling the kernels failed: {first} (command: {' '.join(command)})")


if __name__ == "__main__":
    print(build(), file=sys.stderr)
