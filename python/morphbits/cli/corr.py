"""Get the study's images of CoRR by DataLad, verified: what `./install-corr.sh` runs.

    morphbits corr --subjects 3 --dry-run

Killed at any point and started again, it gets only what is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from morphbits import config
from morphbits.datasets import corr_install, corr_table
from morphbits.errors import UserError


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--subjects",
        default="inference",
        help="inference (the study's 35), training, all, a number, or labels (sub-0025531,…)",
    )
    parser.add_argument("--source", default=corr_install.SOURCE, help="a mirror or a local copy")
    parser.add_argument(
        "--table", type=Path, default=corr_table.TABLE, help="CSV of the images (the study's)"
    )
    parser.add_argument("--jobs", type=config.whole(1), default=4, help="downloads at a time")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder")
    parser.add_argument("--dry-run", action="store_true", help="list the files, fetch nothing")
    options = parser.parse_args()
    scans = corr_table.select(options.subjects, options.table)
    if options.dry_run:
        print(*(scan.path for scan in scans), sep="\n")
        return
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least 1")
    missing = corr_install.install(options.data, scans, options.source, options.jobs)
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    there = len(scans) - len(missing)
    print(f"{there} of {len(scans)} images are in {options.data / 'corr'}, verified")
    if missing:
        raise UserError("images are missing, as listed above; the same command gets them")
