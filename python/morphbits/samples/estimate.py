"""How long a run will take and how much memory a worker needs, before it starts."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morphbits import bids
from morphbits.errors import UserError
from morphbits.machine import cores, memory_free
from morphbits.models.model import Model, open_model
from morphbits.registration import SPEEDS, seconds_estimate
from morphbits.samples.matrix import Unit
from morphbits.samples.runner import Worker, alone, key_of
from morphbits.stats.significance import METHODS, significant_bits

LONG = 2 * 3600  # seconds above which the user is asked
UNASKED = 5 * 60  # the same where the user did not ask for the slow engine
# processor seconds from the start of a process to its first unit, on the same Xeon as `analysing`
STARTS = {"torch": 3.0, "tensorflow": 10.0}
BITS_SECONDS = 0.018  # of `_seconds_of_bits` there
TRIALS = (16, 32)  # voxels along each axis of the units that are made to see how long they take


def default_jobs(model: Model, voxels: int, units: int) -> int:
    """As many workers as there are cores, units to make, and memory for."""
    plain = model.memory(voxels, "ieee")  # a reference of every experiment, the widest
    by_memory = int(0.9 * memory_free() // plain)
    return max(1, min(cores(), units, by_memory))


@dataclass(frozen=True)
class EngineCost:
    """Seconds of an engine on one worker: from the start of a process to its first unit (reading,
    loading, tracing), and of a unit."""

    start: float
    each: float


def costs(todo: Sequence[Unit], done: Sequence[Unit], voxels: int) -> dict[str, EngineCost]:
    """By engine: the median of what finished units of this experiment took, or else what trials
    say."""
    found = {}
    for engine in sorted({unit.config.engine for unit in todo}):
        finished = [unit for unit in done if unit.config.engine == engine]
        first = next(unit for unit in todo if unit.config.engine == engine)
        recorded = _recorded(finished)
        start = STARTS[first.config.framework]
        found[engine] = EngineCost(start, recorded) if recorded else _probed(first, voxels)
    return found


def sampling(
    todo: Sequence[Unit], found: Mapping[str, EngineCost], jobs: int, local: bool
) -> float:
    """Wall-clock seconds of the units to make, ``jobs`` at a time; on this machine (``local``) no
    more than its cores hold. Each worker starts a process for each kind of unit (`key_of`)."""
    if not todo:
        return 0.0
    if local:
        jobs = min(jobs, max(1, cores() // todo[0].config.threads))
    kinds: dict[Any, list[Unit]] = {}
    for unit in todo:
        kinds.setdefault(key_of(unit), []).append(unit)
    starts = sum(
        min(jobs, len(unit)) * found[unit[0].config.engine].start for unit in kinds.values()
    )
    each = sum(found[unit.config.engine].each for unit in todo)
    return (starts + each) / min(jobs, len(todo))


def analysing(subjects: int, runs: int, voxels: int, jobs: int) -> float:
    """Wall-clock seconds of significance and report; none where there is one run.

    Processor time of `stats.analysis` and `report` on a Xeon (AVX-512, 2026) for subjects of 0.08
    and 0.6 million voxels, 3 and 10 samples, fitted to a tenth, by how much slower than there a
    small computation of bits is here and now.
    """
    if runs < 2:
        return 0.0
    each = voxels * (5.1e-6 + 1.5e-7 * runs)
    work = 2.5 + 0.1 * subjects + subjects * each / max(1, min(jobs, cores(), subjects))
    return work * _seconds_of_bits() / BITS_SECONDS


def _seconds_of_bits() -> float:
    """Of the significant bits of ten samples of 2^17 numbers, by every method."""
    samples_SN = 1 + np.random.default_rng(0).random((10, 1 << 17), np.float32)
    for _ in range(2):  # the first also imports
        start = time.perf_counter()
        for method in METHODS:
            significant_bits(samples_SN, None, "mean", method)
    return time.perf_counter() - start


def _recorded(finished: Sequence[Unit]) -> float | None:
    """Median of the recorded seconds per unit; None where none has finished."""
    seconds = []
    for unit in finished:
        record = json.loads(bids.sample_json(unit.folder).read_text(encoding="utf-8"))
        seconds.append(float(record["provenance"]["seconds_total"]))
    return statistics.median(seconds) if seconds else None


@functools.lru_cache
def _probed(unit: Unit, voxels: int) -> EngineCost:
    """Of such a unit on a grid of ``voxels``: a line through two measured units. The first units
    of a process also pay for its start, for loading and tracing; where a process makes one unit,
    every unit does."""
    model = open_model(unit.model, unit.config)
    least, most = (size**3 for size in TRIALS)
    if model.voxels(TRIALS[:1] * 3) == model.voxels(TRIALS[1:] * 3):  # however small the images
        seconds = seconds_estimate(unit.model, voxels, unit.config)
        slowest = (model.multiplications(voxels) or 0) / min(SPEEDS.values())
        return EngineCost(STARTS[unit.config.framework], slowest if seconds is None else seconds)
    if alone(unit):
        first = small = next(_trials(unit, TRIALS[:1]))
        large = next(_trials(unit, TRIALS[1:]))
    else:
        first, _, small, large = _trials(unit, [*TRIALS, *TRIALS])
    each = large + max(large - small, 0.0) / (most - least) * max(voxels - most, 0)
    return EngineCost(max(first - small, 0.0), each)


def _trials(unit: Unit, sizes: Sequence[int]) -> Iterator[float]:
    """Seconds until a new process has made such a unit of each size, one after the other."""
    start, worker = time.perf_counter(), Worker(unit)
    try:
        for size in sizes:
            worker.send(unit, probe=size)
            while (reply := worker.receive()) == {}:
                pass
            if reply is None:
                raise UserError(f"a trial of {unit.config.engine} failed: {worker.how_it_ended()}")
            if "failed" in reply:
                raise UserError(f"a trial of {unit.config.engine} failed: {reply['message']}")
            yield time.perf_counter() - start
            start = time.perf_counter()
    finally:
        worker.close()
