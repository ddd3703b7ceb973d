"""Time and memory of SynthMorph's image synthesis, alone and beside a trainer.

    make bench-synthesis

First one image: neurite's model as it comes, run eagerly (as a loop that seeds before each call
must), and the compiled function of `generator_tf`. Then pairs from the synthesis process to a
trainer that computes nothing. Then trainings as users start them, with as many label maps as there
are by default: seconds until the first step, and the share of the time for which the trainer waits
from that step on. Each measurement is a process of its own. Prints Markdown and writes it to
notes/benchmarks/.
"""

from __future__ import annotations

import csv
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, measured, note, processor
from morphbits import config
from morphbits.errors import run_cli
from morphbits.synthesis.settings import Ranks, SourceConfig
from morphbits.synthesis.sources import open_source

MAPS = 3  # where nothing depends on their number
# name, widths, voxels, processes, steps: all of the first epoch
TRAININGS: list[tuple[str, tuple[str, str], str, int, int]] = [
    ("demo (16 32 32 32)", ("16 32 32 32", "32 32 32 32 16 16"), "4mm", 1, 100),
    ("demo (16 32 32 32)", ("16 32 32 32", "32 32 32 32 16 16"), "4mm", 2, 100),
    ("published (64)", ("64 64 64 64", "64 64 64 64 64 64"), "2mm", 1, 6),
]


def images(kind: str, shape: list[int]) -> dict[str, float]:
    """Seconds per image, one thread; seconds until the first."""
    import numpy as np

    from morphbits.synthesis import generator_tf
    from morphbits.synthesis.generator import GeneratorConfig
    from morphbits.synthesis.labels import SHAPES, LabelMaps, draw_shapes

    generator_tf.set_threads(1)
    labels = draw_shapes(1, 0, tuple(shape), 2.0)
    values = tuple(range(SHAPES))
    maps = LabelMaps("bench", 1, tuple(shape), values, values, lambda number: labels)
    maps[0]
    start = time.perf_counter()
    if kind == "neurite, eager":
        tf = generator_tf.tf
        model = generator_tf.ne.models.labels_to_image(shape, range(SHAPES))
        volume = tf.constant(labels[None, ..., None].astype(np.float32))

        def draw(number: int) -> object:
            tf.random.set_seed(number)
            return [np.asarray(output) for output in model(volume)]
    else:
        generator = generator_tf.Generator(GeneratorConfig(), maps)

        def draw(number: int) -> object:
            return generator.image(0, (), (number, 0))

    draw(0)
    first = time.perf_counter() - start
    seconds = []
    for number in range(1, 6):
        start = time.perf_counter()
        draw(number)
        seconds.append(time.perf_counter() - start)
    return {"first": first, "seconds": statistics.median(seconds)}


def pairs(size: str) -> dict[str, float]:
    """Seconds per pair, and for which a trainer waits that computes longer than that; memory."""
    config = SourceConfig(source="synthmorph", size=size, maps=MAPS)
    with open_source(config, Ranks(), 1) as source:
        source.pair(0, 0, 0)
        start = time.perf_counter()
        for step in range(10, 20):
            source.pair(0, step, 0)
        seconds = (time.perf_counter() - start) / 10
        waits = []
        for step in range(20, 25):
            time.sleep(3 * seconds)
            start = time.perf_counter()
            source.pair(0, step, 0)
            waits.append(time.perf_counter() - start)
        status = Path(f"/proc/{source._processes[0]._process.pid}/status").read_text()  # type: ignore[attr-defined]
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        shared = source.layout.size * len(source._slots)  # type: ignore[attr-defined]
    return {
        "seconds": seconds,
        "waited": statistics.median(waits),
        "memory": int(peak[1]) * 1024,
        "shared": shared,
    }


def training(widths: tuple[str, str], size: str, processes: int, steps: int) -> dict[str, float]:
    """Seconds per step of a training on shapes, and for how many of them it waits, from its first
    step on; before that, seconds in which the source of its pairs is opened."""
    with tempfile.TemporaryDirectory() as folder:
        one_thread = {"OMP_NUM_THREADS": "1"}
        opened = measured(
            trainer, widths, size, steps, folder, ranks=processes, environment=one_thread
        )
        with Path(folder, "times.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    seconds, waited = (sum(float(row[name]) for row in rows) for name in ("seconds", "waited"))
    return {"opened": opened, "seconds": seconds / steps, "waited": waited / steps}


def trainer(widths: list[str], size: str, steps: int, folder: str) -> float | None:
    """One rank of the training; the first returns for how many seconds its source opened."""
    from morphbits.synthesis import sources
    from morphbits.training import TrainConfig, train
    from morphbits.training.group import processes

    enc, dec = widths
    config = TrainConfig(
        source="synthmorph", enc=enc, dec=dec, size=size, epochs=1, steps=steps, threads=1
    )
    opened, seconds = sources.open_source, 0.0

    @contextmanager
    def timed(*arguments: Any) -> Iterator[Any]:
        nonlocal seconds
        start = time.perf_counter()
        with opened(*arguments) as source:
            seconds = time.perf_counter() - start
            yield source

    sources.open_source = timed  # type: ignore[assignment]
    with processes() as ranks:
        train(config, Path(folder), ranks=ranks)
        return seconds if ranks.rank == 0 else None


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    report = Report(
        arguments.output or note("synthesis", processor()),
        f"SynthMorph's synthesis, {processor()}",
        "make bench-synthesis",
        *("torch", "tensorflow-cpu", "neurite"),
    )
    report.add(
        f"Shapes of 26 labels, {SourceConfig().maps} maps of them in a training; synthesis and "
        "each trainer on one thread. Seconds: medians of images, means of pairs and of all steps "
        "of the first epoch (of its first six at 2 mm)."
    )
    report.table(
        *("training on shapes", "voxels", "processes"),
        *("TensorFlow and maps before the first step, s", "seconds per step", "waits, s", "share"),
    )
    for name, widths, size, processes, steps in TRAININGS:
        found = training(widths, size, processes, steps)
        share = f"{100 * found['waited'] / found['seconds']:.1f} %"
        step, wait = f"{found['seconds']:.2f}", f"{found['waited']:.3f}"
        report.row(name, size, processes, f"{found['opened']:.0f}", step, wait, share)
    report.table(
        *("voxels", "seconds per pair", "trainer waits for a pair that is ready, s"),
        *("memory of the synthesis process, GB", "shared memory per trainer, GB"),
    )
    for size in ("4mm", "2mm"):
        found = measured(pairs, size)
        cells = (size, f"{found['seconds']:.2f}", f"{found['waited']:.3f}")
        report.row(*cells, f"{found['memory'] / 1e9:.2f}", f"{found['shared'] / 1e9:.3f}")
    report.table("grid", "one image by", "seconds", "until the first")
    for shape in ((64, 64, 64), (80, 96, 80)):
        for kind in ("neurite, eager", "compiled, keyed (here)"):
            found = measured(images, kind, shape)
            cells = ("×".join(map(str, shape)), kind, f"{found['seconds']:.2f}")
            report.row(*cells, f"{found['first']:.1f}")


if __name__ == "__main__":
    run_cli(main)
