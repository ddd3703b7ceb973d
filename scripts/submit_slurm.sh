#!/usr/bin/env bash
# usage: scripts/submit_slurm.sh [SBATCH-OPTION]... -- COMMAND [ARGUMENT]...
# Submits an array job to Slurm; each of its tasks runs COMMAND and learns which one it is from SLURM_ARRAY_TASK_ID.
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
# Of the answer (NUMBER or NUMBER;CLUSTER) the number is printed.
printf '#!/usr/bin/env bash\nexec %s\n' "$(printf '%q ' "$@")" | sbatch --parsable "${options[@]}" | cut -d ';' -f 1
