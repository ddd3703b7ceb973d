"""Train the same small network many times and report what varies: is training stable?

    python python/training_stability.py --runs 5

Trains RUNS times each with nothing varied, with other first weights, with other data, and with
every rounding random (native engine), and writes results/EXPERIMENT/report.html with its tables
as CSV and figures beside it. Started again it makes what is missing. Options of a training
(--epochs, --steps, --enc, …) go before the recipe python/experiments/EXPERIMENT.toml.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from morphbits import bids, stability
from morphbits.config import add_arguments, from_arguments, from_toml
from morphbits.errors import run_cli
from morphbits.report.stability import build
from morphbits.training import TrainConfig

RECIPES = Path(__file__).parent / "experiments"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--experiment", default="training-stability", help="name of the recipe")
    parser.add_argument("--results", type=Path, default=Path("results"), help="of all experiments")
    parser.add_argument("--runs", type=int, default=5, help="trainings of each arm")
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: cores / threads)")
    parser.add_argument("--run-folder", type=Path, help=argparse.SUPPRESS)
    add_arguments(parser, TrainConfig)
    arguments = parser.parse_args()
    if arguments.run_folder:
        recipe = from_arguments(TrainConfig, arguments)
        return stability.execute(stability.Run("", 0, recipe, arguments.run_folder))
    recipe = from_toml(TrainConfig, RECIPES / f"{arguments.experiment}.toml")
    recipe = from_arguments(TrainConfig, arguments, recipe)
    cores = len(os.sched_getaffinity(0))
    jobs = arguments.jobs or max(1, cores // (recipe.threads or cores))
    planned = stability.plan(arguments.results, arguments.experiment, recipe, arguments.runs)
    print(f"{arguments.experiment}: {len(planned)} trainings, {jobs} at a time", flush=True)
    stability.execute_all(planned, jobs, Path(__file__))
    study = stability.analyse(planned, arguments.experiment)
    folder = bids.experiment_folder(arguments.results, arguments.experiment)
    print(f"written to {build(study, folder)}")


if __name__ == "__main__":
    run_cli(main)
