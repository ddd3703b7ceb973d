"""Fill an experiment with samples, then significance and the report: what `make inference` runs.

    morphbits inference --subjects 3 --runs 5 --engine native --dataset phantom

Killed at any point and started again, it makes only what is missing.
"""

from __future__ import annotations

import functools
import sys

from morphbits import config, wording
from morphbits.config import ExecutionConfig, ExperimentConfig, add_arguments
from morphbits.errors import UserError
from morphbits.samples import estimate, experiment


def main() -> None:
    parser = config.parser(__doc__)
    add_arguments(parser, ExperimentConfig)
    add_arguments(parser, ExecutionConfig)
    settings, execution = experiment.from_options(parser.parse_args())
    say = functools.partial(print, flush=True)
    plan = experiment.make_plan(settings, execution, say)
    seconds = experiment.seconds_left(plan, say)
    if execution.dry_run:
        print(experiment.listing(plan))
        return
    if execution.viewer:
        _obtain_viewer()
    unasked = settings.engine == "auto" and plan.settings.engine == "verrou"
    if seconds > (estimate.UNASKED if unasked else estimate.LONG) and not execution.yes:
        faster = ", ENGINE=native is hundreds of times faster" if unasked else ""
        raise UserError(
            f"this would take about {wording.duration(seconds)}; YES=1 starts it, "
            f"DRY_RUN=1 lists it{faster}"
        )
    failures = experiment.run(plan)
    if plan.todo and not execution.wait:
        print("the same command shows the progress, and makes the report at the end")
        return
    for note in experiment.notes(plan):
        print(note)
    if failures:
        print(failures, file=sys.stderr)
    if plan.settings.runs > 1:
        _analyse(plan, execution.viewer)
    else:
        print("one sample of each subject has no spread: no significance, no report")
    if failures:
        raise UserError("samples failed, as listed above; the same command tries them again")


def _obtain_viewer() -> None:
    """Fetch the viewer before the samples are made, since that can fail."""
    from morphbits.report import viewer

    viewer.obtain()


def _analyse(plan: experiment.ExperimentPlan, volumes: int) -> None:
    from morphbits import report
    from morphbits.stats.analysis import analyse

    analyse(plan.results, plan.name, plan.dataset, min(plan.jobs, estimate.cores()))
    found = report.read(plan.results, plan.name)
    print(report.summarize(found))
    print(*report.build(found, volumes), sep="\n")
