"""Time and memory of the native engine against plain torch on a GPU, and samples an hour.

    make bench DEVICE=cuda             demo size, three widths
    make bench DEVICE=cuda FULL=1      and registrations at full size, 256 features

Engines take turns in one process; torch computes in float32 (TF32 off). The first run of each,
which compiles the kernels, is not counted. Prints a Markdown table and writes it to
notes/benchmarks/.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.harness import Report, note
from benchmarks.native import DEMO, FULL, MODELS
from morphbits import config
from morphbits.engines.native import random_rounding
from morphbits.errors import UserError, run_cli
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture

ENGINES = ("torch", "native nearest", "native random", "native nearness")


def case(
    report: Report,
    model: str,
    shape: tuple[int, int, int],
    engines: tuple[str, ...],
    rounds: int,
) -> None:
    """Rows of the table for one case: every engine in turn, `rounds` times after one."""
    network = init_model(Architecture(*MODELS[model]), seed=1).cuda()
    images = [torch.rand(1, 1, *shape, device="cuda") for _ in range(2)]
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    memory, operations = dict.fromkeys(engines, 0.0), 0
    for i in range(rounds + 1):
        for engine in engines:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.no_grad():
                if engine == "torch":
                    network(*images)
                else:
                    with random_rounding(engine.split()[1], seed=i) as stats:
                        network(*images)
                    operations = stats.operations
            torch.cuda.synchronize()
            if i:
                seconds[engine].append(time.perf_counter() - start)
            memory[engine] = torch.cuda.max_memory_allocated() / 2**30
    for engine in engines:
        median = statistics.median(seconds[engine])
        pairs = zip(seconds[engine], seconds["torch"], strict=True)
        rate = "" if engine == "torch" else f"{operations / median / 1e9:.0f}"
        report.row(
            *("×".join(map(str, shape)), model, engine, f"{median:.3f}"),
            *(f"{statistics.median(a / b for a, b in pairs):.2f}", f"{memory[engine]:.1f}"),
            *(rate, f"{3600 / median:.0f}"),
        )


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--rounds", type=config.whole(1), default=3, help="turns of each engine")
    parser.add_argument("--full", action="store_true", help="also full size with 256 features")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("no CUDA device was found: 'make bench' measures the CPU")
    torch.backends.cudnn.allow_tf32 = False
    gpu = torch.cuda.get_device_name()
    report = Report(
        note("native", gpu),
        f"Native engine against plain torch, {gpu}",
        f"make bench DEVICE=cuda{' FULL=1' if arguments.full else ''}",
        "torch",
    )
    report.add(
        "Whole registrations, weights drawn at random. Seconds: median; ratio: median of paired "
        "runs; memory: torch's own peak; G/s: 10⁹ rounded operations a second; samples an hour: "
        "of the network alone."
    )
    report.table(
        *("grid", "model", "engine", "seconds", "ratio", "memory, GB", "G/s", "samples an hour")
    )
    for model in ("demo", "32 features", "64 features"):
        case(report, model, DEMO, ENGINES, arguments.rounds)
    if arguments.full:
        case(report, "256 features", FULL, ("torch", "native random"), arguments.rounds)


if __name__ == "__main__":
    run_cli(main)
