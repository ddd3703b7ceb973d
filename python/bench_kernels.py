"""What a core can do in registers, and what the convolution kernels make of it.

    python python/bench_kernels.py            two minutes

The limit is the instruction mix of one operation alone (bench_limit.c). Rates are per second of
the thread's own processor time, the best of short runs, so that a loaded machine can be measured
on.
Prints a Markdown table and writes it to notes/benchmarks/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from bench import note, processor, write_note
from morphbits.engines.native.accumulation import terms
from morphbits.engines.native.library import Rounding, available_variants, convolution
from morphbits.errors import UserError, run_cli

# channels in, channels out and grid of layers: first, encoder, decoder, flow, and of 256 features
LAYERS = (
    (2, 16, (20, 48, 80)),
    (16, 32, (10, 48, 40)),
    (32, 32, (20, 24, 20)),
    (64, 32, (10, 12, 10)),
    (32, 3, (20, 48, 40)),
    (2, 256, (4, 16, 224)),
    (256, 256, (2, 6, 14)),
    (512, 256, (1, 4, 112)),
)
SECONDS = 2.0  # of each measurement: the best of many short runs


def limits() -> dict[str, float]:
    """G operations a second of each instruction mix that this processor runs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UserError("no C compiler found; install one (Debian and Ubuntu: apt install gcc)")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/limit"
        source = str(Path(__file__).with_name("bench_limit.c"))
        subprocess.run([compiler, "-O2", source, "-o", program], check=True)
        return json.loads(subprocess.run([program], capture_output=True, check=True).stdout)


def rate(variant: str, mode: str, layer: tuple[int, int, tuple[int, int, int]]) -> float:
    """G products a second of one 3×3×3 convolution with padding on one thread."""
    channels_in, channels_out, size = layer
    x = torch.randn(1, channels_in, *size)
    w = torch.randn(channels_out, channels_in, 3, 3, 3) / 10
    bias, ones = torch.randn(channels_out), (1, 1, 1)
    order = terms("sequential", 27, channels_in)
    best, begin = float("inf"), time.thread_time()
    while (start := time.thread_time()) < begin + SECONDS:
        convolution(Rounding(mode, variant=variant), x, w, bias, ones, ones, ones, order)
        best = min(best, time.thread_time() - start)
    return 27 * channels_in * channels_out * size[0] * size[1] * size[2] / best / 1e9


def table() -> list[str]:
    """Lines of both tables."""
    found = limits()
    lines = ["| in registers | G/s |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in found.items()]
    lines += ["", "| variant | channels | grid | nearest | of fma | random | of its mix |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for variant in [v for v in available_variants() if f"{v} random" in found]:
        for layer in LAYERS:
            cells = [variant, f"{layer[0]} → {layer[1]}", "×".join(map(str, layer[2]))]
            for mode, mix in (("nearest", "fma"), ("random", "random")):
                value = rate(variant, mode, layer)
                cells += [f"{value:.1f}", f"{value / found[f'{variant} {mix}']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    cpu, today = processor(), datetime.date.today().isoformat()
    lines = [
        f"# Convolution kernels against the instruction limit, {cpu}, {today}",
        "",
        f"`make bench-kernels` on {cpu}: one thread, 10⁹ operations per second of its processor "
        "time, the best of short runs. A product outside the image counts as one.",
        "",
        *table(),
    ]
    print("\n".join(lines))
    write_note(lines, arguments.output or note("kernels", cpu))


if __name__ == "__main__":
    run_cli(main)
