"""What a training will take, said before it starts.

The constants were measured with `make bench-train` (AMD EPYC with AVX-512, torch 2.13) and hold
within a factor of two on one kind of machine; time left is measured while it runs.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from morphbits.models.weights import Architecture
from morphbits.synthesis.sources import Ranks
from morphbits.training.log import duration
from morphbits.training.recipe import TrainConfig

RATE = 90e9  # floating-point operations of the convolutions per second and core
VOXEL_SECONDS = 4.5e-7  # of one core per voxel, for all else: warps, losses, synthesis
VERROU_SECONDS = 21.5e-9  # under Verrou, of one core per multiply-add of the convolutions
VERROU_VOXEL_SECONDS = 1e-4  # under Verrou, per voxel, for all else
VERROU_TRANSLATION = 2.0  # seconds of each step, in which Valgrind translates the code anew
PROCESS_BYTES = 0.7e9  # Python, torch, the template
FEATURE_COPIES = 3.0  # of every feature map: before and after its activation, and its derivative
VOXEL_BYTES = 300  # per voxel, for all else


class Cost(NamedTuple):
    """Floating-point operations of the convolutions, forward, and their feature maps' values."""

    operations: float
    features: float


def network(architecture: Architecture, shape: tuple[int, ...]) -> Cost:
    """The cost of one pair of images of `shape` (X, Y, Z)."""
    levels = len(architecture.enc)
    steps = [*range(levels), *range(levels, 0, -1)]  # halvings at each convolution, then 1
    operations = features = 0.0
    for step, convolution in enumerate(architecture.convolutions()):
        halvings = steps[step] if step < len(steps) else 1
        values = convolution.out_channels * math.prod(shape) / 8**halvings
        operations += 2 * 27 * convolution.in_channels * values
        features += values
    return Cost(operations, features)


def seconds_per_step(config: TrainConfig, shape: tuple[int, ...], ranks: Ranks) -> float:
    """On a machine like that of the constants, with this one's cores and nothing else to do."""
    cost = network(config.architecture(), shape)
    # the backward pass computes two convolutions for each of the forward pass
    work = config.batch * (3 * cost.operations / RATE + math.prod(shape) * VOXEL_SECONDS)
    if config.engine == "verrou":
        convolutions = 3 * cost.operations / 2 * VERROU_SECONDS
        rest = math.prod(shape) * VERROU_VOXEL_SECONDS
        work = config.batch * (convolutions + rest) + VERROU_TRANSLATION
    cores = len(os.sched_getaffinity(0))
    assert config.threads is not None
    used = min(config.threads * ranks.host_size, cores)
    return work * ranks.host_size / used


def process_bytes(config: TrainConfig, shape: tuple[int, ...]) -> float:
    """Peak memory of one process."""
    features = network(config.architecture(), shape).features
    per_pair = 4 * FEATURE_COPIES * features + VOXEL_BYTES * math.prod(shape)
    return PROCESS_BYTES + config.batch * per_pair + 32 * config.architecture().parameters()


def describe(config: TrainConfig, ranks: Ranks, shape: tuple[int, ...], done: int) -> str:
    """Time and memory, and a warning where there are more processes than cores; lines."""
    cores = len(os.sched_getaffinity(0))
    per_step = seconds_per_step(config, shape, ranks)
    left = duration(per_step * (config.total_steps - done))
    memory = process_bytes(config, shape) / 1e9
    lines = [
        f"pairs of {' x '.join(map(str, shape))} voxels; {config.total_steps - done} steps of "
        f"about {per_step:.2g} s, about {left}; memory about {memory:.1f} GB per process, "
        f"{memory * ranks.host_size:.1f} GB on this machine"
    ]
    assert config.threads is not None
    if config.threads * ranks.host_size > cores:
        lines.append(
            f"warning: {ranks.host_size} processes of {config.threads} thread(s) share {cores} "
            "cores: no step is faster for it, the global batch is larger"
        )
    return "\n".join(lines)


def headline(experiment: str, config: TrainConfig, ranks: Ranks) -> str:
    """Which training this is, in a line."""
    threads = f"{config.threads} thread{'s' if config.threads != 1 else ''}"
    where = f"each of {ranks.size} processes" if ranks.size > 1 else "one process"
    return (
        f"{experiment}: {config.architecture().parameters():,} weights, {config.epochs} epochs x "
        f"{config.steps} steps, {config.batch} pair{'s' if config.batch > 1 else ''} per step in "
        f"{where} of {threads}; pairs from {config.source}, loss {config.loss}, engine "
        f"{config.engine}"
    )
