"""Compare registration methods on the same images: a page with bits, millimetres and Dice of each.

    morphbits inference --model classical --size 4mm --engine native --experiment by-classical
    morphbits inference --size 4mm --engine native --experiment by-network
    morphbits methods by-network by-classical

Writes results/methods/methods.html and the figure beside it. Samples of another program are a
folder, after the first experiment: sample-01/sub-001/warp.nii.gz and so on (notes/methods.md).
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config
from morphbits.errors import UserError
from morphbits.studies.methods import page


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "experiments", nargs="+", help="names of folders in results/, or a program's folder"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    given = parser.parse_args()
    if len(given.experiments) < 2:
        raise UserError("name two experiments or more, one for each method")
    experiments = page.read_all(given.results, given.experiments)
    print(page.build(experiments, given.experiments, given.results / "methods"))
