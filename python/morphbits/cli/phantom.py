"""Make the phantom dataset: brains whose true registration is known.

    morphbits phantom --subjects 3

From the MNI152 template that nilearn brings along, so no network is needed. What is there already
is kept; the same seed gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from morphbits import config
from morphbits.datasets import phantom


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--subjects", type=config.whole(1), default=3, help="how many (default: 3)"
    )
    parser.add_argument(
        "--size", choices=phantom.SIZES, default="2mm", help="voxels (default: 2mm)"
    )
    parser.add_argument(
        "--seed",
        type=config.whole(0, 2**63),
        default=1,
        help="seed of all random draws (default: 1)",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder (default: data)")
    args = parser.parse_args()

    def progress(done: int, total: int) -> None:
        print(f"\rphantoms: {done}/{total} made", end="", file=sys.stderr, flush=True)

    dataset = phantom.make_dataset(args.data, args.subjects, args.seed, args.size, progress)
    print(f"\n{dataset.root}: {len(dataset.subjects())} subjects, fixed image {dataset.fixed()}")
