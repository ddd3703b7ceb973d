#!/usr/bin/env bash
# usage: scripts/in_container.sh [--read PATH]... [--write PATH]... -- COMMAND [ARGUMENTS]
#        scripts/in_container.sh --image-id | --dry-run ...
# Runs a command in the image that `make docker` builds, as you, without a network, the image itself read-only. Paths are
# the same inside as outside; the command sees those that are named and can write only those after --write.
# The engine is $CONTAINER: docker, podman or apptainer, else the first of them on this machine; the image is $IMAGE
# (default: morphbits; for apptainer a file, default: morphbits.sif, made by
#   docker save morphbits -o morphbits.tar && apptainer build morphbits.sif docker-archive:morphbits.tar).
# --image-id prints what identifies the image, or fails; --dry-run prints the command.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }

reads=() writes=() action=run
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --read) reads+=("${2-}"); shift 2 || fail "--read needs a path" ;;
    --write) writes+=("${2-}"); shift 2 || fail "--write needs a path" ;;
    --image-id) action=id; shift ;;
    --dry-run) action=print; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    *) fail "$1: unknown option; the usage is at the top of scripts/in_container.sh" ;;
  esac
done
[ "${1-}" = -- ] && shift

engine=${CONTAINER-}
for candidate in docker podman apptainer; do
  [ -z "$engine" ] && command -v "$candidate" >/dev/null && engine=$candidate
done
case $engine in
  docker | podman | apptainer) ;;
  '') fail "no docker, podman or apptainer on this machine" ;;
  *) fail "CONTAINER must be docker, podman or apptainer, not '$engine'" ;;
esac
command -v "$engine" >/dev/null || [ $action = print ] || fail "$engine: is not on this machine"
image=${IMAGE:-morphbits}
[ "$engine" != apptainer ] || image=${IMAGE:-morphbits.sif}

image_id() {
  if [ "$engine" = apptainer ]; then echo "sha256:$(sha256sum "$image" | cut -d ' ' -f 1)"; return; fi
  "$engine" image inspect --format '{{.Id}}' "$image"
}
if [ $action = id ]; then image_id; exit; fi
[ $# -gt 0 ] || fail "no command given after --"
for path in "${reads[@]}" "${writes[@]}"; do
  [[ $path = /* && $path != *:* && $path != *,* ]] || fail "'$path': a mounted path must be absolute, without ':' and ','"
done
for path in "${reads[@]}"; do [ -e "$path" ] || fail "$path: is not there"; done
[ $action = print ] || for path in "${writes[@]}"; do mkdir -p "$path"; done

# What the command runs in, for the record of what it makes (morphbits/provenance.py).
if [ $action = print ]; then id=ID; else id=$(image_id) || fail "$image: there is no such image; 'make docker' builds it"; fi

# Unique: a container outlives its client when that is killed, and must not stand in the way of the next.
name=morphbits-$$-$(date +%s%N)
if [ "$engine" = apptainer ]; then
  command=(apptainer exec --containall --cleanenv --no-home --writable-tmpfs --pwd /opt/morphbits
    --env "MORPHBITS_IMAGE=$id")
  for path in "${reads[@]}"; do command+=(--bind "$path:$path:ro"); done
  for path in "${writes[@]}"; do command+=(--bind "$path:$path"); done
else
  command=("$engine" run --rm --interactive --name "$name" --network none --read-only --tmpfs /tmp:exec
    --cap-drop ALL --security-opt no-new-privileges --user "$(id -u):$(id -g)"
    --env "MORPHBITS_IMAGE=$id")
  [ "$engine" != podman ] || command+=(--userns keep-id)
  for path in "${reads[@]}"; do command+=(--volume "$path:$path:ro"); done
  for path in "${writes[@]}"; do command+=(--volume "$path:$path"); done
fi
command+=("$image" "$@")
if [ $action = print ]; then
  printf '%q ' "${command[@]}" | sed "s/$name/morphbits-UNIQUE/"
  echo
  exit
fi
# In the background, so that ending this script ends the container; and standard input is kept.
status=0
"${command[@]}" <&0 &
child=$!
trap '[ "$engine" = apptainer ] || "$engine" kill "$name" >/dev/null 2>&1; kill -TERM $child 2>/dev/null || true' TERM INT HUP
wait $child || status=$?
exit $status
