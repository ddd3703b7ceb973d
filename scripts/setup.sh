#!/usr/bin/env bash
# usage: [PYTHON=python3.12] [TORCH=cpu|cuda] [CC=gcc] scripts/setup.sh
# Makes .venv from the lock files and compiles the native kernels; does nothing where that is done.
#
# The environment grows in .cache/venv-<key of locks, Python and torch build>, and .venv is a link that is set to it when it
# is complete: a setup that fails or is killed leaves the environment that worked, and the next one starts afresh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME
export CC=${CC:-gcc} PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

readonly torch_index=https://download.pytorch.org/whl/cpu
readonly log=.cache/setup.log
readonly version='import sys; print("%d.%d" % sys.version_info[:2])'

fail() { echo "error: $1" >&2; exit 1; }
say() { echo "setup: $*"; }

# the last thing that pip complained of, for the one line that the user sees
reason() { grep -E '^ *ERROR: ' "$log" | tail -n 1 | sed 's/^ *ERROR: *//' || true; }

# prints the first Python that will do
find_python() {
  local candidate found seen=
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    found=$("$candidate" -c "$version" 2>/dev/null) || continue
    case $found in 3.11 | 3.12 | 3.13) command -v "$candidate"; return ;; esac
    seen+="${seen:+, }$candidate is $found"
  done
  fail "Python 3.11, 3.12 or 3.13 is needed (${seen:-no ${PYTHON:-python3} found}): 'apt install python3 python3-venv'\
 on Debian 12, 13 or Ubuntu 24.04, or name one: make setup PYTHON=/path/to/python3.12"
}

check_compiler() {
  command -v "$CC" >/dev/null ||
    fail "no C compiler ($CC): 'apt install gcc libc6-dev', or name one: make setup CC=/path/to/gcc"
  printf '#include <math.h>\n#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' |
    "$CC" -fopenmp -x c - -o .cache/compiler-check -lm 2>>"$log" ||
    fail "the C compiler ($CC) does not build a small OpenMP program (see $log): 'apt install gcc libc6-dev'"
  rm -f .cache/compiler-check
}

# install <what is being installed> <pip arguments>: hash-checked wheels, exactly those listed
install() {
  local what=$1
  shift
  # no byte code: Python writes what is imported, when it is imported
  "$new/bin/python" -m pip install --no-deps --only-binary :all: --no-compile --progress-bar off "$@" >>"$log" 2>&1 && return
  if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
    fail "$what: a downloaded file is not the one in the lock file (see $log); is there a package mirror in between?"
  fi
  fail "$what could not be installed: $(reason) (see $log); check the network and the disk, then 'make setup' again"
}

