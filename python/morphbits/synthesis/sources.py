"""Where training pairs come from: one function for every kind of source.

    with open_source(config, ranks, threads) as source:
        pair = source.pair(epoch, step, rank)

A pair is a pure function of (config, epoch, step, rank), whatever was asked before: what a
training draws does not depend on how it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from morphbits.datasets.phantom import ORIENTATION, SIZES
from morphbits.errors import UserError
from morphbits.images import NetworkGrid
from morphbits.synthesis import phantom_pairs
from morphbits.synthesis.pair import Pair, collate
from morphbits.synthesis.settings import Ranks, SourceConfig


class Source(Protocol):
    """A stream of training pairs that can be asked for any of them; `shape` (X, Y, Z) is that of
    the largest, `channels` the number of their labels, `orientation` names their axes
    (`morphbits.axes`), empty where they have none."""

    shape: tuple[int, int, int]
    channels: int
    orientation: str

    def pair(self, epoch: int, step: int, rank: int) -> Pair:
        """The batch of `rank` at `step` (from 0, in its epoch) of `epoch` (from 0)."""


def check(config: SourceConfig) -> None:
    """Refuse options that the source has no use for."""
    if config.labels and config.source != "synthmorph":
        raise UserError(
            f"labels ({config.labels}) are for the source synthmorph; {config.source} draws its "
            "own phantoms: add --source synthmorph, or leave --labels out"
        )


@contextmanager
def open_source(
    config: SourceConfig,
    ranks: Ranks,
    threads: int,
    synth_procs: int = 1,
    say: Callable[[str], object] | None = None,
) -> Iterator[Source]:
    """The source that `config` names, for one process; `threads` are for what computes in it.

    synthmorph computes in `synth_procs` processes of its own, of one thread each, which serve all
    ranks of a host. `say` takes lines about it for the user; without it nobody hears them.
    """
    check(config)
    if config.source == "synthmorph":
        from morphbits.synthesis import stream  # here, because it imports this module

        with stream.open_stream(config, ranks, synth_procs, say or (lambda line: None)) as pairs:
            yield pairs
    else:
        yield _PhantomPairs(config, ranks, threads)


class _PhantomPairs:
    """Pairs drawn in the process that asks: a fiftieth of a second each at 4 mm."""

    def __init__(self, config: SourceConfig, ranks: Ranks, threads: int) -> None:
        self.config, self.ranks, self.threads = config, ranks, threads
        self.shape = NetworkGrid.around(SIZES[config.size].voxels).size
        self.channels = 3  # tissues
        self.orientation = ORIENTATION

    def pair(self, epoch: int, step: int, rank: int) -> Pair:
        config = self.config
        size = "4mm" if epoch < config.coarse_epochs else config.size
        # the pairs of all ranks of all steps in one row, so that a step of N ranks draws what one
        # process with an N times larger batch does
        first = ((epoch * config.steps + step) * self.ranks.size + rank) * config.batch
        torch.set_num_threads(self.threads)  # of the calling thread
        return collate(
            [phantom_pairs.draw(config.seed, first + k, size) for k in range(config.batch)]
        )
