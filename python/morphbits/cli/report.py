"""The page of an experiment: one HTML file that opens offline, from the tables and maps there.

    morphbits report --experiment smoke
    morphbits report --experiment smoke --viewer 2

Needs significance.csv, which `morphbits significance` makes; writes
results/<experiment>/report.html, with --viewer also report-viewer.html, the same page with the
volumes of the first subjects and niivue to look through them. niivue is fetched once, by npm or
from a server, checked, and kept in the user's cache.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config, report
from morphbits.report import viewer


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--viewer", type=config.whole(0), default=0, metavar="N",
        help="also write report-viewer.html, with the volumes of the first N subjects",
    )  # fmt: skip
    given = parser.parse_args()
    if given.viewer:
        viewer.obtain()  # first: that can fail, and an earlier page with a viewer goes
    experiment = report.read(given.results, given.experiment)
    print(report.summarize(experiment))
    print(*report.build(experiment, given.viewer), sep="\n")
