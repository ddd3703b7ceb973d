#!/usr/bin/env bash
# usage: scripts/with_sanitizers.sh COMMAND [ARGUMENTS]
# Runs a command whose native kernels are watched by AddressSanitizer and UndefinedBehaviorSanitizer: a library of its own,
# compiled by gcc when it is not there yet (minutes). What they find ends the process, with a report on stderr.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
[ $# -gt 0 ] || fail "no command given; the usage is at the top of scripts/with_sanitizers.sh"
runtime=$(gcc -print-file-name=libasan.so) # where gcc has none, the name alone
[[ $runtime = /* ]] || fail "gcc has no AddressSanitizer (libasan)"

export CC=gcc MORPHBITS_SANITIZE=1 UBSAN_OPTIONS=print_stacktrace=1
# leaks: Python and torch never free much of what they hold
export ASAN_OPTIONS=detect_leaks=0
# the sanitizer's malloc must be the process's; C++'s library with it, or an exception of torch's ends the process
LD_PRELOAD="$runtime $(gcc -print-file-name=libstdc++.so.6)" exec "$@"
