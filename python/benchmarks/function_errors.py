"""The vector functions of float32 compared with the C library's, on all 2^32 arguments.

    make function-errors          about two CPU minutes a function; can be stopped and resumed

For each function: the largest difference of the float64 values that results are rounded from, in
units of 2^-52 of the value, and for how many arguments the float32 result differs, rounded to
nearest and upward. The C library's values are within one such unit of the exact ones; the tests
compare the worst cases with mpmath. With --against FILE they are compared with another build of
the kernels instead. Progress is kept in .cache/; the table goes into notes/benchmarks/ and says
how many arguments each function was compared on.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness import Report, note, processor
from morphbits import config
from morphbits.engines.native import kernel_version
from morphbits.engines.native.kernels import functions
from morphbits.engines.native.kernels.library import Rounding, available_variants, elementwise
from morphbits.errors import run_cli
from morphbits.files import write_json

PART = 2**22  # arguments at a time
LEAST, GREATEST = 2.0**-178, 2.0**200  # beyond them a value rounds as its limit does


def compare(
    name: str, start: int, threads: int, kernel: Callable[..., int] | None
) -> dict[str, float]:
    """PART arguments from bit pattern `start` on: largest difference, and counts. kernel: of
    another build."""
    patterns = np.arange(start, start + PART, dtype=np.uint64).astype(np.uint32)
    x = torch.from_numpy(patterns.view(np.float32))
    fast, naive = (
        Rounding("nearest", variant=v, threads=threads)
        for v in (available_variants()[-1], "naive")
    )
    ours = functions.wide(fast, name, x)
    other = functions.wide(fast if kernel else naive, name, x, kernel=kernel)
    differ = ours.view(torch.int64) != other.view(torch.int64)
    differ &= ~(ours.isnan() & other.isnan())
    ours, other = ours[differ], other[differ]
    alike = (ours.abs() < LEAST) & (other.abs() < LEAST)
    alike |= (ours.abs() > GREATEST) & (other.abs() > GREATEST)
    alike |= ours == other  # zeros
    apart = torch.where(alike, 0.0, (ours - other).abs() / other.abs() * 2.0**52)
    found: dict[str, float] = {"arguments": PART, "apart": float(apart.max()) if len(apart) else 0}
    for mode in ("nearest", "upward"):
        one, two = (elementwise(Rounding(mode), "narrow", y) for y in (ours, other))
        found[mode] = int(((one != two) & ~(one.isnan() & two.isnan())).sum())
    return found


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--threads", type=config.whole(1, 1024), default=torch.get_num_threads())
    parser.add_argument(
        "--every", type=config.whole(1), default=1, help="compare one part of so many"
    )
    parser.add_argument("--against", type=Path, help="another build of the kernels, a .so file")
    parser.add_argument("--functions", nargs="+", choices=functions.CORES, default=functions.CORES)
    arguments = parser.parse_args()
    against, kernel = "", None
    if arguments.against:
        against = arguments.against.stem
        kernel = ctypes.CDLL(str(arguments.against.resolve())).morphbits_wide
    kept = Path(".cache", f"function-errors-{kernel_version()}{against}.json")
    kept.parent.mkdir(exist_ok=True)
    done: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    starts = range(0, 2**32, PART * arguments.every)
    for name in arguments.functions:
        for start in tqdm(starts, name, leave=False):
            if (key := f"{name} {start}") not in done:
                done[key] = compare(name, start, arguments.threads, kernel)
                if start // PART % 64 == 0:
                    write_json(kept, done)
        write_json(kept, done)
    other = f"those of {against}" if against else "the C library's"
    report = Report(
        note("functions-changed" if against else "functions", processor()),
        f"Vector functions compared with {other}, {processor()}",
        f"python -m benchmarks.function_errors{' --against FILE' if against else ''}",
        "torch",
    )
    report.table(
        *("function", "arguments (all: 4,294,967,296)", "largest difference, 2^-52"),
        *("float32 results that differ, to nearest", "upward"),
    )
    for name in functions.CORES:
        parts = [part for key, part in done.items() if key.split()[0] == name]
        if not parts:
            continue
        total, nearest, upward = (
            int(sum(part[key] for part in parts)) for key in ("arguments", "nearest", "upward")
        )
        apart = max(part["apart"] for part in parts)
        report.row(name, f"{total:,}", f"{apart:.2f}", f"{nearest:,}", f"{upward:,}")


if __name__ == "__main__":
    run_cli(main)
