"""What ``sample.json`` says: the configuration (all that can change a byte, with its hash) and the
provenance (what else there is to know: code, machine, timings)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import morphbits
from morphbits import engines
from morphbits.config import Arithmetic, RegisterConfig, hashed
from morphbits.errors import UserError
from morphbits.files import sha256
from morphbits.imageformats import other_half
from morphbits.machine import cpu, peak_memory
from morphbits.models.model import open_model

# installed distributions whose version can change a byte of a sample, by framework
_READING = ("nibabel", "numpy", "scipy")
_COMPUTING = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-keras", "voxelmorph", "neurite"),
}


def file_sha256(path: Path) -> str:
    """``sha256:…`` of a file's bytes, of a pair of files (.hdr and .img) of both digests; read
    again only when size or time changed."""
    try:
        other = other_half(path)
        digests = []
        for part in sorted([path, other] if other else [path]):
            digests.append(f"sha256:{sha256(part)}")
        if len(digests) == 1:
            return digests[0]
        return "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def data_sha256(array: np.ndarray) -> str:
    """``sha256:…`` of the voxels as a NIfTI file holds them: little-endian float32, X fastest."""
    voxels = np.asarray(array, dtype="<f4").tobytes(order="F")
    return "sha256:" + hashlib.sha256(voxels).hexdigest()


@functools.cache
def versions(framework: str) -> dict[str, str]:
    """Installed versions of what computes, by distribution name; absent ones are left out."""
    found = {"morphbits": morphbits.__version__}
    for name in (*_READING, *_COMPUTING[framework]):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def inputs(files: Mapping[str, Path], model: Path, config: Arithmetic) -> dict[str, Any]:
    """Checksums of the files, and what the model says of itself (`Model.identity`)."""
    checksums = {name: file_sha256(path) for name, path in files.items()}
    return checksums | open_model(model, config).identity(file_sha256)


def configuration(config: RegisterConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All that can change a byte of this sample, and nothing else.

    ``inputs`` are what the function of that name gives. Which options belong to it, and when,
    is written beside their fields (`config.option`).
    """
    chosen = {**hashed(config), **inputs, "versions": dict(versions(config.framework))}
    if config.engine != "ieee":
        chosen["kernel"] = engines.get(config.engine).version()
    if config.engine == "native" and config.accumulation == "probe" and "orders" not in inputs:
        chosen |= {"cpu": cpu(), "instructions": _instructions()}
    chosen = dict(sorted(chosen.items()))
    return {**chosen, "hash": configuration_hash(chosen)}


def configuration_hash(chosen: Mapping[str, Any]) -> str:
    """``sha256:…`` of a configuration, its own ``hash`` left out: canonical JSON, keys sorted."""
    content = {key: value for key, value in chosen.items() if key != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of two configurations that differ, nested ones with a dot (``versions.torch``)."""
    keys: list[str] = []
    for key in sorted({*one, *other} - {"hash"}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += [f"{key}.{inner}" for inner in differing_keys(a, b)]
        elif a != b:
            keys.append(key)
    return keys


@dataclass(frozen=True)
class Start:
    """When something began: the date by the clock, durations by a counter that cannot jump."""

    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    counter: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Since then."""
        return time.perf_counter() - self.counter


def provenance(config: RegisterConfig, started: Start, record: Mapping[str, Any]) -> dict:
    """What there is to know beyond the configuration; none of it can change a byte."""
    return {
        **record,
        "threads": config.threads,
        "started": started.date.isoformat(timespec="seconds"),
        "seconds_total": started.seconds(),
        "peak_memory_bytes": peak_memory(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu(),
        "container": os.environ.get("MORPHBITS_IMAGE"),  # set by scripts/in_container.sh
        "kernel_build": kernel_build() if config.engine == "native" else None,
        "code": code_revision(),
        "command": sys.argv,
    }


def _instructions() -> dict[str, str]:
    """What is set of the variables by which torch's libraries choose a kernel."""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR")
    chosen = {name: os.environ.get(name) for name in (*names, "MKL_ENABLE_INSTRUCTIONS")}
    return {name: value for name, value in chosen.items() if value}


@functools.cache
def kernel_build() -> dict[str, str]:
    """The compiled kernels that ran: their file, its checksum, and the instruction set in use."""
    from morphbits.engines.native.kernels import build, library

    path = build.library_path()
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "instructions": library.default_variant(),
    }


@functools.cache
def code_revision() -> dict[str, Any]:
    """Git revision of the suite and whether files of it were changed; outside a clone the one that
    the image was built from, or None."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        answer = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"revision": os.environ.get("MORPHBITS_REVISION"), "dirty": None}
