#!/usr/bin/env bash
# Runs fuzz targets, one after the other: scripts/fuzz.sh BUILD_FOLDER RUNS TARGET...
# Each starts from its seeds, its findings and what earlier runs have grown in BUILD_FOLDER/corpus. An input that fails is left in
# BUILD_FOLDER/failed, and the script ends with libFuzzer's exit code; a target that ends clean gets a line in BUILD_FOLDER/fuzz.csv.
set -euo pipefail
build=$1
runs=$2
shift 2
here=$(cd "$(dirname "$0")/../tests/fuzz" && pwd)
# The targets write their input to a file; in memory that costs little.
[[ -d /dev/shm && -z ${TMPDIR:-} ]] && export TMPDIR=/dev/shm
mkdir -p "$build/failed" "$build/log"
for target in "$@"; do
  mkdir -p "$build/corpus/$target"
  folders=("$build/corpus/$target" "$here/seeds/$target")
  [[ -d $here/found/$target ]] && folders+=("$here/found/$target")
  dict=$here/json.dict
  longest=16384
  if [[ $target == chat_template ]]; then
    dict=$here/jinja.dict
    longest=4096
  fi
  log=$build/log/$target
  echo "fuzz: $target, $runs inputs"
  "$build/tests/fuzz/fuzz_$target" -runs="$runs" -dict="$dict" -max_len="$longest" -timeout=30 -rss_limit_mb=4096 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="$build/failed/$target-" "${folders[@]}" >"$log" 2>&1 ||
    { status=$?; tail -40 "$log" >&2; exit "$status"; }
  [[ -s $build/fuzz.csv ]] || echo "target,inputs,inputs_kept,peak_rss_mb,date,commit" >"$build/fuzz.csv"
  stat() { sed -n "s/^stat::$1: *//p" "$log"; }
  echo "$target,$(stat number_of_executed_units),$(stat new_units_added),$(stat peak_rss_mb),$(date -u +%F),$(git -C "$here" describe --always)" |
    tee -a "$build/fuzz.csv"
done
