#!/usr/bin/env bash
# Runs fuzz targets, one after the other: scripts/fuzz.sh BUILD_FOLDER RUNS TARGET...
# Each starts from its seeds, its findings and what earlier runs have grown in BUILD_FOLDER/corpus; an input that fails is left in
# BUILD_FOLDER/failed, and the script ends with libFuzzer's exit code.
set -euo pipefail
build=$1
runs=$2
shift 2
here=$(cd "$(dirname "$0")/../tests/fuzz" && pwd)
# The targets write their input to a file; in memory that costs little.
[[ -d /dev/shm && -z ${TMPDIR:-} ]] && export TMPDIR=/dev/shm
for target in "$@"; do
  mkdir -p "$build/corpus/$target" "$build/failed"
  folders=("$build/corpus/$target" "$here/seeds/$target")
  [[ -d $here/found/$target ]] && folders+=("$here/found/$target")
  dict=$here/json.dict
  longest=16384
  if [[ $target == chat_template ]]; then
    dict=$here/jinja.dict
    longest=4096
  fi
  echo "fuzz: $target, $runs inputs"
  "$build/tests/fuzz/fuzz_$target" -runs="$runs" -dict="$dict" -max_len="$longest" -timeout=30 -rss_limit_mb=4096 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="$build/failed/$target-" "${folders[@]}"
done
