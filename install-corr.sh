#!/usr/bin/env bash
# usage: ./install-corr.sh [--subjects 35|training|sub-0025531,...] [--source URL|FOLDER] [--jobs N] [--data FOLDER] [--dry-run]
# Clones CoRR by DataLad into data/corr and gets exactly the study's T1-weighted images; run again, it continues.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

[ -x "$root/.venv/bin/python" ] || "$root/scripts/setup.sh"
export PATH="$root/.venv/bin:$PATH" # datalad and git-annex are installed there
command -v git >/dev/null || { echo "error: git is not installed: 'apt install git'" >&2; exit 2; }
exec "$root/.venv/bin/python" "$root/python/morphbits" corr "$@"
