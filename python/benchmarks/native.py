"""Time and memory of the native engine against plain torch: one model, input and threads, in turn.

    make bench             demo size, three widths, one and two threads
    make bench FULL=1      and one registration at full size (needs 20 GB)

Every measurement is a process of its own (its peak memory is the operating system's figure);
engines take turns, and the ratio is the median of the ratios of neighbouring runs. torch runs at
its best setting: the faster of conv3d as it is and oneDNN's convolution, which conv3d leaves aside
for small maps. Prints a Markdown table and writes it to notes/benchmarks/.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from unittest import mock

from benchmarks import kernels
from benchmarks.harness import Report, measured, note, processor
from morphbits import config, machine
from morphbits.errors import run_cli

DEMO = (80, 96, 80)
FULL = (160, 192, 224)
MODELS = {
    "demo": ((16, 32, 32, 32), (32, 32, 32, 32, 16, 16)),
    "32 features": ((32,) * 4, (32,) * 6),
    "64 features": ((64,) * 4, (64,) * 6),
    "256 features": ((256,) * 4, (256,) * 6),
}
ENGINES = ("torch", "torch oneDNN", "native nearest", "native random", "native nearness")


def measure(
    engine: str, model: str, shape: tuple[int, int, int], threads: int, repeats: int
) -> dict:
    """Seconds of each repeat after one that is not counted; peak memory of the process, bytes."""
    import torch

    from morphbits.engines.native import random_rounding
    from morphbits.models.synthmorph_torch import init_model
    from morphbits.models.weights import Architecture

    torch.set_num_threads(threads)
    network = init_model(Architecture(*MODELS[model]), seed=1)
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(1, 1, *shape, generator=generator) for _ in range(2)]
    seconds, operations = [], 0
    with torch.no_grad():
        for i in range(repeats + (repeats > 1)):
            start = time.perf_counter()
            if engine == "torch":
                network(*images)
            elif engine == "torch oneDNN":
                with mock.patch("torch.nn.functional.conv3d", _onednn):
                    network(*images)
            else:
                with random_rounding(engine.split()[1], seed=i, threads=threads) as stats:
                    network(*images)
                operations = stats.operations
            if i or repeats == 1:
                seconds.append(time.perf_counter() - start)
    memory = machine.peak_memory()
    return {"seconds": seconds, "memory": memory, "operations": operations}


def _onednn(x, weight, bias, padding):  # type: ignore[no-untyped-def]
    import torch

    return torch.mkldnn_convolution(x, weight, bias, (padding,) * 3, (1,) * 3, (1,) * 3, 1)


def case(
    report: Report,
    model: str,
    shape: tuple[int, int, int],
    threads: int,
    rounds: int,
    limits: dict[str, float],
    alone: dict[tuple, float],
) -> None:
    """Rows of the table for one case: every engine in turn, `rounds` times.

    limits: G operations a second of a thread, by mode; alone: seconds with one thread, by case,
    which a case of one thread enters here.
    """
    engines: tuple[str, ...] = ENGINES
    if rounds == 1:
        engines = ("torch", "torch oneDNN", "native random")
    found: dict[str, list[dict]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            repeats = 3 if rounds > 1 else 1
            found[engine].append(measured(measure, engine, model, shape, threads, repeats))
    times = {e: [statistics.median(run["seconds"]) for run in runs] for e, runs in found.items()}
    memory = {e: max(run["memory"] for run in runs) for e, runs in found.items()}
    best = min(("torch", "torch oneDNN"), key=lambda e: statistics.median(times[e]))
    for engine in engines:
        ratio = statistics.median(a / b for a, b in zip(times[engine], times[best], strict=True))
        seconds = statistics.median(times[engine])
        rate = found[engine][0]["operations"] / seconds / 1e9
        limit = limits.get(engine.split()[-1], 0) if rate else 0
        if threads == 1:
            alone[model, shape, engine] = seconds
        one = alone.get((model, shape, engine))
        report.row(
            "×".join(map(str, shape)),
            model,
            threads,
            engine,
            f"{seconds:.2f}",
            f"{ratio:.2f}",
            f"{memory[engine] / 2**30:.2f}",
            f"{memory[engine] / memory[best]:.2f}",
            f"{rate:.1f}" if rate else "",
            f"{rate / limit / threads:.2f}" if limit else "",
            f"{one / seconds / threads:.2f}" if one and threads > 1 else "",
        )


def instruction_limits() -> dict[str, float]:
    """G operations a second that one thread does in registers, in the modes nearest and random;
    nothing where they are not known for the kernels' instruction set."""
    from morphbits.engines.native.kernels.library import default_variant

    found, variant = kernels.limits(), default_variant().removesuffix("_ifma")  # in these modes
    mixes = {"nearest": f"{variant} fma", "random": f"{variant} random"}
    return {mode: found[mix] for mode, mix in mixes.items() if mix in found}


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--threads", type=config.whole(1, 1024), nargs="+", default=None, help="thread counts"
    )
    parser.add_argument("--rounds", type=config.whole(1), default=3, help="turns of each engine")
    parser.add_argument("--full", action="store_true", help="also full size with 256 features")
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    limits = instruction_limits()
    report = Report(
        arguments.output or note("native", processor()),
        f"Native engine against plain torch, {processor()}",
        f"make bench{' FULL=1' if arguments.full else ''}",
        "torch",
    )
    report.add(
        "Whole registrations, weights drawn at random. Seconds: median; ratio: median of paired "
        "runs against torch at its best setting; G/s: 10⁹ rounded operations a second; of the "
        "limit: of what as many threads do in registers, measured here ("
        + ", ".join(f"{mode} {value:.1f} G/s" for mode, value in limits.items())
        + "); scaling: speed over that of one thread, divided by the threads."
    )
    report.table(
        *("grid", "model", "threads", "engine", "seconds", "ratio", "memory, GB", "ratio"),
        *("G/s", "of the limit", "scaling"),
    )
    alone: dict[tuple, float] = {}
    cores = machine.cores()
    for threads in arguments.threads or sorted({1, min(2, cores)}):
        for model in ("demo", "32 features", "64 features"):
            case(report, model, DEMO, threads, arguments.rounds, limits, alone)
    if arguments.full:
        case(report, "256 features", FULL, cores, 1, limits, alone)


if __name__ == "__main__":
    run_cli(main)
