"""The engine that is Valgrind's tool Verrou: it perturbs the process from outside.

Method: Févotte & Lathuilière, "Debugging and optimization of HPC programs with the Verrou tool",
2019, doi:10.1109/Correctness49594.2019.00006. ``scripts/with_verrou.sh`` starts it, on this
machine or in the image that `make docker` builds (``scripts/in_container.sh``); inside, markers
switch the perturbation on around the registration.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from morphbits.config import Arithmetic
from morphbits.engines import Counts
from morphbits.engines.verrou import markers
from morphbits.errors import UserError

SCRIPTS = Path(__file__).parents[4] / "scripts"
IMAGE = "morphbits"


def script_path(name: str) -> str:
    """The path of a script of the repository, which an installed package does not have."""
    path = SCRIPTS / name
    if not path.is_file():
        raise UserError(
            f"scripts/{name} is not part of the installed package: clone the repository and run "
            "this from there"
        )
    return str(path)


@contextmanager
def region(config: Arithmetic, threads: int) -> Iterator[Counts]:
    """Perturbed by Verrou from ``config.seed`` on; nothing perturbed is an error, not a result."""
    settings = markers.settings()
    if settings is None:
        raise UserError(
            "engine verrou perturbs a process from outside: start this command with "
            f"scripts/with_verrou.sh --mode {config.mode} --seed {config.seed} -- before it"
        )
    _check_settings(settings, config)
    counts = Counts()
    with markers.perturbed(config.seed) as measured:
        yield counts
    if measured.table.total == 0:
        raise UserError(
            "Verrou perturbed no operation of this registration, so it is no sample; "
            "'make verrou-sanity' tells what is wrong"
        )
    counts.operations = measured.table.total
    counts.operators = {name: n for name, n in measured.table.perturbed.items() if n}


def _check_settings(settings: dict[str, str], config: Arithmetic) -> None:
    """Refuse a process that was started for something else."""
    wanted = {"mode": config.mode, "region": config.region}
    if config.region == "process":
        wanted["seed"] = str(config.seed)
    for key, value in wanted.items():
        if settings[key] != value:
            raise UserError(
                f"this process runs under Verrou with {key} {settings[key]}, not {value}: give "
                f"scripts/with_verrou.sh --{key} {value}"
            )
    if config.region == "process" and markers.regions_ended():
        raise UserError("region process: one process makes one sample; start another")


def command(
    config: Arithmetic, python: str, reads: Sequence[Path], writes: Sequence[Path]
) -> list[str]:
    """The words that start a Python under Verrou: on this machine where Verrou is, else in the
    image, which then sees ``reads`` and ``writes`` (absolute paths) only. The seed is the
    process's first one."""
    named = ("mode", "region", "libm", "onednn")
    options = [word for name in named for word in (f"--{name}", getattr(config, name))]
    if config.region == "process":
        options += ["--seed", str(config.seed)]
    where = found()
    if where is None:
        raise UserError(
            "Verrou is not on this machine (no `valgrind` with the tool verrou, no VERROU_PREFIX) "
            f"and there is no image {IMAGE}: 'make docker' builds it, ENGINE=native needs neither"
        )
    if where == "machine":
        return [script_path("with_verrou.sh"), *options, "--", python]
    mounts = [word for path in reads for word in ("--read", str(path))]
    mounts += [word for path in writes for word in ("--write", str(path))]
    inside = ["scripts/with_verrou.sh", *options, "--", "python"]
    return [script_path("in_container.sh"), *mounts, "--", *inside]


def order(config: Arithmetic) -> str:
    """The order of the kernel that runs under Valgrind."""
    if config.framework == "torch":
        return "torch's own on AVX2 (a gemm where an image is small, else oneDNN's)"
    if config.onednn == "off":
        return "TensorFlow's own gemm on AVX2"
    return "oneDNN's on AVX2, as TensorFlow runs it (one chain over taps and channels)"


def version() -> str:
    """Verrou's and Valgrind's releases, and a checksum of what is excluded."""
    settings = markers.settings() or _described()
    return f"{settings['version']} exclusions:{settings['exclusions']}"


@functools.cache
def found() -> str | None:
    """Where Verrou can be started: on this ``machine`` (under which this process may be running),
    in the image (``container``), or not."""
    if markers.settings():
        return "machine"
    prefix = os.environ.get("VERROU_PREFIX")
    valgrind = f"{prefix}/bin/valgrind" if prefix else shutil.which("valgrind")
    if valgrind and "verrou" in _output([valgrind, "--tool=verrou", "--version"]):
        return "machine"
    if prefix:
        raise UserError(
            f"VERROU_PREFIX={prefix}: has no bin/valgrind with the tool Verrou; it must name the "
            "folder that Verrou was installed to (left out: `valgrind` on the PATH, or the image)"
        )
    if not SCRIPTS.is_dir():  # in an installed package
        return None
    words = [script_path("in_container.sh"), "--image-id"]
    image = subprocess.run(words, capture_output=True, text=True)
    if image.returncode == 0:
        return "container"
    asked = [f"{n}={os.environ[n]}" for n in ("CONTAINER", "IMAGE") if os.environ.get(n)]
    if asked:
        reason = (image.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"{' '.join(asked)}: no image with Verrou there ({reason.removeprefix('error: ')}); "
            "'make docker' builds it, and left out these are docker and morphbits"
        )
    return None


@functools.cache
def _described() -> dict[str, str]:
    """What with_verrou.sh would write into ``settings``, asked from outside."""
    words = command(Arithmetic(engine="verrou"), sys.executable, (), ())
    script = next(i for i, word in enumerate(words) if word.endswith("with_verrou.sh"))
    words.insert(script + 1, "--describe")
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode:
        raise UserError(answer.stderr.strip().removeprefix("error: ") or f"{words[0]} failed")
    return markers.parse_settings(answer.stdout)


def _output(words: list[str]) -> str:
    """What a command prints; empty where it cannot be run or fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
