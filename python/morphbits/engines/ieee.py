"""The engine that perturbs nothing: the framework's own arithmetic, rounded to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from morphbits.config import Arithmetic
from morphbits.engines import Counts


def region(config: Arithmetic, threads: int) -> AbstractContextManager[Counts]:
    """Nothing happens."""
    return nullcontext(Counts())


def command(
    config: Arithmetic, python: str, reads: Sequence[Path], writes: Sequence[Path]
) -> list[str]:
    """Python itself."""
    return [python]


def order(config: Arithmetic) -> str:
    """The framework's own."""
    return {"torch": "torch", "tensorflow": "TensorFlow"}[config.framework] + "'s own"


def version() -> str | None:
    """None: the framework's version is recorded by itself."""
    return None
