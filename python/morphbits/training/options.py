"""The options of the training scripts: the name of a recipe, and options that override it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morphbits import bids, config
from morphbits.config import EXPERIMENTS, add_arguments, from_arguments, from_toml
from morphbits.errors import UserError
from morphbits.training.loop import RunConfig
from morphbits.training.recipe import TrainConfig

DEMO, WITH_LABELS = "train-demo", "train-synthmorph"


@dataclass(frozen=True)
class Options:
    """A training as it was asked for; numbers that were left out are still None."""

    experiment: str
    folder: Path
    config: TrainConfig
    run: RunConfig


def parse(
    description: str | None, words: Sequence[str] | None = None, program: str | None = None
) -> Options:
    """The options in `words` (the command line's, unless given). Raises UserError for an option,
    a recipe or a combination that there is not."""
    parser = config.parser(description, program)
    parser.add_argument(
        "--experiment",
        help=f"name of the recipe (default: {DEMO}, or {WITH_LABELS} where --labels are given)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--model-dir", type=Path, help="folder of the training (RESULTS/EXPERIMENT)"
    )
    for options in (TrainConfig, RunConfig):
        add_arguments(parser, options)
    arguments = parser.parse_args(words)
    experiment = arguments.experiment or (
        WITH_LABELS if getattr(arguments, "labels", "") else DEMO
    )
    asked = from_arguments(TrainConfig, arguments, recipe(experiment))
    folder = arguments.model_dir or bids.experiment_folder(arguments.results, experiment)
    return Options(experiment, folder, asked, from_arguments(RunConfig, arguments))


def recipe(experiment: str) -> TrainConfig:
    """The recipe of that name."""
    path = EXPERIMENTS / f"{experiment}.toml"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*train*.toml")))
        raise UserError(
            f"{path}: there is no such recipe; write it, or choose another one (such as {names})"
        )
    return from_toml(TrainConfig, path)
