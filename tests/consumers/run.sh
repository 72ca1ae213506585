#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Configures, builds and runs every consumer project, as strangers would write them.
#
#   tests/consumers/run.sh SOURCE BUILD CXX CUDA
#
# SOURCE: this repository; BUILD: where to work, kept between runs; CXX: the compiler;
# CUDA: ON when the toolkit is there.
set -euo pipefail
source=$1 build=$2 cxx=$3 cuda=$4
mkdir -p "$build"
prefix=$build/prefix

# quiet COMMAND...: its output only when it fails.
quiet() {
  "$@" >"$build/log" 2>&1 || {
    cat "$build/log" >&2
    echo "failed: $*" >&2
    exit 1
  }
}

# project NAME DIRECTORY [CMake options]: configures and builds it.
project() {
  local name=$1 directory=$2
  shift 2
  quiet cmake -S "$directory" -B "$build/$name" -D CMAKE_CXX_COMPILER="$cxx" "$@"
  quiet cmake --build "$build/$name"
}

# runs NAME COMMAND...: what the command prints behind the name; ends with it when it fails.
runs() {
  local name=$1 output
  shift
  output=$("$@")
  echo "$name: $output"
}

consumer() {
  local name=$1
  shift
  project "$name" "$source/tests/consumers/$name" "$@"
  runs "$name" "$build/$name/consumer"
}

rm -rf "$prefix"
project library "$source" -D RESSVD_BUILD_TESTS=OFF -D RESSVD_BUILD_EXAMPLES=OFF \
  -D RESSVD_BUILD_COMPILED=OFF -D CMAKE_INSTALL_PREFIX="$prefix"
quiet cmake --install "$build/library"

consumer add_subdirectory -D RESSVD_SOURCE_DIR="$source"
consumer fetch_content -D RESSVD_SOURCE_DIR="$source"
consumer find_package -D CMAKE_PREFIX_PATH="$prefix"
[ "$cuda" = OFF ] || consumer cuda -D CMAKE_PREFIX_PATH="$prefix"

if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH=$prefix/share/pkgconfig
  # shellcheck disable=SC2046
  quiet "$cxx" -std=c++20 $(pkg-config --cflags ressvd) "$source/tests/consumers/consumer.cpp" \
    -o "$build/pkg_config"
  runs pkg_config "$build/pkg_config"
else
  echo "pkg_config: skipped, there is no pkg-config"
fi
