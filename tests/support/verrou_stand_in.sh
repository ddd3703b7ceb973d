#!/usr/bin/env bash
# Stands in for `valgrind` where Verrou is not: answers --version, and prints the command and what it finds in the
# environment instead of running anything.
if [ "${*: -1}" = --version ]; then
  echo "${STAND_IN_VERSION-valgrind-3.26.0.verrou-2.7.0}"
  exit
fi
printf '%s\n' "$@" | sed "s|$MORPHBITS_VERROU|RUN|g"
env | grep -E '^(OMP_NUM_THREADS|TF_ENABLE_ONEDNN_OPTS|VERROU_|LD_PRELOAD)' | sed 's|=.*/interlibmath|=PREFIX/interlibmath|' | LC_ALL=C sort
if [ -n "${STAND_IN_STATUS-}" ]; then
  echo "==1== the end of the log" >"$MORPHBITS_VERROU/log"
  exit "$STAND_IN_STATUS"
fi
