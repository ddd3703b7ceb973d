"""Build the C kernels: the one function that `make setup` and the first region call.

python -m morphbits.engines.native.kernels.build
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from morphbits.errors import UserError, run_cli
from morphbits.files import locked, user_cache
from morphbits.machine import cores

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
    **{"naive": ["-O1"], "scalar": [], "plain": [], "library": []},
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
    """A hash of everything that decides the engine's bytes: the kernels, and the Python of
    the engine that chooses and orders them. The same on every machine."""
    digest = hashlib.sha256(kernel_version().encode())
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def library_path() -> Path:
    """Where the built library lies: beside this file, or in the user's cache if nothing can be
    written here."""
    kind = "-sanitized" if os.environ.get("MORPHBITS_SANITIZE") else ""
    name = f"kernels-{kernel_version()}-{platform.machine()}{kind}.so"
    folder = Path(__file__).parent / "_build"
    if (folder / name).exists() or os.access(
        folder if folder.exists() else folder.parent, os.W_OK
    ):
        return folder / name
    return user_cache("the compiled kernels") / name


def build() -> Path:
    """Compile the kernels if they are not there yet and return the library's path.

    Of several processes one compiles and the others wait. Raises UserError if there is no C
    compiler, it fails, or the library cannot be written.
    """
    library = library_path()
    if library.exists():
        return library
    advice = (
        "where the package's folder cannot be written the kernels go to "
        "$XDG_CACHE_HOME/morphbits, else to ~/.cache/morphbits"
    )
    waiting = "waiting for another process, which compiles the kernels"
    try:
        with locked(library.with_suffix(".lock"), advice, waiting=lambda: _say(waiting)):
            if not library.exists():
                _say(f"compiling the kernels, once, into {library.parent}; this takes a minute")
                link(library, UNITS, SANITIZERS if os.environ.get("MORPHBITS_SANITIZE") else [])
    except OSError as error:
        raise UserError(
            f"{library.parent}: cannot be written to ({error.strerror}); {advice}"
        ) from error
    return library


def _say(message: str) -> None:
    print(f"morphbits: {message}", file=sys.stderr, flush=True)


def link(library: Path, units: Iterable[str], extra: Sequence[str] = ()) -> None:
    """Compile some of UNITS, with `extra` flags, into a library.

    In a folder of its own, from where the result is renamed into place.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = {name: f"{folder}/{name.replace(':', '-')}.o" for name in units}
        with ThreadPoolExecutor(cores()) as pool:
            for done in [
                pool.submit(
                    _run, [*compiler, *FLAGS, *UNITS[name], *extra, "-c", _source(name), "-o", to]
                )
                for name, to in objects.items()
            ]:
                done.result()
        built = f"{folder}/kernels.so"
        _run([*compiler, "-shared", "-fopenmp", *extra, *objects.values(), "-lm", "-o", built])
        os.replace(built, library)


def _compiler() -> list[str]:
    """The command that compiles C: $CC, which may have options, else cc or gcc."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in [chosen] if chosen else (["cc"], ["gcc"]):
        if shutil.which(command[0]):
            return command
    if chosen:
        raise UserError(f"the C compiler that CC names, {chosen[0]}, was not found; correct CC")
    raise UserError(
        "no C compiler found; install one (Debian and Ubuntu: apt install gcc libc6-dev), or name "
        "one by CC"
    )


def _source(unit: str) -> str:
    return str(SOURCES / f"{unit.split(':')[0]}.c")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        return
    lines = done.stderr.strip().splitlines() or ["it printed nothing"]
    reason = next((line for line in lines if "error" in line), lines[-1])
    if done.returncode < 0:
        reason = f"it was ended by {signal.Signals(-done.returncode).name}"
    raise UserError(f"compiling the kernels failed: {reason} (command: {shlex.join(command)})")


if __name__ == "__main__":
    run_cli(lambda: print(build()))
