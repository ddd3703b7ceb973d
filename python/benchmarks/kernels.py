"""What a core can do in registers, what the convolution kernels make of it, and what operators
cost beside torch's.

    make bench-kernels                                                        three minutes
    PYTHONPATH=python python -m benchmarks.kernels --only operators

The limit is the instruction mix of one operation alone (limit.c). Rates are per second of
the thread's own processor time, the best of short runs, so that a loaded machine can be measured
on.
Operators are timed in turn with torch's own on a million elements: the least of each.
Prints a Markdown table of each and writes it to notes/benchmarks/.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.harness import Report, note, processor
from morphbits import config
from morphbits.engines.native import Statistics, random_rounding
from morphbits.engines.native.kernels.library import Rounding, available_variants, convolution
from morphbits.engines.native.orders.accumulation import terms
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
        source = str(Path(__file__).with_name("limit.c"))
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


def layers(report: Report) -> None:
    """Both tables of the convolution kernels."""
    found = limits()
    report.table("in registers", "G/s")
    for name, value in found.items():
        report.row(name, f"{value:.1f}")
    report.table("variant", "channels", "grid", "nearest", "of fma", "random", "of its mix")
    for variant in [v for v in available_variants() if f"{v} random" in found]:
        for layer in LAYERS:
            cells = [variant, f"{layer[0]} → {layer[1]}", "×".join(map(str, layer[2]))]
            for mode, mix in (("nearest", "fma"), ("random", "random")):
                value = rate(variant, mode, layer)
                cells += [f"{value:.1f}", f"{value / found[f'{variant} {mix}']:.2f}"]
            report.row(*cells)


def operators() -> dict[str, tuple[str, Callable[[], object]]]:
    """By name: the kind of the bound, and a call on a million elements."""
    x, rows, index = torch.randn(1000, 1000), torch.ones(1000), torch.arange(1000)
    positive = torch.rand(1000, 1000) + 0.1
    volume, kernel = torch.randn(1, 16, 40, 40, 40), torch.randn(16, 16, 3, 3, 3)
    batch, half = x.view(10, 100, 1000), torch.randn(1000, 256)
    weight = torch.nn.Parameter(x.clone())
    weight.grad = x
    adam = torch.optim.Adam([weight])
    return {
        "mul": ("elementwise", lambda: x * x),
        "div": ("elementwise", lambda: x / x),
        "sqrt": ("elementwise", lambda: positive.sqrt()),
        "mul by a column": ("elementwise", lambda: x * x[:, :1]),
        "Adam, a step": ("elementwise", adam.step),
        "exp": ("function", lambda: x.exp()),
        "tanh": ("function", lambda: x.tanh()),
        "pow 1.7": ("function", lambda: positive.pow(1.7)),
        "sigmoid": ("function", lambda: x.sigmoid()),
        "gelu": ("function", lambda: F.gelu(x)),
        "softmax": ("function", lambda: x.softmax(1)),
        "sum(0)": ("chains", lambda: x.sum(0)),
        "sum(1)": ("chains, transposed", lambda: x.sum(1)),
        "cumsum(1)": ("chains, transposed", lambda: x.cumsum(1)),
        "layer_norm": ("several passes", lambda: F.layer_norm(x, (1000,), rows, rows)),
        "group_norm": ("several passes", lambda: F.group_norm(batch, 10)),
        "batch_norm": ("several passes", lambda: F.batch_norm(batch, None, None, training=True)),
        "index_add": ("copies", lambda: torch.zeros(1000, 1000).index_add_(0, index, x)),
        "avg_pool3d": ("chains", lambda: F.avg_pool3d(volume, 2)),
        "mm": ("products", lambda: x[:, :256] @ half.t()),
        "conv3d": ("products", lambda: F.conv3d(volume, kernel, padding=1)),
    }


def costs(report: Report) -> None:
    """The table of operators: milliseconds of processor time, torch and mode random."""
    report.table(
        *("operator", "kind", "torch, ms", "random, ms", "ratio", "operations, 10⁶"),
        "ns an operation",
    )
    for name, (kind, call) in operators().items():
        least, operations = [float("inf")] * 2, 0
        begin = time.thread_time()
        while time.thread_time() < begin + SECONDS:
            turns: list[AbstractContextManager[Statistics | None]]
            turns = [nullcontext(), random_rounding(seed=1)]
            for i, region in enumerate(turns):
                with torch.no_grad(), region as stats:
                    start = time.thread_time()
                    call()
                    least[i] = min(least[i], time.thread_time() - start)
                operations = stats.operations if stats is not None else operations
        plain, ours = least
        cells = [f"{1e3 * plain:.3g}", f"{1e3 * ours:.3g}", f"{ours / plain:.1f}"]
        cells += [f"{operations / 1e6:.3g}", f"{1e9 * ours / operations:.2g}"]
        report.row(name, kind, *cells)


def main() -> None:
    parser = config.parser(__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("kernels", "operators"), help="one of the two parts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    parts = {
        "kernels": (
            "Convolution kernels against the instruction limit",
            "One thread, 10⁹ operations per second of its processor time, the best of short runs. "
            "A product outside the image counts as one.",
            layers,
        ),
        "operators": (
            "Operators compared with torch's",
            "float32, one thread, a million elements. Milliseconds: the shortest of alternating "
            "runs with torch's operator (oneDNN on), in processor time.",
            costs,
        ),
    }
    for name in [arguments.only] if arguments.only else parts:
        title, how, measure = parts[name]
        report = Report(
            note(name, processor()), f"{title}, {processor()}", "make bench-kernels", "torch"
        )
        report.add(how)
        measure(report)


if __name__ == "__main__":
    run_cli(main)
