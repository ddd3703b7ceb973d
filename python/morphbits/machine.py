"""The machine, as far as this process may use it: cores and memory by its affinity and by the
control groups around it (a container's, a Slurm job's), of either version; the processor."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# of version 2, then 1: a quota and its period; a limit and what is used of it
_CPU = ("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
_MEMORY = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def cores() -> int:
    """Processors: those of its affinity, or its control groups' quota where that is less."""
    found = len(os.sched_getaffinity(0))
    for quota, period in _numbers("cpu", _CPU):
        found = min(found, quota // period)
    return max(1, found)


def memory_free() -> int:
    """Bytes that this process can still get: the machine's available memory, or what its control
    groups leave of their limits where that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = table.get("MemAvailable", table["MemTotal"])
    return min([free, *(limit - used for limit, used in _numbers("memory", _MEMORY))])


@functools.cache
def cpu() -> dict[str, Any]:
    """The processor's name and those of its features that choose a kernel."""
    wanted = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"name": platform.processor(), "features": []}
    table = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = (table.get("flags") or table.get("Features", "")).split()
    name = table.get("model name") or platform.machine()
    return {"name": name, "features": [feature for feature in wanted if feature in flags]}


def reset_peak_memory() -> None:
    """Start counting `peak_memory` anew, where the kernel allows it."""
    with contextlib.suppress(OSError):  # not allowed: then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Most bytes of memory this process held since `reset_peak_memory`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _numbers(
    controller: str, files: tuple[tuple[str, str | None], ...]
) -> Iterator[tuple[int, int]]:
    """The two numbers of each control group that sets a limit."""
    for group in _groups(controller):
        for names in files:
            try:
                texts = [(group / name).read_text("ascii") for name in names if name]
                first, second = (int(word) for word in " ".join(texts).split())
            except (OSError, ValueError):  # not of this version, or no limit: "max"
                continue
            if first > 0:
                yield first, second


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those around it."""
    try:
        lines = OWN.read_text("ascii").splitlines()
    except OSError:
        lines = []
    roots = {GROUPS: "", GROUPS / controller: ""}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            roots[GROUPS / controller if controllers else GROUPS] = path
    for root, path in roots.items():
        group = root / path.lstrip("/")
        yield from (group, *(other for other in group.parents if other.is_relative_to(root)))
