"""Raw CoRR to brains ready to register: what `make preprocess` runs.

    morphbits preprocess --subjects 3 --route open

Killed at any point and started again, it makes only what is missing.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config, preprocessing
from morphbits.config import Reading, add_arguments, from_arguments
from morphbits.datasets import corr_table
from morphbits.errors import UserError
from morphbits.machine import cores
from morphbits.preprocessing import open_route


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--subjects", default="inference", help="as in ./install-corr.sh")
    parser.add_argument("--table", type=Path, default=corr_table.TABLE, help="CSV of the images")
    parser.add_argument("--route", choices=preprocessing.ROUTES, default="open")
    parser.add_argument(
        "--size", choices=open_route.SIZES, default="1mm", help="open route: size of voxels"
    )
    parser.add_argument("--jobs", type=config.whole(1), default=cores(), help="images at a time")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder")
    add_arguments(parser, Reading)
    options = parser.parse_args()
    reading = from_arguments(Reading, options)
    scans = corr_table.select(options.subjects, options.table)
    outcomes = preprocessing.preprocess(
        options.data, scans, options.route, options.size, max(1, options.jobs), reading=reading
    )
    excluded = sum(bool(outcome.excluded) for outcome in outcomes)
    print(f"{len(outcomes) - excluded} of {len(outcomes)} images are ready, {excluded} left out")
    if excluded == len(outcomes):
        raise UserError("no image is ready")
