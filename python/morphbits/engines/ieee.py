"""The engine that perturbs nothing: the framework's own arithmetic, rounded to nearest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from morphbits.config import Arithmetic
from morphbits.engines import Counts


def region(config: Arithmetic, threads: int) -> AbstractContextManager[Counts]:
    """Nothing happens."""
    return nullcontext(Counts())


def command_prefix(config: Arithmetic) -> list[str]:
    """No words."""
    return []


def order(config: Arithmetic) -> str:
    """The framework's own."""
    return {"torch": "torch", "tensorflow": "TensorFlow"}[config.framework] + "'s own"


def version() -> str | None:
    """None: the framework's version is recorded by itself."""
    return None
