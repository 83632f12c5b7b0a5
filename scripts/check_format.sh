#!/usr/bin/env bash
# Fails on any C++ or CUDA file that clang-format 14 would change; with --fix, changes it.
# One version counts, because each breaks lines in its own way: 14 is in both Debian 12 and Ubuntu 24.04.
set -euo pipefail
cd "$(dirname "$0")/.."

formatter=${CLANG_FORMAT:-clang-format-14}
mode=(--dry-run -Werror)
[[ ${1:-} == --fix ]] && mode=(-i)

mapfile -t files < <(find include src apps python tests bench -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
"$formatter" "${mode[@]}" "${files[@]}"
echo "clang-format: ${#files[@]} files in order"
