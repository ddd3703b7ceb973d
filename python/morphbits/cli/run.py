"""Repeat any PyTorch program under random rounding and compare what it writes.

    morphbits run -n 10 --compare '*.npy' -- python script.py --output {out}
    morphbits run --mode nearness --compare 'out/*.nii.gz' -- python infer.py scan.nii.gz

Two plain runs, then N perturbed ones, each a process with a seed; then for each array in the
files that match PATTERN: significant bits, spread, and the share of values that differ. {out} in
the program's words stands for a folder that each run has for itself (runs then go side by side);
without it, runs follow each other here and their files are moved into the results. PATTERN is
relative to {out}, or to this folder; stdout.txt is what the program prints. Compared: .npy, .npz,
.pt, NIfTI, MGH, .csv, .tsv, .json, and the numbers in .txt and .log, with the digits they have.

--one-run adds a run to nearest with a float64 shadow: the bits of what each module of torch
returns, estimated from this run alone, and the bits lost by cancellation in it.

Perturbed is what torch computes in the program's process, in all its threads, on the CPU; numpy,
and processes that the program starts, are not. The runs in the results folder are kept, and
only missing ones are made: a larger N later adds runs.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from pathlib import Path
from typing import Any

from morphbits import config
from morphbits.config import add_arguments, from_arguments
from morphbits.errors import UserError
from morphbits.files import write_json
from morphbits.stats.analysis import write_table
from morphbits.stats.one_run import check
from morphbits.studies.program import comparison
from morphbits.studies.program.repetitions import (
    Program,
    ProgramConfig,
    one_run,
    parse_command,
    repeat,
)


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    given = _parser().parse_args(words[:cut])
    say = functools.partial(print, flush=True)
    command = parse_command(words[cut + 1 :])
    for pattern in given.compare:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(
                f"--compare {pattern}: patterns are relative to {{out}} or this folder"
            )
    program = Program(command, given.compare, from_arguments(ProgramConfig, given), given.allow)
    if given.one_run:
        check(program.config.mode, given.n)
    folder = given.output or Path("results") / f"program-{_name(command)}"
    folders = repeat(program, folder, given.n, given.jobs, say)
    rows = comparison.compare(folders, given.compare)
    operators = comparison.perturbed_operators(folders)
    plain, perturbed = comparison.seconds(folders)
    write_table(folder / "summary.csv", rows)
    write_json(
        folder / "summary.json",
        {"command": shlex.join(command), "seconds": {"plain": plain, "perturbed": perturbed},
         **operators, "arrays": comparison.without_nan(rows)},
    )  # fmt: skip
    _print(say, rows)
    names = list(operators["operators"])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    say(
        f"perturbed: {operators['operations']:.3g} operations of {', '.join(names[:6])}{more}; "
        f"{perturbed / plain:.1f} times the plain run"
    )
    if operators["unperturbed"]:
        calls = ", ".join(f"{name} ({n} calls)" for name, n in operators["unperturbed"].items())
        say(f"let pass unperturbed by --allow: {calls}")
    if operators["forked_processes"]:
        say(f"not perturbed: {operators['forked_processes']} processes that the program forked")
    if not all(row["plain_repeats"] for row in rows):
        say(
            "warning: two plain runs do not agree; the spread is not of rounding alone. Seed the "
            "program's random numbers"
        )
    if given.one_run:
        _print_one_run(say, folder, one_run(program, folder, given.n, say))
    say(str(folder / "summary.csv"))


def _print_one_run(say: functools.partial[None], folder: Path, record: dict[str, Any]) -> None:
    """Write and print what one run with a shadow found."""
    for name in ("one_run", "counters"):
        write_table(folder / f"{name}.csv", record[name])
    say("from one run, bits of what each module returns:")
    for row in record["one_run"]:
        say(f"  {row['bits']:5.2f} of {row['of']}  {row['stage']}, {row['numbers']} numbers")
    if record["unshadowed"]:
        say(f"not computed in float64, taken as exact: {', '.join(record['unshadowed'])}")


def _parser() -> argparse.ArgumentParser:
    parser = config.parser(__doc__)
    parser.add_argument(
        "-n", type=config.whole(1, 100_000), default=10, help="perturbed runs (default: 10)"
    )
    parser.add_argument(
        "--compare", action="append", required=True, metavar="PATTERN",
        help="files to compare, such as '*.npy'; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], metavar="OPERATOR",
        help="operator without a rule that may run unperturbed; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="results folder (default: results/program-NAME)"
    )
    parser.add_argument(
        "--jobs", type=config.whole(1), default=1, help="runs at a time, with {out} (default: 1)"
    )
    parser.add_argument(
        "--one-run", action="store_true",
        help="estimate the bits of each module's results from one run with a float64 shadow",
    )  # fmt: skip
    add_arguments(parser, ProgramConfig)
    return parser


def _name(command: list[str]) -> str:
    return command[1] if command[0] == "-m" else Path(command[0]).stem


def _print(say: functools.partial[None], rows: list[comparison.Row]) -> None:
    titles = ("file", "array", "values", "bits", "5 %", "of", "spread", "differing")
    table = [
        (
            row["file"], row["array"], f"{row['values']}",
            *(f"{row[key]:.2f}" if row["of"] else "" for key in ("bits", "bits_5")),
            f"{row['of']}" if row["of"] else row["type"],
            f"{row['spread']:.2g}" if row["of"] else "", f"{row['differing']:.1%}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(titles, *table, strict=True)]
    for line in (titles, *table):
        say(
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        )
