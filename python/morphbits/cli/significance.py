"""Significant bits of an experiment's samples: tables and maps, beside the samples.

    morphbits significance --experiment smoke

Writes tables (significance.csv, accuracy.csv, ratios.csv, …) and maps/ into
results/<experiment>/ from the samples that are finished.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import bids, config, machine
from morphbits.samples.experiment import recorded_dataset
from morphbits.stats.analysis import analyse


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--jobs",
        type=config.whole(1),
        default=machine.cores(),
        help="subjects at a time",
    )
    given = parser.parse_args()
    dataset = recorded_dataset(given.results, given.experiment)
    analyse(given.results, given.experiment, dataset, max(1, given.jobs))
    print(bids.experiment_file(given.results, given.experiment, "significance.csv"))
