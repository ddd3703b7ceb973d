"""Time and memory of the native engine against plain torch: one model, input and threads, in turn.

    python python/bench.py                    demo size, three widths, one and two threads
    python python/bench.py --full             and one registration at full size (needs 20 GB)

Every measurement is a process of its own (its peak memory is the operating system's figure);
engines take turns, and the ratio is the median of the ratios of neighbouring runs. torch runs at
its best setting: the faster of conv3d as it is and oneDNN's convolution, which conv3d leaves aside
for small maps. Mode nearness, exact and slow, is timed with the demo model alone. Prints a
Markdown table and writes it to notes/benchmarks/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from morphbits.errors import UserError, run_cli

NOTES = Path(__file__).parent.parent / "notes" / "benchmarks"
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
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "memory": memory, "operations": operations}


def _onednn(x, weight, bias, padding):  # type: ignore[no-untyped-def]
    import torch

    return torch.mkldnn_convolution(x, weight, bias, (padding,) * 3, (1,) * 3, (1,) * 3, 1)


def measured(*arguments: object) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = "killed (out of memory?)" if done.returncode == -9 else done.stderr.strip()[-300:]
        raise UserError(f"the measurement {arguments} failed: {reason}")
    return json.loads(done.stdout)


def row(
    model: str,
    shape: tuple[int, int, int],
    threads: int,
    rounds: int,
    limits: dict[str, float],
    alone: dict[tuple, float],
) -> list[str]:
    """Lines of the table for one case: every engine in turn, `rounds` times.

    limits: G operations a second of a thread, by mode; alone: seconds with one thread, by case,
    which a case of one thread enters here.
    """
    engines: tuple[str, ...] = ENGINES if model == "demo" else ENGINES[:-1]
    if rounds == 1:
        engines = ("torch", "torch oneDNN", "native random")
    found: dict[str, list[dict]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            found[engine].append(measured(engine, model, shape, threads, 3 if rounds > 1 else 1))
    times = {e: [statistics.median(run["seconds"]) for run in runs] for e, runs in found.items()}
    memory = {e: max(run["memory"] for run in runs) for e, runs in found.items()}
    best = min(("torch", "torch oneDNN"), key=lambda e: statistics.median(times[e]))
    lines = []
    for engine in engines:
        ratio = statistics.median(a / b for a, b in zip(times[engine], times[best], strict=True))
        seconds = statistics.median(times[engine])
        rate = found[engine][0]["operations"] / seconds / 1e9
        limit = limits.get(engine.split()[-1], 0) if rate else 0
        if threads == 1:
            alone[model, shape, engine] = seconds
        one = alone.get((model, shape, engine))
        cells = (
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
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
    return lines


def instruction_limits() -> dict[str, float]:
    """G operations a second that one thread does in registers, in the modes nearest and random;
    nothing where they are not known for the kernels' instruction set."""
    from bench_kernels import limits
    from morphbits.engines.native.library import default_variant

    found, variant = limits(), default_variant()
    mixes = {"nearest": f"{variant} fma", "random": f"{variant} random"}
    return {mode: found[mix] for mode, mix in mixes.items() if mix in found}


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (x.split(":")[1].strip() for x in lines if x.startswith("model name")), "processor"
    )


def note(kind: str, hardware: str) -> Path:
    """Where the figures of one kind, measured today on that hardware, are written."""
    words = "-".join("".join(c if c.isalnum() else " " for c in hardware.lower()).split())
    return NOTES / f"{kind}_{words}_{datetime.date.today().isoformat()}.md"


def write_note(lines: list[str], output: Path) -> None:
    """Write lines of Markdown, and say where."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nwritten to {output}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="thread counts")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    parser.add_argument("--full", action="store_true", help="also full size with 256 features")
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    cores = len(os.sched_getaffinity(0))
    today = datetime.date.today().isoformat()
    cpu = processor()
    limits = instruction_limits()
    lines = [
        f"# Native engine against plain torch, {cpu}, {today}",
        "",
        f"`make bench{' FULL=1' if arguments.full else ''}` on {cpu}, {cores} cores. Whole "
        "registrations, weights drawn at random. Seconds: median; ratio: median of paired runs "
        "against torch at its best setting; G/s: 10⁹ rounded operations a second; of the limit: "
        "of what as many threads do in registers, measured here ("
        + ", ".join(f"{mode} {value:.1f} G/s" for mode, value in limits.items())
        + "); scaling: speed over that of one thread, divided by the threads.",
        "",
        "| grid | model | threads | engine | seconds | ratio | memory, GB | ratio | G/s | "
        "of the limit | scaling |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    alone: dict[tuple, float] = {}
    for threads in arguments.threads or sorted({1, min(2, cores)}):
        for model in ("demo", "32 features", "64 features"):
            lines += row(model, DEMO, threads, arguments.rounds, limits, alone)
    if arguments.full:
        lines += row("256 features", FULL, cores, 1, limits, alone)
    write_note(lines, arguments.output or note("native", cpu))


if __name__ == "__main__":
    run_cli(main)
