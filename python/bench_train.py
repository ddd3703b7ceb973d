"""Time and memory of training steps: torch in 1, 2 and 4 processes, and voxelmorph's TensorFlow.

    python python/bench_train.py

A step of N processes of one thread, a pair each, stands beside a TensorFlow step of N pairs on N
threads: what voxelmorph 0.2's SynthMorph script compiles (VxmDense, Dice and gradient loss, Adam),
on images of the same shape that are ready in memory. The torch trainer draws its pairs meanwhile;
the share of time in which it waits for them is a column. Every measurement is a job of its own;
they take turns, and the ratio is the median over neighbouring runs. Prints a Markdown table and
writes it to notes/benchmarks/.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import note, processor, write_note
from morphbits.errors import UserError, run_cli

NETWORKS = {
    "demo (16 32 32 32)": ((16, 32, 32, 32), (32, 32, 32, 32, 16, 16)),
    "published (64)": ((64,) * 4, (64,) * 6),
}
CASES = [  # network, processes
    ("demo (16 32 32 32)", 1),
    ("demo (16 32 32 32)", 2),
    ("demo (16 32 32 32)", 4),
    ("published (64)", 1),
]
SHAPE = (48, 48, 48)  # phantoms of 4 mm
LABELS = 3
WARM_UP = 4


def measure_torch(network: str, steps: int) -> None:
    """As one rank: the trainer's own loop; the first rank prints what its log says."""
    from morphbits.training import TrainConfig, train
    from morphbits.training.group import processes

    enc, dec = (" ".join(map(str, widths)) for widths in NETWORKS[network])
    config = TrainConfig(
        enc=enc, dec=dec, size="4mm", epochs=1, steps=steps + WARM_UP, loss="dice", threads=1
    )
    with tempfile.TemporaryDirectory() as folder, processes() as ranks:
        train(config, Path(folder), ranks=ranks)
        if ranks.rank == 0:
            with (Path(folder) / "times.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))[WARM_UP:]
            seconds, waited = (
                [float(row[name]) for row in rows] for name in ("seconds", "waited")
            )
            print(json.dumps({"seconds": seconds, "waited": sum(waited) / sum(seconds)}))


def measure_tensorflow(network: str, batch: int, steps: int) -> None:
    """voxelmorph's model and losses on `batch` pairs and threads; prints seconds of each step."""
    import morphbits.models.synthmorph_tf as reference  # isort: skip, sets TensorFlow up
    import numpy as np
    import tensorflow as tf
    import voxelmorph as vxm

    reference.set_threads(batch)
    keras = tf.keras
    image_1, image_2 = (keras.Input((*SHAPE, 1)) for _ in range(2))
    map_1, map_2 = (keras.Input((*SHAPE, LABELS)) for _ in range(2))
    model = vxm.networks.VxmDense(
        inshape=SHAPE,
        nb_unet_features=NETWORKS[network],
        int_steps=5,
        int_resolution=2,
        svf_resolution=2,
        input_model=keras.Model([image_1, image_2, map_1, map_2], (image_1, image_2)),
    )
    flow = model.references.pos_flow
    pred = vxm.layers.SpatialTransformer(interp_method="linear", name="pred")([map_1, flow])
    model.add_loss(vxm.losses.Dice().loss(map_2, pred) + tf.ones(batch))
    model.add_loss(vxm.losses.Grad("l2", loss_mult=1.0).loss(None, flow))
    model.compile(optimizer=keras.optimizers.Adam(learning_rate=1e-4))
    random = np.random.default_rng(1)
    inputs = [
        tf.constant(random.random((batch, *SHAPE, channels)), tf.float32)
        for channels in (1, 1, LABELS, LABELS)
    ]
    seconds = []
    for _ in range(steps + WARM_UP):
        start = time.perf_counter()
        model.train_on_batch(inputs)
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds[WARM_UP:], "memory": memory}))


def measured(framework: str, network: str, processes: int, steps: int) -> dict:
    """One of the two, in processes of its own."""
    words = [__file__, "--measure", framework, network, str(processes), str(steps)]
    if framework == "torch":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        words = [*torchrun, str(processes), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {done.stderr.strip()[-400:]}")
    *said, last = done.stdout.strip().splitlines()
    result: dict = json.loads(last)
    if framework == "torch":
        (memory,) = re.findall(r"([\d.]+) GB in all", "\n".join(said))
        result["memory"] = float(memory) * 1e9
    return result


def case(network: str, processes: int, rounds: int, steps: int) -> list[str]:
    """Lines of the table: both frameworks in turn, `rounds` times."""
    frameworks = ("torch", "tensorflow")
    runs: dict[str, list[dict]] = {name: [] for name in frameworks}
    for _ in range(rounds):
        for framework in frameworks:
            runs[framework].append(measured(framework, network, processes, steps))
    times = {f: [statistics.median(run["seconds"]) for run in runs[f]] for f in frameworks}
    lines = []
    for framework in frameworks:
        pairs = zip(times[framework], times["tensorflow"], strict=True)
        ratio = statistics.median(own / reference for own, reference in pairs)
        seconds = statistics.median(times[framework])
        waits = [f"{run['waited']:.1%}" for run in runs[framework] if "waited" in run]
        cells = (
            network,
            f"{processes} x 1" if framework == "torch" else f"1 x {processes}",
            processes,
            framework,
            f"{seconds:.3f}",
            f"{ratio:.2f}",
            f"{processes / seconds:.1f}",
            max(waits, default=""),
            f"{max(run['memory'] for run in runs[framework]) / 1e9:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each framework")
    parser.add_argument("--steps", type=int, default=8, help="of a run, after a few not counted")
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        framework, network, processes, steps = arguments.measure
        if framework == "torch":
            return measure_torch(network, int(steps))
        return measure_tensorflow(network, int(processes), int(steps))
    cpu, today = processor(), datetime.date.today().isoformat()
    lines = [
        f"# Training steps, torch against TensorFlow, {cpu}, {today}",
        "",
        f"`make bench-train` on {cpu}, {len(os.sched_getaffinity(0))} cores. Pairs of "
        f"{' x '.join(map(str, SHAPE))} voxels and {LABELS} labels, loss of SynthMorph's training "
        f"script. {arguments.rounds} runs of {arguments.steps} steps of each, in turn. Seconds: "
        "median of a step; ratio: median of paired runs against TensorFlow (below 1: faster); "
        "waited: share of the time in which the slowest process waits for its pairs; memory: peak "
        "of all processes together. torch draws phantoms meanwhile, TensorFlow draws nothing.",
        "",
        "| network | processes x threads | pairs per step | framework | seconds | ratio | pairs/s "
        "| waited | memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for network, processes in CASES:
        lines += case(network, processes, arguments.rounds, arguments.steps)
    write_note(lines, arguments.output or note("training", cpu))


if __name__ == "__main__":
    run_cli(main)
