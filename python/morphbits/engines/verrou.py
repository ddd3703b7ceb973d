"""The engine that is Valgrind's tool Verrou: it perturbs the process from outside.

This version of the suite cannot start Verrou yet; every way in says so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NoReturn

from morphbits.config import Arithmetic
from morphbits.engines import Counts
from morphbits.errors import UserError


def _refuse() -> NoReturn:
    raise UserError(
        "engine verrou perturbs a process from outside, under Valgrind, where "
        "scripts/with_verrou.sh starts it; that script is not part of this version yet, so "
        "choose --engine native (the same rounding modes, in torch)"
    )


def region(config: Arithmetic, threads: int) -> AbstractContextManager[Counts]:
    """Refused outside Valgrind."""
    _refuse()


def command_prefix(config: Arithmetic) -> list[str]:
    """Refused: there is no script to name yet."""
    _refuse()


def order(config: Arithmetic) -> str:
    """The order of the kernel that runs under Valgrind."""
    _refuse()


def version() -> str | None:
    """Refused."""
    _refuse()
