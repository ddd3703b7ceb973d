"""Train a registration model in one process.

    python python/train_single.py --experiment train-demo

The recipe is python/experiments/NAME.toml; options given here go before it. Writes checkpoint.pt,
log.csv, model.h5 and model.toml (recipe, versions, accuracy on phantoms it never saw) to the
folder RESULTS/NAME; --resume goes on where a killed training left off, to the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from morphbits import bids
from morphbits.assessment import describe
from morphbits.config import add_arguments, from_arguments, from_toml
from morphbits.errors import run_cli
from morphbits.training import TrainConfig, train

RECIPES = Path(__file__).parent / "experiments"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--experiment", default="train-demo", help="recipe, and name of the folder"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    add_arguments(parser, TrainConfig)
    arguments = parser.parse_args()
    recipe = RECIPES / f"{arguments.experiment}.toml"
    base = from_toml(TrainConfig, recipe) if recipe.exists() else TrainConfig()
    config = from_arguments(TrainConfig, arguments, base)
    model = train(
        config, bids.experiment_folder(arguments.results, arguments.experiment), arguments.resume
    )
    print(describe(model, config).read_text(encoding="utf-8"))
    print(f"python python/register.py --model {model} … registers with it")


if __name__ == "__main__":
    run_cli(main)
