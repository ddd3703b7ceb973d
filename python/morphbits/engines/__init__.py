"""Engines: who rounds the floating-point operations of a registration.

An engine is a name and two ways in, of which a given engine uses one:

- ``region(config)``: a context manager around the computation (native);
- ``command_prefix(config)``: words to put before the command of the process (verrou).

``ieee`` is both, empty. Ask `get` for one by its name; nothing heavy is imported before that.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, cast

from morphbits.config import ENGINES, Arithmetic


@dataclass
class Counts:
    """What a region perturbed: elementary operations, in all and by operator."""

    operations: int = 0
    operators: dict[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """One way of rounding; see the module's text."""

    def region(self, config: Arithmetic, threads: int) -> AbstractContextManager[Counts]:
        """The computation inside is rounded by ``config.mode``; yields what was perturbed."""

    def command_prefix(self, config: Arithmetic) -> list[str]:
        """Words before the command line of the process that computes."""

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
