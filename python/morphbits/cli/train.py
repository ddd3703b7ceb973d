"""Train a registration model in one process.

    morphbits train --experiment train-demo

The recipe is python/experiments/NAME.toml; options given here override it. Writes to --model-dir
(RESULTS/NAME): model.h5, which `morphbits register` and voxelmorph load, model.toml (recipe,
versions, accuracy on phantoms it never saw), accuracy.csv (the same by epoch, of the models that
--keep-every keeps), loss.png, log.csv, times.csv, TensorBoard's events and checkpoint.pt. --resume
continues where a training was stopped or killed, to the same bytes.
"""

from __future__ import annotations

from morphbits.assessment import describe
from morphbits.report.training import plot_loss
from morphbits.synthesis.settings import Ranks
from morphbits.training import estimate, loop
from morphbits.training.options import parse


def main() -> None:
    train(__doc__, Ranks())


def train(description: str | None, ranks: Ranks) -> None:
    """Train as one of `ranks`; the first of them describes what came out."""
    asked = parse(description)
    config = loop.resolve(asked.config, ranks)
    if ranks.rank == 0:
        print(estimate.headline(asked.experiment, config, ranks), flush=True)
    model = loop.train(config, asked.folder, asked.run, ranks)
    if ranks.rank == 0:
        for each in describe(model, config, ranks.size):
            print(each.sentence())
        print(f"{plot_loss(asked.folder)}: its loss and accuracy over the steps")
        print(f"morphbits register --model {model} … registers with it")
