"""Prove in seconds that Verrou perturbs what it should and nothing else: `make verrou-sanity`.

python python/verrou_sanity.py
"""

from __future__ import annotations

from morphbits.engines.verrou.sanity import check
from morphbits.errors import UserError, run_cli


def main() -> None:
    failed = 0
    for what, holds, evidence in check():
        print(f"{'ok' if holds else 'FAILED':8}{what} ({evidence})", flush=True)
        failed += not holds
    if failed:
        raise UserError(f"{failed} of the checks failed: samples made here would mean nothing")


if __name__ == "__main__":
    run_cli(main)
