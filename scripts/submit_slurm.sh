#!/usr/bin/env bash
# usage: scripts/submit_slurm.sh [SBATCH-OPTION]... -- COMMAND [ARGUMENT]...
# Submits an array job to Slurm, each of whose tasks runs COMMAND ARGUMENT... NUMBER, where NUMBER is the task's in the array.
# Prints the number of the job. Example:
#   scripts/submit_slurm.sh --array=1-24%8 --mem=2G --time=60 --output=logs/%a.log -- ./one_task
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -gt 1 ] || fail "no command given after --"
shift
command -v sbatch >/dev/null || fail "sbatch is not on this machine; run this where jobs are submitted to Slurm"

# The job script goes through standard input; sbatch copies it, so nothing has to stay behind.
# Of the answer (NUMBER or NUMBER;CLUSTER) the number is printed; the task's number is the node's to expand.
# shellcheck disable=SC2016
printf '#!/usr/bin/env bash\nexec %s "$SLURM_ARRAY_TASK_ID"\n' "$(printf '%q ' "$@")" | sbatch --parsable "${options[@]}" | cut -d ';' -f 1
