"""What a training will take, said before it starts.

The constants were measured (AMD EPYC with AVX-512, torch 2.13) and hold within a factor of two on
one kind of machine; time left is measured while it runs. notes/findings/synthesis.md has the
measurements that those of SynthMorph's pairs were fitted to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from morphbits import machine
from morphbits.datasets.phantom import SIZES
from morphbits.errors import UserError
from morphbits.images import NetworkGrid
from morphbits.machine import memory_free
from morphbits.models.weights import Architecture
from morphbits.synthesis.settings import Ranks
from morphbits.training.recipe import TrainConfig
from morphbits.wording import duration

RATE = 90e9  # floating-point operations of the convolutions per second and core
VOXEL_SECONDS = 2.85e-7  # of one core per voxel, for all else: warps, phantoms …
CHANNEL_SECONDS = 5.5e-8  # … and for each channel of labels: warps, losses
SYNTHESIS_SECONDS = 0.012  # of the synthesis process, per pair …
SYNTHESIS_VOXEL_SECONDS = 8e-7  # … and voxel
NATIVE_SECONDS = 1.1e-10  # by the native engine, of one core per multiply-add of the convolutions
NATIVE_VOXEL_SECONDS = 1.4e-6  # by the native engine, per voxel, for all else …
NATIVE_CHANNEL_SECONDS = 9e-7  # … and for each channel of labels
VERROU_SECONDS = 21.5e-9  # under Verrou, of one core per multiply-add of the convolutions
VERROU_VOXEL_SECONDS = 1e-4  # under Verrou, per voxel, for all else
VERROU_TRANSLATION = 2.0  # seconds of each step, in which Valgrind translates the code anew
PROCESS_BYTES = 0.76e9  # Python, torch and its compiler, the template
SYNTHMORPH_PROCESS_BYTES = 0.63e9  # without the template
SYNTHESIS_BYTES = 1.05e9  # a synthesis process: TensorFlow …
SYNTHESIS_VOXEL_BYTES = 550  # … and per voxel, whatever the batch
FEATURE_COPIES = 3.0  # of every feature map: before and after its activation, and its derivative
VOXEL_BYTES = 165  # per voxel, for all else …
CHANNEL_BYTES = 45  # … and for each channel of labels: four pairs in memory, and the loss's copies
BUCKET_BYTES = 25 * 2**20  # of gradients that DistributedDataParallel exchanges at a time
NATIVE_CHANNEL_BYTES = 190  # … of which the native engine makes more


class NetworkCost(NamedTuple):
    """Floating-point operations of the convolutions, forward, and their feature maps' values."""

    operations: float
    features: float


def network(architecture: Architecture, shape: tuple[int, ...]) -> NetworkCost:
    """The cost of one pair of images of `shape` (X, Y, Z)."""
    levels = len(architecture.enc)
    steps = [*range(levels), *range(levels, 0, -1)]  # halvings at each convolution, then 1
    operations = features = 0.0
    for step, convolution in enumerate(architecture.convolutions()):
        halvings = steps[step] if step < len(steps) else 1
        values = convolution.out_channels * math.prod(shape) / 8**halvings
        operations += 2 * 27 * convolution.in_channels * values
        features += values
    return NetworkCost(operations, features)


def seconds_per_step(
    config: TrainConfig,
    shape: tuple[int, ...],
    ranks: Ranks,
    channels: int = 3,
    synth_procs: int = 1,
) -> float:
    """On a machine like that of the constants, with this one's cores and nothing else to do."""
    operations, voxels = network(config.architecture(), shape).operations, math.prod(shape)
    # the backward pass computes two convolutions for each of the forward pass; two operations are
    # a multiply-add
    convolutions, added = 3 * operations / RATE, 3 * operations / 2
    rest, fixed = VOXEL_SECONDS + channels * CHANNEL_SECONDS, 0.0
    if config.engine == "native":
        convolutions = added * NATIVE_SECONDS
        rest = NATIVE_VOXEL_SECONDS + channels * NATIVE_CHANNEL_SECONDS
    if config.engine == "verrou":
        convolutions, rest = added * VERROU_SECONDS, VERROU_VOXEL_SECONDS
        fixed = VERROU_TRANSLATION
    work = ranks.host_size * (config.batch * (convolutions + voxels * rest) + fixed)
    cores = machine.cores()
    assert config.threads is not None
    threads = config.threads * ranks.host_size
    seconds = work / min(threads, cores)
    if config.source == "synthmorph":
        pairs = ranks.host_size * config.batch
        synthesis = pairs * (SYNTHESIS_SECONDS + voxels * SYNTHESIS_VOXEL_SECONDS)
        # one waits for the other, or both for cores
        both = (work + synthesis) / min(threads + synth_procs, cores)
        seconds = max(seconds, synthesis / min(synth_procs, cores), both)
    return seconds


def stages(
    config: TrainConfig, shape: tuple[int, ...], done: int = 0
) -> list[tuple[int, tuple[int, ...]]]:
    """Steps from `done` on, and the shape of their pairs: `coarse_epochs` first, then `shape`."""
    coarse = min(config.coarse_epochs * config.steps, config.total_steps)
    steps = max(0, coarse - done), config.total_steps - max(coarse, done)
    shapes = NetworkGrid.around(SIZES["4mm"].voxels).size, shape
    return [(n, at) for n, at in zip(steps, shapes, strict=True) if n > 0]


