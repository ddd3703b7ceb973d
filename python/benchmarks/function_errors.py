"""The vector functions of float32 compared with the C library's, on all 2^32 arguments.

    make function-errors          an hour or two; goes on where it was stopped

For each function: the largest difference of the float64 values that results are rounded from, in
units of 2^-52 of the value, and for how many arguments the float32 result differs, rounded to
nearest and upward. The C library's values are within one such unit of the exact ones; the tests
compare the worst cases with mpmath. Progress is kept in .cache/; the table goes into
notes/benchmarks/.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness import Report, note, processor
from morphbits import config
from morphbits.engines.native import kernel_version
from morphbits.engines.native.kernels import functions
from morphbits.engines.native.kernels.library import Rounding, available_variants
from morphbits.errors import run_cli
from morphbits.files import write_json

PART = 2**22  # arguments at a time
LEAST, GREATEST = 2.0**-178, 2.0**200  # beyond them a value rounds as its limit does


def compare(name: str, start: int, threads: int) -> dict[str, float]:
    """PART arguments from bit pattern `start` on: largest difference, and counts."""
    patterns = np.arange(start, start + PART, dtype=np.uint64).astype(np.uint32)
    x = torch.from_numpy(patterns.view(np.float32))
    variants = (available_variants()[-1], "naive")
    ours, library = (
        functions.wide(Rounding("nearest", variant=v, threads=threads), name, x) for v in variants
    )
    alike = (ours == library) | (ours.isnan() & library.isnan())
    alike |= (ours.abs() < LEAST) & (library.abs() < LEAST)
    alike |= (ours.abs() > GREATEST) & (library.abs() > GREATEST)
    apart = torch.where(alike, 0.0, (ours - library).abs() / library.abs() * 2.0**52)
    found = {"arguments": PART, "apart": apart.max().item()}
    for mode in ("nearest", "upward"):
        one, other = (
            functions.function(Rounding(mode, variant=v, threads=threads), name, x)
            for v in variants
        )
        found[mode] = int(((one != other) & ~(one.isnan() & other.isnan())).sum())
    return found


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--threads", type=config.whole(1, 1024), default=torch.get_num_threads())
    parser.add_argument(
        "--every", type=config.whole(1), default=1, help="compare one part of so many"
    )
    arguments = parser.parse_args()
    kept = Path(".cache", f"function-errors-{kernel_version()}.json")
    kept.parent.mkdir(exist_ok=True)
    done: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    starts = range(0, 2**32, PART * arguments.every)
    for name in functions.CORES:
        for start in tqdm(starts, name, leave=False):
            if (key := f"{name} {start}") not in done:
                done[key] = compare(name, start, arguments.threads)
                if start // PART % 64 == 0:
                    write_json(kept, done)
        write_json(kept, done)
    report = Report(
        note("functions", processor()),
        f"Vector functions compared with the C library's, {processor()}",
        "make function-errors",
        "torch",
    )
    report.table(
        *("function", "arguments", "largest difference, 2^-52"),
        *("float32 results that differ, to nearest", "upward"),
    )
    for name in functions.CORES:
        parts = [part for key, part in done.items() if key.split()[0] == name]
        total, nearest, upward = (
            int(sum(part[key] for part in parts)) for key in ("arguments", "nearest", "upward")
        )
        apart = max(part["apart"] for part in parts)
        report.row(name, f"{total:,}", f"{apart:.2f}", f"{nearest:,}", f"{upward:,}")


if __name__ == "__main__":
    run_cli(main)
