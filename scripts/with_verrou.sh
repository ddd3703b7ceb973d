#!/usr/bin/env bash
# usage: scripts/with_verrou.sh [options] -- PROGRAM [ARGUMENTS]
# Runs a program under Valgrind's tool Verrou; nothing else in this suite starts Valgrind. PROGRAM must be a real executable
# (a Python, not a script that starts one: Verrou would follow the script and not the program). Any other program than a
# Python, as elastix, has no markers: give --region process.
#   --mode MODE        random, nearness, upward, downward, toward_zero or nearest    [random]
#   --seed N           of the random roundings                                        [1]
#   --region REGION    registration: only between the markers; process: everything    [registration]
#   --libm LIBM        perturbed: libm's results are rounded by the mode, by Interlibmath (Verrou's own from 2.6 on, before
#                      it in LD_PRELOAD as the study did); excluded: they are not    [perturbed]
#   --onednn on|off    TensorFlow's kernels: oneDNN's as users run them, or its own   [on]
#   --exclude FILE     more exclusions, in the format of verrou/exclusions
#   --symbols FILE     write there every symbol whose operations are perturbed
#   --log FILE         keep Verrou's log there, with the counts of perturbed operations
#   --localize         keep VERROU_* variables: verrou_dd_* steers its runs with them
#   --describe         print what can change the result (versions, exclusions, …) and run nothing
#   --dry-run          print the command and run nothing
# Verrou is looked for in $VERROU_PREFIX, else where `valgrind` is. Its log goes to standard error when the program fails.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() { echo "error: $1" >&2; exit 2; }

# Who starts this with its process id in MORPHBITS_PARENT, as a training does, ends it when it dies (morphbits/parent.py).
if [ -n "${MORPHBITS_PARENT-}" ]; then
  if [ "${MORPHBITS_TIED-}" != $$ ]; then MORPHBITS_TIED=$$ exec setpriv --pdeathsig TERM "${BASH_SOURCE[0]}" "$@"; fi
  [ "$PPID" = "$MORPHBITS_PARENT" ] || exit 143
  export MORPHBITS_PARENT=$$
fi

mode=random seed=1 region=registration libm=perturbed onednn=on exclude='' symbols='' log='' localize='' action=run
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --mode | --seed | --region | --libm | --onednn | --exclude | --symbols | --log)
      [ $# -gt 1 ] || fail "$1 needs a value; the usage is at the top of scripts/with_verrou.sh"
      printf -v "${1#--}" %s "$2"; shift 2 ;;
    --localize) localize=1; shift ;;
    --describe) action=describe; shift ;;
    --dry-run) action=print; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    *) fail "$1: unknown option; the usage is at the top of scripts/with_verrou.sh" ;;
  esac
