#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing of a list of Debian/Ubuntu packages.
#
#   scripts/install_dependencies.sh build|bench|ci|fuzz|coverage|analysis|site...
#
# As root or with sudo it installs; otherwise it prints the command and fails. Where there is no
# dpkg it prints what is needed and leaves the check to CMake. RESSVD_NO_INSTALL=1 skips it all.
set -euo pipefail

packages=()

# tool COMMAND PACKAGE: a command may have come from elsewhere, then the package is not needed.
tool() { command -v "$1" >/dev/null || packages+=("$2"); }

for purpose in "$@"; do
  case $purpose in
    build)
      packages+=(libeigen3-dev catch2 nlohmann-json3-dev libcli11-dev libsentencepiece-dev
        libpcre2-dev libutf8proc-dev liblapacke-dev libopenblas-dev)
      tool "${CXX:-c++}" g++
      tool cmake cmake
      tool ninja ninja-build
      tool pkg-config pkg-config
      ;;
    bench) packages+=(libbenchmark-dev liblapacke-dev libopenblas-dev) ;;
    site) tool doxygen doxygen ;;
    ci)
      packages+=(libomp-dev libbenchmark-dev)
      tool g++ g++
      tool clang++ clang
      tool clang-format-14 clang-format-14
      tool python3 python3
      ;;
    fuzz)
      packages+=(libeigen3-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libclang-rt-dev)
      tool pkg-config pkg-config
      tool clang++ clang
      tool cmake cmake
      ;;
    coverage)
      tool g++ g++
      tool gcovr gcovr
      ;;
    analysis)
      tool clang++ clang
      tool clang-tidy clang-tidy
      tool cppcheck cppcheck
      ;;
    *)
      echo "usage: $0 build|bench|ci|fuzz|coverage|analysis|site..." >&2
      exit 2
      ;;
  esac
done

if [ "${RESSVD_NO_INSTALL:-0}" = 1 ]; then
  exit 0
fi
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is no Debian or Ubuntu machine. Needed, under the names of their packages:" \
    "${packages[*]}" >&2
  exit 0
fi

missing=()
for package in $(printf '%s\n' "${packages[@]}" | sort -u); do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
  as_root=(env)
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
  as_root=(sudo env)
else
  echo "Missing packages, and no right to install them. As root, run:" >&2
  echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "Installing: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
  --no-install-recommends "${missing[@]}" >/dev/null
