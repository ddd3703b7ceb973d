"""What decides the training pairs, and which process asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from morphbits.config import option
from morphbits.datasets.phantom import SIZES
from morphbits.synthesis.generator import GeneratorConfig

SOURCES = ("phantom-pairs", "synthmorph")


@dataclass(frozen=True)
class SourceConfig(GeneratorConfig):
    """What decides the training pairs, byte for byte."""

    source: str = option(
        "phantom-pairs",
        "source of the training pairs: phantom-pairs (a new T1-like phantom at every step, and "
        "the template) or synthmorph (images of random contrast from label maps, by TensorFlow)",
        choices=SOURCES,
    )
    seed: int = option(1, "seed of everything random in the training", minimum=0, maximum=2**63)
    batch: int = option(1, "pairs per step and process", minimum=1, maximum=1_000_000)
    steps: int = option(100, "training steps per epoch", minimum=1, maximum=1_000_000)
    size: str = option("2mm", "voxels of phantoms and shapes", choices=tuple(SIZES))
    coarse_epochs: int = option(
        0,
        "phantom-pairs: the first epochs, on phantoms of 4 mm whatever the size",
        minimum=0,
        maximum=1_000_000,
    )


@dataclass(frozen=True)
class Ranks:
    """Which process of a training this is: `rank` of `size`, and `host_rank` of the `host_size`
    on this machine. The default is a training in one process."""

    rank: int = 0
    size: int = 1
    host_rank: int = 0
    host_size: int = 1
