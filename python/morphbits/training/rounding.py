"""Who rounds in a training, and from which random stream.

Replicas must stay identical: what each rank does by itself (forward, backward) draws from a stream
of its own, and what all ranks do alike (the sum of gradients, the optimizer) from one that all
share. Each step has its own streams, so that a resumed training draws what an uninterrupted one
does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields

from morphbits import engines
from morphbits.config import Arithmetic, Perturbation
from morphbits.engines.verrou import markers
from morphbits.training.recipe import TrainConfig


class TrainingEngine:
    """The engine of one training; `operations` is what it has perturbed."""

    def __init__(self, config: TrainConfig, threads: int) -> None:
        self.config, self.threads = config, threads
        self.engine = engines.get(config.engine)
        self.operations = 0

    @contextmanager
    def of_rank(self, step: int, rank: int) -> Iterator[None]:
        """What only this rank computes at `step`."""
        with self._stream(f"step {step} rank {rank}"):
            yield

    @contextmanager
    def of_all(self, step: int) -> Iterator[None]:
        """What every rank computes alike at `step`."""
        with self._stream(f"step {step} all ranks update"):
            yield

    @contextmanager
    def of_sum(self, step: int, number: int) -> Iterator[None]:
        """The sum over ranks of the gradient of a parameter, in the backward pass of a rank. All
        draw the same, each parameter by itself: they come in any order."""
        if self.config.engine == "native":
            with self._stream(f"step {step} all ranks sum {number}"):
                yield
        else:  # processes under Verrou cannot share a stream, and the first one's update counts
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What moves numbers in the middle of a perturbed computation. It rounds nothing, but
        clocks are read and compared in floating point, and Verrou would draw for that."""
        with markers.paused() if self.config.engine == "verrou" else nullcontext():
            yield

    @contextmanager
    def _stream(self, name: str) -> Iterator[None]:
        config = self.config
        seed = config.seed if config.rounding_seed is None else config.rounding_seed
        digest = hashlib.sha256(f"training {seed} {name}".encode()).digest()
        chosen = {field.name: getattr(config, field.name) for field in fields(Perturbation)}
        arithmetic = Arithmetic(**chosen, seed=int.from_bytes(digest[:8], "big"))
        with self.engine.region(arithmetic, self.threads) as counts:
            yield
        self.operations += counts.operations
