"""The native engine behind the common protocol: compiled random rounding of torch operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from morphbits.config import Arithmetic, Perturbation
from morphbits.engines import Counts

_ORDERS = {
    "sequential": "TensorFlow's with oneDNN (one chain over taps and input channels)",
    "direct": "torch's own on AVX-512 (blocks of 16 input channels)",
    "probe": "torch's own on this machine, measured from its kernel for each layer",
    "blocked:192": "TensorFlow's without oneDNN, as under Valgrind (a gemm cut into 192 terms)",
}


@contextmanager
def region(config: Arithmetic, threads: int) -> Iterator[Counts]:
    """Every torch operator inside rounds each elementary operation by ``config.mode``."""
    from morphbits.engines.native import random_rounding

    counts = Counts()
    names = (field.name for field in fields(Perturbation) if field.name != "engine")
    options = {name: getattr(config, name) for name in names}
    with random_rounding(**options, seed=config.seed, threads=threads) as stats:
        yield counts
    counts.operations = int(stats.operations)
    counts.operators = dict(stats.operators)
    counts.orders = dict(stats.orders)


def command(
    config: Arithmetic, python: str, reads: Sequence[Path], writes: Sequence[Path]
) -> list[str]:
    """Python itself."""
    return [python]


def order(config: Arithmetic) -> str:
    """The framework whose convolutions add up in this order."""
    return _ORDERS.get(
        config.accumulation, f"a gemm's cut into {config.accumulation.partition(':')[2]} terms"
    )


def version() -> str:
    """Hash of the engine's sources, C and Python."""
    from morphbits.engines.native import engine_version

    return str(engine_version())
