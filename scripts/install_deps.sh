#!/usr/bin/env bash
# Installs the Debian packages that are missing, and does nothing at all when none is.
#   scripts/install_deps.sh build     what building, testing and running need
#   scripts/install_deps.sh python    what building and testing the Python package need (torch.compile compiles C++ for Python)
#   scripts/install_deps.sh fuzz      what fuzzing needs beside what building does
#   scripts/install_deps.sh check     what the format and tidy checks need beside that
# With root or sudo it calls apt-get; without, it names what is missing and stops. On a system without dpkg it leaves the
# choice to the reader and to CMake, which names each missing part.
set -euo pipefail

# Tools count by their command (command:package), so that a compiler or a CMake from elsewhere is taken as it is.
case ${1:-} in
  build)
    tools="g++:g++ cmake:cmake ninja:ninja-build pkg-config:pkg-config"
    libraries="nlohmann-json3-dev libpcre2-dev libcli11-dev libspdlog-dev libfmt-dev libgtest-dev libgmock-dev
               libbenchmark-dev"
    ;;
  python)
    tools="g++:g++ cmake:cmake ninja:ninja-build python3:python3"
    libraries="python3-venv python3-dev"
    ;;
  fuzz)
    tools="clang++-14:clang-14"
    libraries="libclang-rt-14-dev"
    ;;
  check)
    tools="clang-format-14:clang-format-14 clang-tidy-14:clang-tidy-14"
    libraries=""
    ;;
  *)
    echo "usage: scripts/install_deps.sh build|python|fuzz|check" >&2
    exit 2
    ;;
esac

missing=()
for tool in $tools; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
if command -v dpkg-query >/dev/null; then
  for package in $libraries; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
  done
elif [[ ${#missing[@]} -gt 0 ]]; then
  echo "Missing: ${missing[*]} (Debian's names; this system has no dpkg, so please install them yourself)" >&2
  exit 1
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "Missing Debian packages: ${missing[*]}" >&2
    echo "This needs root: neither root nor sudo is at hand. As root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

update() { "${as_root[@]}" apt-get -qq update </dev/null; }
install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y --no-install-recommends install "${missing[@]}" </dev/null >/dev/null
}

echo "Installing Debian packages: ${missing[*]}"
# A fresh container has no package lists, and old lists name files that are gone: either way, renew them once.
apt-get -qq --simulate install "${missing[@]}" </dev/null >/dev/null 2>&1 || update
install || { update && install; }
