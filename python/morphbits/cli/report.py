"""The page of an experiment: one HTML file that opens offline, from the tables and maps there.

    morphbits report --experiment smoke

Needs significance.csv, which `morphbits significance` makes; writes
results/<experiment>/report.html.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config, report


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    given = parser.parse_args()
    print(report.summarize(given.results, given.experiment))
    print(report.build(given.results, given.experiment))
