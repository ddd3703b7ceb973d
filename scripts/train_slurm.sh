#!/usr/bin/env bash
# usage: [NNODES=1] [NPROC=2] [SLURM_OPTIONS='SBATCH-OPTION...'] scripts/train_slurm.sh [OPTION OF morphbits train-ddp]...
# Submits one job to Slurm that trains in NPROC processes on each of NNODES machines, and prints its number. Data, results
# and this clone must lie where the machines see them by the same path. SLURM_OPTIONS come last and win. Example:
#   NNODES=4 NPROC=8 SLURM_OPTIONS='--partition=long --time=2-0' scripts/train_slurm.sh --experiment train-demo
# Each task of the job is one scripts/train_ddp.sh; they meet on the first machine. Three minutes before the end of its time,
# and at 'scancel --signal=TERM NUMBER', the step under way is saved: the same command with --resume goes on.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
machines=${NNODES:-1} processes=${NPROC:-2}
for number in "$processes" "$machines"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "NPROC and NNODES must be whole numbers from 1, not '$number'"
done
command -v sbatch >/dev/null || fail "sbatch is not on this machine; run this where jobs are submitted to Slurm"

mapfile -t own < <(xargs -n 1 printf '%s\n' <<<"${SLURM_OPTIONS-}")
[ -n "${own[*]}" ] || own=()
options=(--parsable --job-name=morphbits-train "--nodes=$machines" --ntasks-per-node=1 "--cpus-per-task=$processes"
  --signal=TERM@180 --no-requeue --output=train-%j.log "${own[@]}")

# The job script goes through standard input, and what begins with $ in it is the first machine's to expand. srun does not
# take over the number of cores by itself.
export NPROC=$processes
# shellcheck disable=SC2016
{
  echo '#!/usr/bin/env bash'
  echo 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
  echo 'export NNODES=$SLURM_NTASKS RUN_ID=$SLURM_JOB_ID RDZV=$first:$((20000 + SLURM_JOB_ID % 10000))'
  echo -n 'exec srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 '
  printf '%q ' "$here/train_ddp.sh" "$@"
} | sbatch "${options[@]}" | cut -d ';' -f 1
