"""Train the same small network many times and report what varies: is training stable?

    morphbits training-stability --runs 5

Trains RUNS times each with nothing varied, with other first weights, with other data, and with
every rounding random (native engine; --engine verrou: Verrou), and writes
results/EXPERIMENT/report.html with its tables as CSV and figures beside it. Started again it makes
what is missing. Options of a training (--epochs, --steps, --enc, …) override the recipe
python/experiments/EXPERIMENT.toml.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from morphbits import bids, config, machine
from morphbits.cli import command
from morphbits.config import add_arguments, from_arguments
from morphbits.parent import end_with_parent
from morphbits.studies.training_stability import trainings
from morphbits.studies.training_stability.page import build
from morphbits.training import TrainConfig
from morphbits.training.options import recipe


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", default="training-stability", help="name of the recipe")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument("--runs", type=config.whole(1), default=5, help="trainings of each kind")
    parser.add_argument(
        "--jobs", type=config.whole(1), help="trainings at a time (default: cores / threads)"
    )
    parser.add_argument("--run-folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-train", action="store_true", help=argparse.SUPPRESS)
    add_arguments(parser, TrainConfig)
    arguments = parser.parse_args()
    if arguments.run_folder:
        end_with_parent()
        run = trainings.Run("", 0, from_arguments(TrainConfig, arguments), arguments.run_folder)
        return trainings.execute(run, register=not arguments.only_train)
    base = recipe(arguments.experiment)
    if base.engine == "ieee":  # of the arms that are perturbed
        base = replace(base, engine="native")
    asked = from_arguments(TrainConfig, arguments, base)
    planned = trainings.plan(arguments.results, arguments.experiment, asked, arguments.runs)
    cores = machine.cores()
    jobs = arguments.jobs or max(1, cores // (planned[0].recipe.threads or 1))
    print(trainings.describe(arguments.experiment, planned, jobs), flush=True)
    trainings.execute_all(planned, jobs, command("training-stability"))
    study = trainings.analyse(planned, arguments.experiment)
    folder = bids.experiment_folder(arguments.results, arguments.experiment)
    print(f"written to {build(study, folder)}")
