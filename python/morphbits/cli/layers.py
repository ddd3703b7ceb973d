"""Where a registration's bits go: `make layers`, `precision`, `orders`, `one-run`, `flips`.

    morphbits layers stages --runs 5
    morphbits layers precision --experiment native-random-phantom-2mm-demo --subject 2

stages: only one stage of the network perturbed, and all but one; the bits of every activation.
precision: every result in fewer bits, and float16, bfloat16 and tf32.
orders: the same convolutions added in other orders, to nearest and perturbed.
one-run: bits of every stage from a single run with a float64 shadow (with --check next to those of
RUNS samples), bits lost by cancellation, subnormals, exact operations.
flips: the share of ReLU, max-pool, floor and nearest-voxel decisions that differ in RUNS samples.
Tables (CSV) and a page go to results/EXPERIMENT/layers/; settings are the experiment's where it
was run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from morphbits import config
from morphbits.config import ExecutionConfig, ExperimentConfig, add_arguments, from_arguments
from morphbits.files import write_json
from morphbits.stats.analysis import write_table
from morphbits.studies.layers import computation, flips, one_run, one_run_page, page
from morphbits.studies.layers.computation import Case


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("study", choices=("stages", "precision", "orders", "one-run", "flips"))
    parser.add_argument(
        "--subject", type=config.whole(1), default=1, help="number in the dataset (default: 1)"
    )
    parser.add_argument("--check", action="store_true", help="one-run: make RUNS samples as well")
    parser.add_argument("--notes", action="store_true", help="tables to notes/benchmarks/ as well")
    add_arguments(parser, ExperimentConfig)
    add_arguments(parser, ExecutionConfig)
    arguments = parser.parse_args()
    say = functools.partial(print, flush=True)
    execution = from_arguments(ExecutionConfig, arguments)
    base = computation.settings_of(execution.results, execution.experiment)
    base = base and config.with_engine(base, "native")
    settings = from_arguments(ExperimentConfig, arguments, base)
    case = computation.open_case(settings, execution, arguments.subject)
    folder = page.folder(execution, case)
    say(f"{case.dataset.name}, {case.subject.entities}, {settings.model.name}: {folder}")
    if arguments.study == "stages":
        write_table(folder / "activations.csv", computation.activations(case, settings.runs)[0])
        write_table(folder / "stages.csv", computation.stage_costs(case, settings.runs, say))
    elif arguments.study == "orders":
        names = ("orders", "schemes", "found")
        for name, rows in zip(names, computation.orders(case, settings.runs, say), strict=True):
            write_table(folder / f"{name}.csv", rows)
    elif arguments.study == "one-run":
        _one_run(case, folder, arguments.check, say)
    elif arguments.study == "flips":
        rows, maps = flips.flips(case, settings.runs)
        write_table(folder / "flips.csv", rows)
        one_run_page.save_maps(folder, "flips", maps, case)
        say(one_run_page.flips_words({"flips": rows}))
    else:
        write_table(folder / "precision.csv", computation.precisions(case, settings.runs, say))
    say(page.write(folder, case, notes=arguments.notes))


def _one_run(case: Case, folder: Path, check: bool, say: Callable[[str], None]) -> None:
    found = one_run.one_run(case, case.settings.runs)
    kept = one_run.keep_samples(found, folder)
    if kept and not check:
        say(kept)
    _save_one_run(found, case, folder)
    if check:
        one_run.with_samples(found, *computation.activations(case, case.settings.runs))
        _save_one_run(found, case, folder)
    say(one_run_page.one_run_words(found.tables))
    if unshadowed := found.record["unshadowed"]:
        names = ", ".join(f"{name} ({n} calls)" for name, n in unshadowed.items())
        say(f"not computed in float64, their results taken as exact: {names}")


def _save_one_run(found: one_run.OneRun, case: Case, folder: Path) -> None:
    for name, rows in found.tables.items():
        write_table(folder / f"{name}.csv", rows)
    write_json(folder / "one_run.json", found.record)
    one_run_page.save_maps(folder, "bits", found.maps, case)
