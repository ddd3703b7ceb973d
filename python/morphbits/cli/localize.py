"""Ask which part of the network loses the bits, by Verrou's delta debugging: `make localize`.

    morphbits localize --by task

Parts are the layers and the steps after them (task), or compiled functions (symbol). A small pair
of images and an untrained network of 16 features; dozens of runs of half a minute each.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config
from morphbits.studies.agreement.samples import small_case
from morphbits.studies.localization import localize


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--by", choices=("task", "symbol"), default="task")
    parser.add_argument(
        "--runs",
        type=config.whole(1),
        default=3,
        help="how often a set of parts must pass (default: 3)",
    )
    parser.add_argument(
        "--size",
        type=config.whole(8, 512),
        default=16,
        help="voxels along each axis (default: 16)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the phantom")
    arguments = parser.parse_args()
    folder = arguments.results.resolve() / "localize" / f"{arguments.by}-{arguments.size}"
    case = small_case(folder / "case", arguments.data, arguments.size)
    print(localize(arguments.by, arguments.runs, case, folder))
