"""Where a registration's bits go: `make layers`, `make precision`, `make orders`.

    morphbits layers stages --runs 5
    morphbits layers precision --experiment native-random-phantom-2mm-demo --subject 2

stages: only one stage of the network perturbed, and all but one; the bits of every activation.
precision: every result in fewer bits, and float16, bfloat16 and tf32.
orders: the same convolutions added in other orders, to nearest and perturbed.
Tables (CSV) and a page go to results/EXPERIMENT/layers/; settings are the experiment's where it
was run.
"""

from __future__ import annotations

import functools

from morphbits import config
from morphbits.config import ExecutionConfig, ExperimentConfig, add_arguments, from_arguments
from morphbits.stats.analysis import write_table
from morphbits.studies.layers import computation, page


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("study", choices=("stages", "precision", "orders"))
    parser.add_argument(
        "--subject", type=config.whole(1), default=1, help="number in the dataset (default: 1)"
    )
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
        write_table(folder / "activations.csv", computation.activations(case, settings.runs))
        write_table(folder / "stages.csv", computation.stage_costs(case, settings.runs, say))
    elif arguments.study == "orders":
        names = ("orders", "schemes", "found")
        for name, rows in zip(names, computation.orders(case, settings.runs, say), strict=True):
            write_table(folder / f"{name}.csv", rows)
    else:
        write_table(folder / "precision.csv", computation.precisions(case, settings.runs, say))
    say(page.write(folder, case, notes=arguments.notes))
