"""An experiment as a folder to publish: a BIDS derivative with its RO-Crate description.

    morphbits archive --experiment smoke --license CC-BY-4.0

Holds maps, tables, configuration, provenance and the page; not the images. Needs what
`morphbits significance` and `morphbits report` make.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config
from morphbits.report import archive


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write (default: results/EXPERIMENT/archive)"
    )
    parser.add_argument(
        "--license", default="", help="SPDX identifier or address of the licence it is under"
    )
    parser.add_argument(
        "--without-page",
        action="store_true",
        help="leave out report.html, which shows slices of the images",
    )
    given = parser.parse_args()
    print(
        archive.build(
            given.results, given.experiment, given.output, given.license, not given.without_page
        )
    )
