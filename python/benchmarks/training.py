"""Time and memory of training steps: torch in 1, 2 and 4 processes, the native engine in one, and
voxelmorph's TensorFlow.

    make bench-train

A step of N processes of one thread, a pair each, is compared with a TensorFlow step of N pairs on
N threads: what voxelmorph 0.2's SynthMorph script compiles (VxmDense, Dice and gradient loss,
Adam), on images of the same shape that are ready in memory. The torch trainer draws its pairs
meanwhile; the share of time in which it waits for them is a column. Every measurement is a job of
its own; they take turns, and a ratio is the median over neighbouring runs. CPU seconds are of all
threads and processes, and change less with what else the machine does. Prints a Markdown table and
writes it to notes/benchmarks/.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, measured, note, processor
from morphbits import config, machine
from morphbits.errors import run_cli

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
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def torch_steps(network: str, steps: int, engine: str) -> dict | None:
    """One rank of the trainer's own loop; the first returns seconds of each step, CPU seconds of
    one, the share of waiting, and the memory of all ranks."""
    from morphbits.training import TrainConfig, train
    from morphbits.training.group import processes

    enc, dec = (" ".join(map(str, widths)) for widths in NETWORKS[network])
    config = TrainConfig(
        enc=enc, dec=dec, size="4mm", epochs=1, loss="dice", threads=1, engine=engine
    )
    with tempfile.TemporaryDirectory() as folder, processes() as ranks:
        cpu = []
        for length in (1, WARM_UP, WARM_UP + steps):  # the first loads what all need
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                train(replace(config, steps=length), Path(folder) / str(length), ranks=ranks)
            cpu.append(time.process_time() - start)
        if ranks.rank:
            return None
        with (Path(folder) / str(WARM_UP + steps) / "times.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[WARM_UP:]
    seconds, waited = ([float(row[name]) for row in rows] for name in ("seconds", "waited"))
    (memory,) = re.findall(r"([\d.]+) GB in all", printed.getvalue())
    return {
        "seconds": seconds,
        "cpu": ranks.size * (cpu[2] - cpu[1]) / steps,
        "waited": sum(waited) / sum(seconds),
        "memory": float(memory) * 1e9,
    }


def reference(network: tuple, batch: int, rate: float = 1e-4) -> Any:
    """voxelmorph's model of these widths, ready to train on `batch` pairs and threads: what its
    SynthMorph script compiles."""
    import morphbits.models.synthmorph_tf as framework  # isort: skip, sets TensorFlow up
    import tensorflow as tf
    import voxelmorph as vxm

    framework.set_threads(batch)
    keras = tf.keras
    image_1, image_2 = (keras.Input((*SHAPE, 1)) for _ in range(2))
    map_1, map_2 = (keras.Input((*SHAPE, LABELS)) for _ in range(2))
    model = vxm.networks.VxmDense(
        inshape=SHAPE,
        nb_unet_features=network,
        int_steps=5,
        int_resolution=2,
        svf_resolution=2,
        input_model=keras.Model([image_1, image_2, map_1, map_2], (image_1, image_2)),
    )
    flow = model.references.pos_flow
    pred = vxm.layers.SpatialTransformer(interp_method="linear", name="pred")([map_1, flow])
    model.add_loss(vxm.losses.Dice().loss(map_2, pred) + tf.ones(batch))
    model.add_loss(vxm.losses.Grad("l2", loss_mult=1.0).loss(None, flow))
    model.compile(optimizer=keras.optimizers.Adam(learning_rate=rate))
    return model


def tensorflow_steps(network: str, steps: int, batch: int) -> dict:
    """voxelmorph's training on `batch` pairs and threads: seconds of each step, CPU seconds of
    one, memory."""
    import numpy as np

    model = reference(NETWORKS[network], batch)
    random = np.random.default_rng(1)
    inputs = [
        random.random((batch, *SHAPE, channels), np.float32) for channels in (1, 1, LABELS, LABELS)
    ]
    seconds, cpu = [], 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            cpu = time.process_time()
        start = time.perf_counter()
        model.train_on_batch(inputs)
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / steps
    return {"seconds": seconds[WARM_UP:], "cpu": cpu, "memory": machine.peak_memory()}


def case(report: Report, network: str, processes: int, rounds: int, steps: int) -> None:
    """Rows of the table: all in turn, `rounds` times."""
    engines = {"torch": "ieee"} | ({"torch, native engine": "native"} if processes == 1 else {})
    runs: dict[str, list[dict]] = {name: [] for name in (*engines, "tensorflow")}
    for _ in range(rounds):
        for name, engine in engines.items():
            job = measured(
                torch_steps, network, steps, engine, ranks=processes, environment=ONE_THREAD
            )
            runs[name].append(job)
        runs["tensorflow"].append(
            measured(tensorflow_steps, network, steps, processes, environment=ONE_THREAD)
        )
    for name, found in runs.items():
        cells = []
        for seconds_of in (lambda run: statistics.median(run["seconds"]), lambda run: run["cpu"]):
            times, others = ([seconds_of(run) for run in of] for of in (found, runs["tensorflow"]))
            pairs = zip(times, others, strict=True)
            ratio = statistics.median(own / reference for own, reference in pairs)
            cells += [f"{statistics.median(times):.3f}", f"{ratio:.2f}"]
        waits = [f"{run['waited']:.1%}" for run in found if "waited" in run]
        report.row(
            network,
            f"1 x {processes}" if name == "tensorflow" else f"{processes} x 1",
            processes,
            name,
            *cells,
            max(waits, default=""),
            f"{max(run['memory'] for run in found) / 1e9:.1f}",
        )


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--rounds", type=config.whole(1), default=2, help="turns of each framework"
    )
    parser.add_argument(
        "--steps", type=config.whole(1), default=8, help="of a run, after a few not counted"
    )
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    report = Report(
        arguments.output or note("training", processor()),
        f"Training steps, torch against TensorFlow, {processor()}",
        "make bench-train",
        *("torch", "tensorflow-cpu", "voxelmorph"),
    )
    report.add(
        f"Pairs of {' x '.join(map(str, SHAPE))} voxels and {LABELS} labels, loss of SynthMorph's "
        f"training script. {arguments.rounds} runs of {arguments.steps} steps of each, in turn. "
        "Seconds: median of a step; CPU seconds: mean of a step, of all threads and processes; "
        "ratio: median of paired runs against TensorFlow (below 1: faster); waited: share of the "
        "time in which the slowest process waits for its pairs; "
        "memory: peak of all processes together. torch draws phantoms meanwhile, TensorFlow draws "
        "nothing."
    )
    report.table(
        *("network", "processes x threads", "pairs per step", "framework", "seconds", "ratio"),
        *("CPU seconds", "ratio", "waited", "memory, GB"),
    )
    for network, processes in CASES:
        case(report, network, processes, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    run_cli(main)