def process_bytes(
    config: TrainConfig, shape: tuple[int, ...], channels: int = 3, processes: int = 1
) -> float:
    """Peak memory of one of the training's processes; its pairs have `channels` labels."""
    features = network(config.architecture(), shape).features
    each = NATIVE_CHANNEL_BYTES if config.engine == "native" else CHANNEL_BYTES
    per_voxel = VOXEL_BYTES + channels * each
    per_pair = 4 * FEATURE_COPIES * features + per_voxel * math.prod(shape)
    alone = SYNTHMORPH_PROCESS_BYTES if config.source == "synthmorph" else PROCESS_BYTES
    architecture = config.architecture()
    weights, gathered = architecture.parameters(), 0.0
    if processes > 1:  # a bucket of all ranks' gradients, which the last kernel in it has filled
        largest = max(27 * c.in_channels * c.out_channels for c in architecture.convolutions())
        gathered = processes * min(4 * weights, BUCKET_BYTES + 4 * largest)
    return alone + config.batch * per_pair + 32 * weights + gathered


def synthesis_bytes(config: TrainConfig, shape: tuple[int, ...]) -> float:
    """Peak memory of a synthesis process; 0 where there is none."""
    if config.source != "synthmorph":
        return 0.0
    return SYNTHESIS_BYTES + (SYNTHESIS_VOXEL_BYTES + config.maps) * math.prod(shape)


def machine_bytes(
    config: TrainConfig, ranks: Ranks, shape: tuple[int, ...], channels: int, synth_procs: int
) -> float:
    """Peak memory of all the training's processes on this machine."""
    each = process_bytes(config, shape, channels, ranks.size)
    return each * ranks.host_size + synthesis_bytes(config, shape) * synth_procs


def describe(
    config: TrainConfig,
    ranks: Ranks,
    shape: tuple[int, ...],
    done: int,
    channels: int = 3,
    synth_procs: int = 1,
) -> str:
    """Time and memory, and a warning where there are more processes than cores; lines.

    channels: labels of the pairs. synth_procs: synthesis processes on this machine, if any.
    """
    cores = machine.cores()
    costs = [
        (steps, seconds_per_step(config, at, ranks, channels, synth_procs))
        for steps, at in stages(config, shape, done)
    ]
    taken = ", then ".join(f"{steps} steps of about {seconds:.2g} s" for steps, seconds in costs)
    left = duration(sum(steps * seconds for steps, seconds in costs))
    memory = process_bytes(config, shape, channels, ranks.size) / 1e9
    synthesis = synthesis_bytes(config, shape) / 1e9
    whole = machine_bytes(config, ranks, shape, channels, synth_procs) / 1e9
    beside = f", {synthesis:.1f} GB for synthesis" if synthesis else ""
    lines = [
        f"pairs of {' x '.join(map(str, shape))} voxels, {channels} labels; "
        f"{taken or '0 steps'}, about {left}; memory about "
        f"{memory:.1f} GB per process{beside}, "
        f"{whole:.1f} GB on this machine"
    ]
    assert config.threads is not None
    if config.threads * ranks.host_size > cores:
        lines.append(
            f"warning: {ranks.host_size} processes of {config.threads} thread(s) share {cores} "
            "cores: no step is faster for it, the global batch is larger"
        )
    if config.source == "synthmorph":
        seconds = {
            procs: seconds_per_step(config, shape, ranks, channels, procs)
            for procs in range(synth_procs, max(cores, synth_procs) + 1)
        }
        least = min(seconds.values())
        best = next(procs for procs in seconds if seconds[procs] <= 1.05 * least)
        if best > synth_procs:
            lines.append(
                f"synthesis cannot feed the training: SYNTH_PROCS={best} (--synth-procs) would "
                f"make it about {seconds[best]:.2g} s a step"
            )
    return "\n".join(lines)


def check_memory(
    config: TrainConfig,
    ranks: Ranks,
    shape: tuple[int, ...],
    done: int,
    channels: int = 3,
    synth_procs: int = 1,
) -> None:
    """Refuse a training that cannot fit into this machine, before the system ends it; arguments
    as for `describe`."""
    needed, free = machine_bytes(config, ranks, shape, channels, synth_procs), memory_free()
    if done < config.total_steps and needed > free:
        raise UserError(
            f"BATCH (--batch) {config.batch}: a step of such pairs, {' x '.join(map(str, shape))} "
            f"voxels in {ranks.host_size} process(es), needs about {needed / 1e9:,.1f} GB of "
            f"memory on this machine and {free / 1e9:,.1f} GB are free; give a smaller BATCH, "
            "SIZE, NPROC or network"
        )


def headline(experiment: str, config: TrainConfig, ranks: Ranks) -> str:
    """Which training this is, and by what it learns, in two lines."""
    threads = f"{config.threads} thread{'s' if config.threads != 1 else ''}"
    rates = f"{config.learning_rate:g} {config.schedule}"
    rates += f" after {config.warm_up} steps of warm-up" if config.warm_up else ""
    rates += f", {config.flow_rate:g} of it in the last layer" if config.flow_rate != 1 else ""
    where = f"each of {ranks.size} processes" if ranks.size > 1 else "one process"
    return (
        f"{experiment}: {config.architecture().parameters():,} weights, {config.epochs} epochs x "
        f"{config.steps} steps, {config.batch} pair{'s' if config.batch > 1 else ''} per step in "
        f"{where} of {threads}; pairs from {config.source}, engine {config.engine}\n"
        f"loss {config.loss} + {config.smoothness:g} x roughness of the warp; "
        f"{config.optimizer}, learning rate {rates}"
    )