done
[ "${1-}" = -- ] && shift
[ $# -gt 0 ] || fail "no program given after --"

# one_of OPTION VALUE ALLOWED...
one_of() {
  local option=$1 value=$2 word; shift 2
  for word in "$@"; do [ "$word" = "$value" ] && return; done
  fail "$option must be one of $*, not '$value'"
}
one_of --mode "$mode" random nearness upward downward toward_zero nearest
one_of --region "$region" registration process
one_of --libm "$libm" perturbed excluded
one_of --onednn "$onednn" on off
[[ $seed =~ ^[0-9]+$ ]] || fail "--seed must be a whole number, not '$seed'"

if [ -n "${VERROU_PREFIX-}" ]; then
  prefix=$VERROU_PREFIX
else
  found=$(command -v valgrind) || fail "Valgrind with Verrou is not on this machine: 'make docker' builds an image with it,\
 or name its folder: VERROU_PREFIX=/path/to/verrou"
  prefix=$(cd "$(dirname "$(readlink -f "$found")")/.." && pwd)
fi
valgrind=$prefix/bin/valgrind
[ -x "$valgrind" ] || fail "$valgrind: is not there; VERROU_PREFIX must name the folder that Verrou was installed to"
version=$("$valgrind" --tool=verrou --version 2>/dev/null) || version=$("$valgrind" --version)
release=$(sed -nE 's/.*verrou-([0-9]+\.[0-9]+).*/\1/p' <<<"$version")
[ -n "$release" ] || fail "$valgrind: is $version, without the tool Verrou; 'make docker' builds an image with it,\
 or name its folder: VERROU_PREFIX=/path/to/verrou"

program=$(command -v -- "$1") || fail "$1: no such program"
if [ "$(head -c 4 -- "$program" | tr -d '\0')" != $'\x7fELF' ]; then
  fail "$program: is a script that starts another program, which would run unperturbed; name the real executable"
fi
shift
python=$program
if [[ ${program##*/} != python* ]]; then
  [ "$region" = process ] || fail "$program: is not a Python and has no markers: give --region process"
  python=$here/.venv/bin/python
  [ -x "$python" ] || python=$(command -v python3) || fail "there is no Python to read the exclusions: make setup"
fi

before_26=$([ "$(printf '%s\n' 2.6 "$release" | sort -V | head -n 1)" = 2.6 ] || echo 1)
interlibmath=$prefix/lib/interlibmath.so
preload=$([ "$libm" = excluded ] || [ -z "$before_26" ] || echo "$interlibmath")
[ -z "$preload" ] || [ -e "$preload" ] ||
  fail "$preload: is not there; build it in Verrou's folder Interlibmath, or use --libm excluded"

# what one run needs, gone with it: the log, the exclusions with their real paths, the markers
# A run's folder is locked for as long as one of its processes lives, on whichever machine or in whichever container.
for old in "${TMPDIR:-/tmp}"/morphbits-verrou.*; do # of runs that were killed; a new one may not have its lock yet
  [ ! -O "$old" ] || [ -n "$(find "$old" -maxdepth 0 -mmin -1)" ] || ! flock --nonblock "$old" true || rm -rf "$old"
done
work=$(mktemp -d "${TMPDIR:-/tmp}/morphbits-verrou.XXXXXX")
exec {lock}<"$work"
flock "$lock" || true # where there are no locks, nobody else gets one, and nothing is removed
trap 'rm -rf "$work"' EXIT
PYTHONPATH=$here/python "$python" -m morphbits.engines.verrou.exclusions "$here"/verrou/exclusions/*.tsv \
  ${exclude:+"$exclude"} >"$work/exclusions" || fail "the exclusions could not be resolved; is $python a Python of this suite?"
# Written as the process will read them: what can change a result, one per line.
cat >"$work/settings" <<END
version=$version
mode=$mode
seed=$seed
region=$region
libm=$libm
onednn=$onednn
exclusions=$(grep -v '^#' "$work/exclusions" | sort | sha256sum | cut -c 1-16)
END
if [ "$action" = describe ]; then
  cat "$work/settings"
  grep -v '^#' "$work/exclusions" | sed 's/^/exclude=/'
  exit
fi
if [ -e "$prefix/lib/morphbits-markers.so" ]; then
  ln -s "$prefix/lib/morphbits-markers.so" "$work/markers.so"
else
  ${CC:-cc} -shared -fPIC -O1 -I "$prefix/include" -o "$work/markers.so" "$here/verrou/markers.c" ||
    fail "verrou/markers.c could not be compiled: a C compiler and Verrou's headers in $prefix/include are needed"
fi

rounding=$mode
[ "$mode" != nearness ] || [ "$(printf '%s\n' 2.7 "$release" | sort -V | head -n 1)" = 2.7 ] || rounding=average
options=(
  --tool=verrou "--rounding-mode=$rounding" "--vr-seed=$seed" "--exclude=$work/exclusions"
  "--instr-atstart=$([ "$region" = process ] && echo yes || echo no)"
  --count-op=yes               # the proof that something was perturbed; costs about half as much again
  --check-nan=no --check-inf=no # the frameworks make both on purpose; each would be a report
  --trace-children=no --child-silent-after-fork=yes  # a child would repeat its parent's random numbers
  --error-limit=no --fair-sched=try "--log-file=$work/log"
)
[ -z "$symbols" ] || options+=("--gen-exclude=$symbols")
[ "$before_26" ] || options+=("--libm=$([ "$libm" = perturbed ] && echo instrumented || echo auto_exclude)")

# A VERROU_* variable left in the environment would override an option silently.
[ "$localize" ] || for name in "${!VERROU_@}"; do unset "$name"; done
# one thread: Valgrind runs one at a time, and another number would change the bytes
export MORPHBITS_VERROU=$work OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 PYTHONHASHSEED=0
TF_ENABLE_ONEDNN_OPTS=$([ "$onednn" = on ] && echo 1 || echo 0)
export TF_ENABLE_ONEDNN_OPTS PYTHONPATH=$here/python${PYTHONPATH:+:$PYTHONPATH}
command=("$valgrind" "${options[@]}")
if [ -n "$preload" ]; then
  command=(env "LD_PRELOAD=$preload" "VERROU_LIBM_ROUNDING_MODE=$rounding" "${command[@]}")
fi
command+=("$program" "$@")
if [ "$action" = print ]; then
  printf '%q ' "${command[@]}" | sed "s|$work|RUN|g"
  echo
  exit
fi
# In the background, so that ending this script ends Valgrind; and standard input is kept.
"${command[@]}" <&0 &
child=$!
trap 'kill -TERM $child 2>/dev/null || true' TERM INT HUP
while :; do # a signal ends wait before the program, which may still have something to save
  wait $child && status=0 || status=$?
  kill -0 $child 2>/dev/null || break
done
[ -z "$log" ] || cp -- "$work/log" "$log"
if [ "$status" -ne 0 ] && [ -s "$work/log" ]; then tail -n 20 "$work/log" >&2; fi
exit "$status"
