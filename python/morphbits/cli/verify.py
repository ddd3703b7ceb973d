"""Check that the results of an experiment are whole and reproduce: what `make verify` runs.

    morphbits verify --experiment smoke --again 2

Exit status 1 where something differs. SEED chooses which samples are made again.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config
from morphbits.samples import verify


def main() -> int:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the results folder")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--again", type=config.whole(0), default=2, help="samples to make again (default: 2)"
    )
    parser.add_argument(
        "--seed",
        type=config.whole(0, 2**63),
        default=1,
        help="chooses the samples that are made again (default: 1)",
    )
    options = parser.parse_args()
    findings = verify.verify(options.results, options.experiment, options.again, options.seed)
    print(verify.table(findings))
    wrong = {finding.sample for finding in findings if finding.verdict == "wrong"}
    samples = {finding.sample for finding in findings}
    print(f"\n{len(samples)} samples, " + (f"{len(wrong)} wrong" if wrong else "none wrong"))
    return 1 if wrong else 0
