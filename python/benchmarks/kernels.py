"""What a core can do in registers, what the convolution kernels make of it, and what operators
cost beside torch's.

    make bench-kernels                                                        five minutes
    PYTHONPATH=python python -m benchmarks.kernels --only operators

The limit is the instruction mix of one operation alone (limit.c). Rates are per second of
the thread's own processor time, the best of short runs, so that a loaded machine can be measured
on.
Operators are timed in turn with torch's own on a million elements: the least of each. On ten
numbers nearly all of the time is that of calling the operator (overhead): there a mode that only
calls the operator is timed, too.
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
from torch.utils._python_dispatch import TorchDispatchMode

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
    """The tables of the convolution kernels."""
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
    report.table("variant", "channels", "grid", "nearness", "of its mix")
    for variant in [v for v in available_variants() if f"{v} nearness" in found]:
        for layer in LAYERS:
            value = rate(variant, "nearness", layer)
            cells = [variant, f"{layer[0]} → {layer[1]}", "×".join(map(str, layer[2]))]
            report.row(*cells, f"{value:.1f}", f"{value / found[f'{variant} nearness']:.2f}")


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


class Passing(TorchDispatchMode):
    """Calls each operator, and counts these calls."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return function(*args, **(kwargs or {}))


def small() -> dict[str, Callable[[], object]]:
    """By name: a call of one operator on ten numbers; small products and convolutions."""
    x, y, ones = torch.rand(10) + 0.1, torch.rand(10), torch.ones(10)
    square, matrix = torch.rand(3, 3), torch.rand(10, 10)
    image, filters = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    volume, cube = torch.randn(1, 1, 4, 4, 4), torch.randn(1, 1, 3, 3, 3)
    row, plane = x[None], torch.rand(1, 2, 5)
    mean, variance = torch.zeros(2), torch.ones(2)
    where = x > 0.5
    return {
        "add": lambda: x + y,
        "add 1": lambda: x + 1,
        "mul_": lambda: y.mul_(ones),
        "sqrt": lambda: x.sqrt(),
        "exp": lambda: x.exp(),
        "sigmoid": lambda: x.sigmoid(),
        "gelu": lambda: F.gelu(x),
        "relu": lambda: x.relu(),
        "leaky_relu": lambda: F.leaky_relu(x),
        "where": lambda: torch.where(where, x, y),
        "softmax": lambda: x.softmax(0),
        "sum": lambda: x.sum(),
        "mean": lambda: x.mean(),
        "layer_norm": lambda: F.layer_norm(row, (10,), ones, ones),
        "batch_norm": lambda: F.batch_norm(plane, mean, variance, variance, mean),
        "mm": lambda: square @ square,
        "linear": lambda: F.linear(row, matrix, ones),
        "conv2d": lambda: F.conv2d(image, filters, padding=1),
        "conv3d": lambda: F.conv3d(volume, cube, padding=1),
    }


def networks() -> dict[str, Callable[[], object]]:
    """By name: a pass of a network on an input of one, or a step."""
    nn = torch.nn
    mnist = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10), nn.LogSoftmax(1)),
    )
    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True).eval()
    block = nn.TransformerEncoderLayer(
        768, 12, 3072, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(8)
    lstm, cell = nn.LSTM(32, 32), nn.LSTMCell(32, 32)
    digit, tokens, few = torch.randn(1, 1, 28, 28), torch.randn(1, 8, 768), torch.randn(1, 8, 64)
    steps, one = torch.randn(50, 1, 32), torch.randn(1, 32)
    weights = [nn.Parameter(torch.randn(10)) for _ in range(10)]
    for weight in weights:
        weight.grad = torch.randn(10)
    adam = torch.optim.Adam(weights, foreach=True)
    return {
        "MNIST, one image": lambda: mnist(digit),
        "GPT-2's block, 8 tokens": lambda: block(tokens, src_mask=mask),
        "transformer encoder layer of 64, 8 tokens": lambda: encoder(few),
        "LSTM cell of 32": lambda: cell(one),
        "LSTM of 32, 50 steps": lambda: lstm(steps),
        "Adam (foreach), 10 tensors of 10": adam.step,
    }


def overhead(report: Report) -> None:
    """Both tables of what calling an operator costs: microseconds of processor time."""
    report.table("operator", "torch, µs", "empty mode", "random", "goal: 2·empty mode + 15")
    for name, call in small().items():
        plain, empty, ours = turns(call, nullcontext, Passing, random_rounding)
        report.row(name, *microseconds(plain, empty, ours, 2 * empty + 15e-6))
    report.table("network", "operators", "torch, µs", "random", "ratio")
    for name, call in networks().items():
        plain, ours = turns(call, nullcontext, random_rounding)
        with random_rounding(seed=1), Passing() as operators:
            call()
        report.row(name, operators.calls, *microseconds(plain, ours), f"{ours / plain:.1f}")


def microseconds(*seconds: float) -> list[str]:
    """As cells of a table: microseconds, three digits."""
    return [f"{1e6 * s:.3g}" for s in seconds]


def turns(
    call: Callable[[], object], *regions: Callable[[], AbstractContextManager[object]]
) -> list[float]:
    """Seconds of a call in each region, without gradients: the least of alternating runs."""
    least = [float("inf")] * len(regions)
    begin = time.thread_time()
    while time.thread_time() < begin + SECONDS:
        for i, region in enumerate(regions):
            with torch.no_grad(), region():
                call()
                start, calls = time.thread_time(), 0
                while calls < 100 and time.thread_time() < start + 0.02:
                    call()
                    calls += 1
                least[i] = min(least[i], (time.thread_time() - start) / calls)
    return least


def main() -> None:
    parser = config.parser(__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("kernels", "operators", "overhead"), help="one part")
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
        "overhead": (
            "What calling an operator costs",
            "float32, one thread. Operators: on ten numbers (mm: 3×3, linear: 10→10, conv2d: 2→3 "
            "channels of 6×6, conv3d: one of 4×4×4). Networks: one image or sequence. "
            "Microseconds of processor time, the shortest of alternating runs. Empty mode: a "
            "TorchDispatchMode that calls the operator and does nothing else.",
            overhead,
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