# leaves the checked wheel in $new/torch
download_cpu_torch() {
  local requirement download="$new/torch" wheel name sum
  requirement=$(grep -E '^torch==' python/torch.lock)
  fetch() { "$new/bin/python" -m pip download --no-deps --only-binary :all: --progress-bar off -d "$download" "$requirement" "$@" >>"$log" 2>&1; }
  # first where your pip looks anyway, then PyTorch's index, which no other package is asked of
  fetch --retries 1 || fetch --index-url "$torch_index" --timeout 15 --retries 1 ||
    fail "no CPU build of torch (${requirement#*==}) from your pip's indexes or $torch_index (see $log): check the network,\
 name a folder that holds the wheel (PIP_FIND_LINKS), or take the CUDA build of several GB: make setup TORCH=cuda"
  wheel=$(echo "$download"/*.whl)
  name=$(basename "$wheel")
  sum=$(sha256sum "$wheel" | cut -d' ' -f1)
  if ! grep -q "  $name\$" python/torch.lock; then
    say "python/torch.lock does not list $name yet; its sha256 is $sum"
  elif ! grep -q "^$sum  $name\$" python/torch.lock; then
    fail "$name is not the file that python/torch.lock lists (its sha256 is $sum): a damaged or changed download"
  fi
}

mkdir -p .cache
exec 9>.cache/setup.lock
flock 9 # a second make waits here, and then finds everything done

torch=${TORCH:-$(cat .venv/.torch 2>/dev/null || echo cpu)}
case $torch in cpu) locks=(requirements torch) ;; cuda) locks=(requirements torch-cuda) ;;
  *) fail "TORCH=$torch: cpu or cuda" ;; esac
locks=("${locks[@]/#/python/}") && locks=("${locks[@]/%/.lock}")
if [ -z "${PYTHON:-}" ] && .venv/bin/python -c '' 2>/dev/null; then python=.venv/bin/python; else python=$(find_python); fi
key=$({ "$python" -c "$version"; cat "${locks[@]}"; } | sha256sum | cut -c1-12)
readonly new=.cache/venv-$key

kernels_changed() { [ -n "$(find python/morphbits/engines/native -name '*.[ch]' -newer .venv/.stamp -print -quit)" ]; }
if [ "$(readlink .venv || true)" = "$new" ] && [ -e .venv/.stamp ] && .venv/bin/python -c '' && ! kernels_changed &&
  [ -x .venv/bin/morphbits ]; then
  touch .venv/.stamp
  exit 0
fi

: >"$log"
check_compiler
if [ ! -e "$new/.complete" ]; then
  "$python" -c 'import ensurepip, venv' 2>>"$log" ||
    fail "$python has no venv module: 'apt install python$("$python" -c "$version")-venv'"
  rm -rf "$new"
  "$python" -m venv "$new" >>"$log" 2>&1 || fail "$python cannot make a virtual environment in $new (see $log)"
  say "Python $("$new/bin/python" -c "$version"), $(grep -c == python/requirements.lock) packages and torch ($torch), a minute or two"
  [ "$torch" = cuda ] || download_cpu_torch # first, because it is what may not be had
  install 'a package' --require-hashes -r python/requirements.lock
  if [ "$torch" = cuda ]; then
    # === takes exactly this version; == would also take a CPU build (2.13.0+cpu) that your pip finds
    install torch --require-hashes -r <(sed 's/^torch==/torch===/' python/torch-cuda.lock)
  else
    install torch "$new"/torch/*.whl
    rm -r "$new/torch"
  fi
  # the parts load; doing it here also leaves their byte code behind, which saves every first start ten seconds. TensorFlow
  # and torch's compiler do so in processes of their own: with torch's CUDA build, one that has both crashes
  for parts in \
    'datalad.api, h5py, matplotlib.pyplot, nibabel, nilearn.datasets, numpy, pytest, scipy.ndimage, scipy.stats' \
    'numpy, significantdigits, SimpleITK, tf_keras' \
    'numpy, torch, torch._dynamo, torch.fx.experimental.symbolic_shapes, torch.optim'; do
    env -u PYTHONDONTWRITEBYTECODE TF_USE_LEGACY_KERAS=1 "$new/bin/python" -c "import $parts" >>"$log" 2>&1 ||
      fail "the installed packages do not load: $(tail -n 1 "$log") (see $log)"
  done
  echo "$torch" >"$new/.torch"
  touch "$new/.complete"
fi
if [ -e .venv ] && [ ! -L .venv ]; then
  aside=$(mktemp -d .venv-yours-XXXXXX)
  mv -T .venv "$aside"
  say ".venv was not made by this script; it is now $aside"
fi
ln -sfn "$new" .venv
# what a training or a matrix still runs in goes with a later setup
in_use() { grep -qsF "$(pwd -P)/$1/" /proc/[0-9]*/maps; }
for old in .cache/venv-*; do [ "$old" = "$new" ] || in_use "$old" || rm -rf "$old"; done

say "compiling the kernels"
# as a file: as a module it would import the whole engine first, which takes seconds and which the image has not copied yet
PYTHONPATH=python .venv/bin/python -P python/morphbits/engines/native/kernels/build.py >>"$log" 2>&1 ||
  fail "the kernels do not compile with $CC: $(tail -n 1 "$log") (see $log)"
# the command `morphbits`, of the clone that the environment is in
[ -x .venv/bin/morphbits ] || { cat >.venv/bin/morphbits && chmod +x .venv/bin/morphbits; } <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/python" "$here/../../../python/morphbits" "$@"
END
touch .venv/.stamp
say "done"
