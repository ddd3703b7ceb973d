"""Where perturbation starts and stops: a context manager around the computation.

    with perturbed(seed=7) as counts:
        compute()
    print(counts.table.perturbed)

Outside Verrou it does nothing. Under it (scripts/with_verrou.sh says so in the environment
variable MORPHBITS_VERROU, which names the folder of this run) the markers of verrou/markers.c are
called, and Verrou's own counters tell what was perturbed. Standard library only, so that the
sanity check takes seconds.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from morphbits.engines.verrou.counters import OperationTable, last_table
from morphbits.errors import UserError

VARIABLE = "MORPHBITS_VERROU"
_ended = 0  # regions of this process
_open = False  # a region that its markers have switched on


@dataclass
class RegionCount:
    """What the operations of a region were; complete when the region has ended."""

    table: OperationTable = field(default_factory=OperationTable)


def parse_settings(text: str) -> dict[str, str]:
    """``key=value`` lines, as with_verrou.sh writes them; ``exclude`` lines are left out."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value for key, value in pairs if key != "exclude"}


@functools.cache
def _folder() -> Path | None:
    """The folder of this run; None where this process does not run under Verrou."""
    name = os.environ.get(VARIABLE)
    if name is None or not _library(Path(name)).morphbits_under_valgrind():
        return None
    return Path(name)


@functools.cache
def _library(folder: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(folder / "markers.so"))
    except OSError as error:
        raise UserError(f"{folder}: {VARIABLE} names it, but {error}") from None


def settings() -> dict[str, str] | None:
    """What with_verrou.sh was started with; None outside Verrou."""
    folder = _folder()
    return parse_settings((folder / "settings").read_text(encoding="utf-8")) if folder else None


def exclusions() -> list[str]:
    """The rules in force, as Verrou reads them."""
    folder = _folder()
    lines = (folder / "exclusions").read_text(encoding="utf-8").splitlines() if folder else []
    return [line for line in lines if not line.startswith("#")]


def count() -> OperationTable:
    """Operations since the process began, by Verrou's own count; empty outside Verrou."""
    folder = _folder()
    if folder is None:
        return OperationTable()
    _library(folder).morphbits_print_counters()
    return last_table((folder / "log").read_text(encoding="utf-8", errors="replace"))


def regions_ended() -> int:
    """How many regions this process has been through."""
    return _ended


@contextmanager
def perturbed(seed: int) -> Iterator[RegionCount]:
    """Perturbation on, its random numbers beginning with ``seed``; off and counted at the end.

    With region ``process`` everything is perturbed from the start of the process, with the seed
    it was started with: then nothing is switched, and the count is the process's until the end.
    """
    global _ended, _open
    count_of_region = RegionCount()
    folder = _folder()
    if folder is None:
        yield count_of_region
        return
    library, whole_process = _library(folder), (settings() or {})["region"] == "process"
    before = OperationTable() if whole_process else count()
    if not whole_process:
        library.morphbits_seed(ctypes.c_ulong(seed))
        library.morphbits_start()
    _open = not whole_process
    try:
        yield count_of_region
    finally:
        _ended += 1
        if not whole_process:
            library.morphbits_stop()
        _open = False
    count_of_region.table = count() - before


@contextmanager
def paused() -> Iterator[None]:
    """Perturbation off for a while, where ``perturbed`` has switched it on; its random numbers
    then go on."""
    folder = _folder() if _open else None
    if folder is None:
        yield
        return
    _library(folder).morphbits_stop()
    try:
        yield
    finally:
        _library(folder).morphbits_start()
