"""Compare the native engine with Verrou, the evidence that it can be trusted: `make compare`.

    morphbits compare --framework tensorflow --samples 10 --jobs 2

The same network on the same small pair of images, `--samples` of each: mean significant bits, the
distribution of the ratio of standard deviations per voxel, a map of it, operations and time. The
verdict is on the first order of accumulation, the one of the kernel that Verrou saw by default;
the rest show what the order of sums changes.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config
from morphbits.errors import UserError
from morphbits.studies.agreement.samples import (
    all_orders,
    facts,
    load,
    make,
    native_arm,
    small_case,
    verrou_arm,
)
from morphbits.studies.agreement.tables import table, write_maps


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--framework", choices=("tensorflow", "torch"), default="tensorflow")
    parser.add_argument("--onednn", choices=("on", "off"), default="on")
    parser.add_argument("--accumulation", help="orders of the native arms, separated by commas")
    parser.add_argument(
        "--samples", type=config.whole(1), default=10, help="samples of each engine (default: 10)"
    )
    parser.add_argument(
        "--jobs", type=config.whole(1), default=1, help="processes at a time (default: 1)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the phantom")
    arguments = parser.parse_args()
    if arguments.samples < 3:
        raise UserError(f"--samples {arguments.samples}: a spread needs 3 or more")
    results = arguments.results / "compare"
    case = small_case(results / "case", arguments.data)
    verrou = verrou_arm(arguments.framework, arguments.onednn)
    orders = arguments.accumulation.split(",") if arguments.accumulation else all_orders(verrou)
    natives = [native_arm(order) for order in orders]
    units = make([verrou, *natives], arguments.samples, case, results, arguments.jobs)
    samples = {name: load(of_arm) for name, of_arm in units.items()}
    text, agrees = table(samples, {name: facts(of_arm) for name, of_arm in units.items()})
    print(text)
    print(f"maps     {write_maps(samples, results)}")
    if not agrees:
        raise UserError(f"{natives[0].name} does not agree with {verrou.name}")
