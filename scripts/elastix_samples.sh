#!/usr/bin/env bash
# usage: scripts/elastix_samples.sh DATASET FOLDER RUNS [SUBJECT...]
# Registers phantoms by elastix under Verrou: a real program as a method of `morphbits methods` (notes/methods.md).
# DATASET is a folder such as data/phantom-4mm. FOLDER gets sample-01/sub-001/warp.nii.gz, moved.nii.gz and verrou.log of
# each run, and sample-ieee with mode nearest; `morphbits methods EXPERIMENT FOLDER` compares them with an experiment of
# this suite. SUBJECT is a label such as 001 (default: all). What is there is kept. elastix and transformix are looked for on the PATH (Debian: package elastix).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fail() { echo "error: $1" >&2; exit 2; }
[ $# -ge 3 ] || fail "give DATASET FOLDER RUNS; the usage is at the top of scripts/elastix_samples.sh"
dataset=$1 folder=$2 runs=$3
shift 3
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "RUNS must be a whole number above 0, not '$runs'"
for program in elastix transformix; do
  command -v $program >/dev/null || fail "$program is not on the PATH: apt install elastix"
done
fixed=$(echo "$dataset"/derivatives/*/tpl-*/tpl-*_T1w.nii.gz)
[ -f "$fixed" ] || fail "$dataset: does not hold exactly one fixed image derivatives/*/tpl-*/tpl-*_T1w.nii.gz; make phantom makes a dataset"
if [ $# -eq 0 ]; then
  for path in "$dataset"/sub-*; do set -- "$@" "${path##*/sub-}"; done
fi

for subject in "$@"; do
  moving=$(echo "$dataset/sub-$subject"/anat/*_T1w.nii.gz)
  [ -f "$moving" ] || fail "$dataset/sub-$subject: has no image anat/*_T1w.nii.gz"
  for run in ieee $(seq -f %02g "$runs"); do
    unit=$folder/sample-$run/sub-$subject
    [ ! -d "$unit" ] || continue
    if [ "$run" = ieee ]; then mode=nearest seed=0; else mode=random seed=$((10#$run)); fi
    work=$unit.partial
    rm -rf "$work"
    mkdir -p "$work"
    "$here/with_verrou.sh" --region process --mode $mode --seed $seed --log "$work/verrou.log" -- \
      elastix -f "$fixed" -m "$moving" -p "$here/elastix/affine.txt" -p "$here/elastix/bspline.txt" -out "$work" -threads 1 \
      >"$work/elastix.txt" || fail "elastix ended with status $?; see $work/elastix.txt"
    transformix -def all -tp "$work/TransformParameters.1.txt" -out "$work" -threads 1 >"$work/transformix.txt" ||
      fail "transformix ended with status $?; see $work/transformix.txt"
    mv "$work/deformationField.nii.gz" "$work/warp.nii.gz"
    mv "$work/result.1.nii.gz" "$work/moved.nii.gz"
    mv "$work" "$unit"
    echo "$unit"
  done
done
