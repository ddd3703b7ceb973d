"""Cores and memory, as control groups of both versions and at every level limit them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from morphbits import machine


@pytest.mark.parametrize(
    ("own", "files", "cores", "bytes_free"),
    [
        ("0::/\n", {}, 64, None),
        (
            "0::/\n",
            {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"},
            64,
            None,
        ),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2, None),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1, None),
        (  # a Slurm job's step: the limits are the job's, above the step's own group
            "0::/slurm/job_7/step_0\n",
            {
                "slurm/job_7/cpu.max": "400000 100000",
                "slurm/job_7/memory.max": "9000",
                "slurm/job_7/memory.current": "2000",
                "slurm/job_7/step_0/cpu.max": "max 100000",
                "slurm/job_7/step_0/memory.max": "max",
                "slurm/job_7/step_0/memory.current": "1000",
                "slurm/job_8/cpu.max": "100000 100000",
            },
            4,
            7000,
        ),
        (
            "4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/\n",
            {
                "cpu/a/b/cpu.cfs_quota_us": "-1",
                "cpu/a/b/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "300000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "memory/a/memory.limit_in_bytes": "8000",
                "memory/a/memory.usage_in_bytes": "3000",
            },
            3,
            5000,
        ),
        (  # in a container, which does not see the folders of its own path
            "1:cpu:/docker/1234\n",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
            None,
        ),
    ],
)
def test_the_least_of_all_levels_counts(
    own: str,
    files: dict[str, str],
    cores: int,
    bytes_free: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    unlimited = machine.memory_free()
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert machine.cores() == cores
    if bytes_free is not None:
        assert machine.memory_free() == bytes_free < unlimited
    else:
        assert machine.memory_free() >= 0.5 * unlimited
