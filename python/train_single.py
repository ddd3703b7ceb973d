"""Train a registration model in one process.

    python python/train_single.py --experiment train-demo

The recipe is python/experiments/NAME.toml; options given here go before it. Writes to --model-dir
(RESULTS/NAME): model.h5, which register.py and voxelmorph load, model.toml (recipe, versions,
accuracy on phantoms it never saw), loss.png, log.csv, times.csv, TensorBoard's events and
checkpoint.pt. --resume goes on where a training was stopped or killed, to the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from morphbits import bids
from morphbits.assessment import describe
from morphbits.config import add_arguments, from_arguments, from_toml
from morphbits.errors import UserError, run_cli
from morphbits.report.training import plot_loss
from morphbits.synthesis.sources import Ranks
from morphbits.training import RunConfig, TrainConfig, estimate, loop

RECIPES = Path(__file__).parent / "experiments"


def main(description: str | None, ranks: Ranks) -> None:
    """Train as one of `ranks`; the first of them describes what came out."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--experiment", default="train-demo", help="name of the recipe")
    parser.add_argument("--results", type=Path, default=Path("results"), help="of all experiments")
    parser.add_argument("--model-dir", type=Path, help="default: RESULTS/EXPERIMENT")
    for options in (TrainConfig, RunConfig):
        add_arguments(parser, options)
    arguments = parser.parse_args()
    folder = arguments.model_dir or bids.experiment_folder(arguments.results, arguments.experiment)
    recipe = RECIPES / f"{arguments.experiment}.toml"
    if not recipe.exists():
        raise UserError(f"{recipe}: there is no such recipe; write it, or choose another one")
    config = from_arguments(TrainConfig, arguments, from_toml(TrainConfig, recipe))
    config = loop.resolve(config, ranks)
    if ranks.rank == 0:
        print(estimate.headline(arguments.experiment, config, ranks), flush=True)
    model = loop.train(config, folder, from_arguments(RunConfig, arguments), ranks)
    if ranks.rank == 0:
        plot_loss(folder)
        print(describe(model, config, ranks.size).read_text(encoding="utf-8"))
        print(f"python python/register.py --model {model} … registers with it")


if __name__ == "__main__":
    run_cli(lambda: main(__doc__, Ranks()))
