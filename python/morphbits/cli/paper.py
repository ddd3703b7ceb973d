"""The study as one command, from raw images to the published table: what `make paper` runs.

    morphbits paper --engine native --dry-run

Gets CoRR, preprocesses it, runs python/experiments/paper.toml (--engine native:
paper-native.toml), analyses it and compares it with the study. Further options are those of
`morphbits inference`. If a piece is missing, it stops before anything starts. If it was killed,
the same command continues.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from morphbits import config
from morphbits.cli import command
from morphbits.datasets import corr_install, corr_table
from morphbits.errors import UserError
from morphbits.preprocessing import ROUTES, open_route
from morphbits.studies.paper import comparison
from morphbits.studies.paper.plan import PaperPlan


def main() -> None:
    parser = config.parser(__doc__)
    add = parser.add_argument
    add("--engine", choices=("verrou", "native"), default="verrou", help="who rounds")
    add("--subjects", default="inference", help="as in ./install-corr.sh")
    add("--runs", type=config.whole(1), default=10, help="samples of each subject")
    add("--model", type=Path, help="voxelmorph .h5 weights (default: the published ones)")
    add("--route", choices=ROUTES, default="open", help="how CoRR is preprocessed")
    add("--size", choices=open_route.SIZES, default="1mm", help="open route: size of voxels")
    add("--source", default=corr_install.SOURCE, help="where CoRR is cloned from")
    add("--table", type=Path, default=corr_table.TABLE, help="CSV of the images")
    add("--jobs", type=config.whole(1), help="samples at a time")
    add("--data", type=Path, default=Path("data"), help="data folder")
    add("--results", type=Path, default=Path("results"), help="results folder")
    add("--dry-run", action="store_true", help="cost and what is missing, then stop")
    add("--yes", action="store_true", help="start although it takes more than two hours")
    options, further = parser.parse_known_args()
    samples = config.parser(None)
    for kind in (config.ExperimentConfig, config.ExecutionConfig):
        config.add_arguments(samples, kind)
    samples.parse_args(further)  # what is wrong is said now, not after CoRR was fetched
    plan = PaperPlan(
        options.data, options.results, corr_table.select(options.subjects, options.table),
        options.engine, options.model, options.runs, options.route, options.size,
    )  # fmt: skip
    missing = plan.missing()
    if options.dry_run:
        print(plan.cost())
    if missing:
        print(*(f"missing: {line}" for line in missing), sep="\n", file=sys.stderr)
        raise UserError("the study cannot start: what is missing is listed above")
    if options.dry_run:
        return
    plan.prepare(options.source, options.jobs)
    words = [*plan.inference(), *further, *([f"--jobs={options.jobs}"] if options.jobs else [])]
    done = subprocess.run(
        [*command("inference"), *words, *(["--yes"] if options.yes else [])], check=False
    )
    if done.returncode:
        raise UserError(
            "the samples are not complete (the error is printed above); the same command continues"
        )
    if "--no-wait" in further:
        print("the same command shows the progress, and compares at the end")
        return
    print(comparison.in_words(comparison.compare(plan.results, plan.name)))
