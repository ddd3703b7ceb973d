"""Engines: who rounds the floating-point operations of a registration.

An engine is a name and two ways in, of which a given engine uses one:

- ``region(config)``: a context manager around the computation (native);
- ``command(config, …)``: how a process that computes is started (verrou).

``ieee`` needs neither. Ask `get` for one by its name; nothing heavy is imported before that.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from morphbits.config import ENGINES, Arithmetic


@dataclass
class Counts:
    """What a region perturbed: elementary operations, in all and by operator."""

    operations: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)  # of sums, where they were measured


class Engine(Protocol):
    """One way of rounding; see the module's text."""

    def region(self, config: Arithmetic, threads: int) -> AbstractContextManager[Counts]:
        """The computation inside is rounded by ``config.mode``; yields what was perturbed."""

    def command(
        self, config: Arithmetic, python: str, reads: Sequence[Path], writes: Sequence[Path]
    ) -> list[str]:
        """The words that start Python for a process that computes: ``python`` itself, or what
        starts it from outside. The process will use these files and folders."""

    def order(self, config: Arithmetic) -> str:
        """Whose order of operations a sample reproduces, in a sentence's words."""

    def version(self) -> str | None:
        """What of the engine can change a sample's bytes; None where nothing can."""


def get(name: str) -> Engine:
    """The engine of that name; its module is imported now, not before."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}: one of {ENGINES}")
    modules = {"native": "morphbits.engines.native_adapter"}
    return cast(Engine, importlib.import_module(modules.get(name, f"morphbits.engines.{name}")))
