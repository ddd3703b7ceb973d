"""Prove in seconds that Verrou perturbs what it should and nothing else: `make verrou-sanity`.

    morphbits verrou-sanity

Runs in the image (`make docker`) where Verrou is not on this machine itself.
"""

from __future__ import annotations

import subprocess
import sys

from morphbits.engines.verrou import found, script_path
from morphbits.engines.verrou.sanity import check
from morphbits.errors import UserError


def main() -> None:
    if found() == "container":
        inside = ["--", "python", "-m", "morphbits", "verrou-sanity"]
        sys.exit(subprocess.call([script_path("in_container.sh"), *inside]))
    failed = 0
    for what, holds, evidence in check():
        print(f"{'ok' if holds else 'FAILED':8}{what} ({evidence})", flush=True)
        failed += not holds
    if failed:
        raise UserError(f"{failed} of the checks failed: samples made here would mean nothing")
