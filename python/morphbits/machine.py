"""What this process may use of the machine: by its affinity, and by the control group that it is
in and all those around it (a container's, a Slurm job's), of either version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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
