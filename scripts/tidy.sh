#!/usr/bin/env bash
# Runs clang-tidy 14 over the C++ sources of src/ and apps/, with the headers they include, and fails on any finding. What includes
# CUDA's headers (src/cuda but none.cc) is left out: clang 14 does not know them, and a CPU build does not compile it.
#   scripts/tidy.sh BUILD_DIR [FILE...]     BUILD_DIR holds compile_commands.json; FILE: instead of all
set -euo pipefail
cd "$(dirname "$0")/.."

tidy=${CLANG_TIDY:-clang-tidy-14}
build=${1:?usage: scripts/tidy.sh BUILD_DIR [FILE...]}
shift
files=("$@")
[[ ${#files[@]} -gt 0 ]] || mapfile -t files < <(find src apps -name '*.cc' -not -path 'src/cuda/*' -o -path src/cuda/none.cc | sort)

# The build's flags may be g++'s. clang-tidy also counts on stderr what it kept silent about (system headers): dropped.
options=(-p "$build" --quiet --extra-arg=-Wno-unknown-warning-option)
status=0
printf '%s\0' "${files[@]}" |
  xargs -0 -n 1 -P "${TIDY_JOBS:-$(nproc)}" "$tidy" "${options[@]}" \
    2> >(grep -Ev '^[0-9]+ warnings? generated' >&2) || status=1
if [[ $status -ne 0 ]]; then
  echo "clang-tidy: findings above; .clang-tidy says which checks run and why" >&2
  exit 1
fi
echo "clang-tidy: ${#files[@]} files without findings"
