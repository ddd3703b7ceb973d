"""Write an untrained SynthMorph network, for benchmarks and tests.

morphbits make-model --enc 16 16 16 16 --dec 16 16 16 16 16 16 --seed 1 --output W.h5
"""

from __future__ import annotations

from pathlib import Path

from morphbits import axes, config
from morphbits.models.weights import Architecture, init_weights, save_h5


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--enc", type=config.whole(1), nargs="+", default=[16] * 4, help="encoder widths"
    )
    parser.add_argument(
        "--dec", type=config.whole(1), nargs="+", default=[16] * 6, help="decoder widths"
    )
    parser.add_argument(
        "--int-steps", type=config.whole(1, 100), default=5, help="squarings of the integration"
    )
    parser.add_argument(
        "--flow-std", type=config.real(0, 1000), help="std of the last layer (default: he-normal)"
    )
    parser.add_argument("--seed", type=config.whole(0, 2**63), default=1)
    parser.add_argument(
        "--orientation", choices=axes.NAMES, metavar="RAS", default="",
        help="axes that images are brought into before it (default: the fixed file's)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="the .h5 file")
    args = parser.parse_args()
    architecture = Architecture(
        tuple(args.enc), tuple(args.dec), args.int_steps, orientation=args.orientation
    )
    save_h5(args.output, architecture, init_weights(architecture, args.seed, args.flow_std))
    print(f"{args.output}: enc {args.enc}, dec {args.dec}, {architecture.parameters():,} weights")
