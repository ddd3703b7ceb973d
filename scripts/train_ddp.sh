#!/usr/bin/env bash
# usage: [NPROC=2] [NNODES=1] [RDZV=HOST:PORT] [RUN_ID=NAME] scripts/train_ddp.sh [OPTION OF morphbits train-ddp]...
# Trains in NPROC processes on this machine, by torchrun. On several machines run the same command on each, with their
# number (NNODES), a port of one of them that all can reach (RDZV) and a name for this run (RUN_ID):
#   NNODES=2 NPROC=8 RDZV=node1:29400 RUN_ID=first scripts/train_ddp.sh --experiment train-demo
# With --engine verrou each process runs under Verrou (scripts/with_verrou.sh).
# SIGTERM or Ctrl-C: the step under way is finished and saved; the exit status is 143 or 130. So it is when this script dies.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
processes=${NPROC:-2} machines=${NNODES:-1} rendezvous=${RDZV-} run=${RUN_ID:-morphbits}
for number in "$processes" "$machines"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "NPROC and NNODES must be whole numbers from 1, not '$number'"
done

meeting=(--standalone)
if [ "$machines" -gt 1 ]; then
  [ -n "$rendezvous" ] || fail "with NNODES=$machines give every machine the same meeting place: RDZV=HOST:PORT"
  meeting=(--nnodes "$machines" --rdzv-backend c10d --rdzv-endpoint "$rendezvous" --rdzv-id "$run")
fi

python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
# what torch's C++ has to say of a machine that is not there yet, frame by frame; a failure is said in a sentence
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-FATAL}
status=0 stopped=''
MORPHBITS_PARENT=$$ PYTHONPATH=$here/python${PYTHONPATH:+:$PYTHONPATH} "$python" -m morphbits.training.launch "${meeting[@]}" \
  --nproc-per-node "$processes" -- "$@" &
child=$!
trap 'stopped=143; kill -TERM $child' TERM
trap 'stopped=130; kill -INT $child' INT
while :; do
  wait $child && status=0 || status=$?
  kill -0 $child 2>/dev/null || break # a signal ends wait before the child does
done
exit "${stopped:-$status}"
