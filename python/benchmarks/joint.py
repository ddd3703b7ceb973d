"""Time and memory of one sample of FreeSurfer 8's `joint` model, at its real size.

    make bench-joint                 in the cube of 192 mm
    make bench-joint EXTENT=256      in that of 256 mm (about 12.5 GB, estimated)

The network has the widths of the published files and random weights, so that they are not needed:
the time depends on sizes only. Two phantoms are prepared as `mri_synthmorph` does; the network
registers them, in mode `random` and in plain torch, each in a process of its own. Prints a
Markdown table and writes it to notes/benchmarks/.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report, measured, note, processor
from morphbits import config, machine
from morphbits.datasets import phantom
from morphbits.errors import run_cli
from morphbits.images import Image
from morphbits.models import network_space

WIDTH, FEATURES = 256, 64
# (channels in, channels out) of each convolution in the published files
AFFINE = ((1, WIDTH), *[(WIDTH, WIDTH)] * 7, (WIDTH, FEATURES))
SKIPS = [
    (2 * WIDTH, WIDTH)
] * 4  # the decoder's convolutions that also take the encoder's features
DEFORM = ((2, WIDTH), *[(WIDTH, WIDTH)] * 4, *SKIPS, *[(WIDTH, WIDTH)] * 3, (WIDTH, 3))


def measure(engine: str, extent: int, threads: int) -> dict[str, Any]:
    """Seconds and processor seconds of one registration, peak memory of the process in bytes,
    perturbed operations."""
    import torch

    from morphbits.engines.native import random_rounding
    from morphbits.models.joint_torch import Joint

    torch.set_num_threads(threads)
    template, who = phantom.template("2mm"), phantom.make_phantom(seed=2026, index=1, size="2mm")
    moving = Image(who.image, template.affine)
    prepared = network_space.prepare(
        moving, Image(template.image, template.affine), extent, one_centre=False
    )
    random = np.random.Generator(np.random.PCG64(1))
    network = Joint(_weights(DEFORM, random), _weights(AFFINE, random)).eval()
    images = [torch.from_numpy(array)[None, None] for array in (prepared.moving, prepared.fixed)]
    with torch.no_grad():
        start, before = time.perf_counter(), _processor_seconds()
        if engine == "torch":
            network(*images)
            operations = 0
        else:
            with random_rounding("random", seed=1, threads=threads) as stats:
                network(*images)
            operations = stats.operations
        seconds, processor_seconds = time.perf_counter() - start, _processor_seconds() - before
    return {
        "seconds": seconds,
        "processor": processor_seconds,
        "memory": machine.peak_memory(),
        "operations": operations,
    }


def _weights(layers: tuple[tuple[int, int], ...], random: np.random.Generator) -> Any:
    """He-normal kernels in torch's order, and zero biases."""
    import torch

    pairs = []
    for taken, given in layers:
        kernel = random.standard_normal((given, taken, 3, 3, 3), np.float32)
        kernel *= np.float32(np.sqrt(2 / (27 * taken)))
        pairs.append((torch.from_numpy(kernel), torch.zeros(given)))
    return pairs


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--extent", type=config.whole(64, 256), default=192, help="edge of the cube (192)"
    )
    parser.add_argument(
        "--threads", type=config.whole(1, 1024), default=machine.cores(), help="of each process"
    )
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    given = parser.parse_args()
    report = Report(
        given.output or note(f"joint-{given.extent}", processor()),
        f"One sample of `joint` in a cube of {given.extent} mm, {processor()}",
        f"make bench-joint EXTENT={given.extent}",
        "torch",
    )
    report.add(
        "Random weights, two phantoms. Processor: seconds of all threads together; cores: "
        "processor seconds over seconds, which is less than the threads where other programs ran; "
        "load: programs that wanted a core, mean of the last minute, before and after."
    )
    report.table(
        *("engine", "threads", "seconds", "processor, s", "cores", "memory, GB", "operations"),
        "load",
    )
    for engine in ("native random", "torch"):
        before = os.getloadavg()[0]
        found = measured(measure, engine, given.extent, given.threads)
        report.row(
            engine,
            given.threads,
            f"{found['seconds']:.0f}",
            f"{found['processor']:.0f}",
            f"{found['processor'] / found['seconds']:.2f}",
            f"{found['memory'] / 1e9:.2f}",
            f"{found['operations']:.3g}" if found["operations"] else "",
            f"{before:.1f}, {os.getloadavg()[0]:.1f}",
        )


if __name__ == "__main__":
    run_cli(main)
