"""How long a run will take and how much memory a worker needs, before it starts."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from morphbits import bids
from morphbits.errors import UserError
from morphbits.machine import cores, memory_free
from morphbits.registration import memory_estimate
from morphbits.samples.matrix import Unit
from morphbits.samples.runner import Worker, alone

LONG = 2 * 3600  # seconds above which the user is asked
UNASKED = 5 * 60  # the same where the user did not ask for the slow engine
TRIALS = (16, 32)  # voxels along each axis of the units that are made to see how long they take


def default_jobs(model: Path, voxels: int, units: int) -> int:
    """As many workers as there are cores, units to make, and memory for."""
    plain = memory_estimate(model, voxels, "ieee")  # a reference of every experiment, the widest
    by_memory = int(0.9 * memory_free() // plain)
    return max(1, min(cores(), units, by_memory))


def seconds_each(todo: Sequence[Unit], done: Sequence[Unit], voxels: int) -> dict[str, float]:
    """Seconds of one unit of each engine: the median of what finished units of this experiment
    took, or else what trials say."""
    each = {}
    for engine in sorted({unit.config.engine for unit in todo}):
        finished = [unit for unit in done if unit.config.engine == engine]
        first = next(unit for unit in todo if unit.config.engine == engine)
        each[engine] = _recorded(finished) or _probed(first, voxels)
    return each


def seconds_left(todo: Sequence[Unit], each: Mapping[str, float], jobs: int) -> float:
    """Wall-clock seconds of the units to make, ``jobs`` at a time."""
    return sum(each[unit.config.engine] for unit in todo) / max(1, min(jobs, len(todo)))


def _recorded(finished: Sequence[Unit]) -> float | None:
    """Median of the recorded seconds per unit; None where none has finished."""
    seconds = []
    for unit in finished:
        record = json.loads(bids.sample_json(unit.folder).read_text(encoding="utf-8"))
        seconds.append(float(record["provenance"]["seconds_total"]))
    return statistics.median(seconds) if seconds else None


@functools.lru_cache
def _probed(unit: Unit, voxels: int) -> float:
    """Seconds that one such unit will take on a grid of ``voxels``: a line through two measured
    units. The first units of a process also pay for its start, for loading and tracing; where a
    process makes one unit, every unit does."""
    if alone(unit):
        small, large = (next(_trials(unit, [size])) for size in TRIALS)
    else:
        *_, small, large = _trials(unit, [*TRIALS, *TRIALS])
    least, most = (size**3 for size in TRIALS)
    return large + max(large - small, 0.0) / (most - least) * max(voxels - most, 0)


def _trials(unit: Unit, sizes: Sequence[int]) -> Iterator[float]:
    """Seconds until a new process has made such a unit of each size, one after the other."""
    start, worker = time.perf_counter(), Worker(unit)
    try:
        for size in sizes:
            worker.send(unit, probe=size)
            while (reply := worker.receive()) == {}:
                pass
            if reply is None:
                raise UserError(f"a trial of {unit.config.engine} failed: {worker.obituary()}")
            if "failed" in reply:
                raise UserError(f"a trial of {unit.config.engine} failed: {reply['message']}")
            yield time.perf_counter() - start
            start = time.perf_counter()
    finally:
        worker.close()


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``4 days``: no more digits than are known."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{round(seconds / 86400)} days"
