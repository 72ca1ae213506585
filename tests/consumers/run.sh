#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Configures, builds and runs every consumer project, as strangers would write them, and tries what
# packaging/ and scripts/amalgamate.py make of the library.
#
#   tests/consumers/run.sh SOURCE BUILD CXX CUDA [PROGRAM]
#
# SOURCE: this repository; BUILD: where to work, kept between runs; CXX: the compiler;
# CUDA: ON when the toolkit is there; PROGRAM: the build folder in which ressvd-llm was built, or
# OFF.
set -euo pipefail
source=$1 build=$2 cxx=$3 cuda=$4 program=${5:-OFF}
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

# available NAME COMMAND: whether the command that a part needs is there; says so when it is not.
available() {
  command -v "$2" >/dev/null || {
    echo "$1: skipped, there is no $2"
    return 1
  }
}

quiet cmake -D SOURCE_DIR="$source" -P "$source/tests/consumers/versions.cmake"

rm -rf "$prefix"
project library "$source" -D RESSVD_BUILD_TESTS=OFF -D RESSVD_BUILD_EXAMPLES=OFF \
  -D CMAKE_INSTALL_PREFIX="$prefix" -D CMAKE_CXX_FLAGS_RELEASE="-O0 -DNDEBUG" # what links, not speed
quiet cmake --install "$build/library"

consumer add_subdirectory -D RESSVD_SOURCE_DIR="$source"
consumer fetch_content -D RESSVD_SOURCE_DIR="$source"
consumer find_package -D CMAKE_PREFIX_PATH="$prefix"
[ "$cuda" = OFF ] || consumer cuda -D CMAKE_PREFIX_PATH="$prefix"

if available pkg_config pkg-config; then
  export PKG_CONFIG_PATH=$prefix/share/pkgconfig
  # shellcheck disable=SC2046
  quiet "$cxx" -std=c++20 $(pkg-config --cflags --libs ressvd) "$source/tests/consumers/consumer.cpp" \
    -o "$build/pkg_config"
  runs pkg_config "$build/pkg_config"
fi

if available single_header python3; then
  rm -rf "$build/single"
  quiet python3 "$source/scripts/amalgamate.py" "$build/single/ressvd/ressvd.hpp"
  consumer single_header -D RESSVD_SINGLE_HEADER_DIR="$build/single"
fi

quiet cmake -D SOURCE_DIR="$source" -D WORK_DIR="$build/vcpkg_port" -D CXX="$cxx" \
  -P "$source/tests/consumers/vcpkg_port.cmake"
echo "vcpkg_port: installs what it should"

if available conan conan; then
  export CONAN_HOME=$build/conan CXX=$cxx
  quiet conan profile detect --force
  quiet conan create "$source/packaging/conan" --settings compiler.cppstd=20 \
    --options "&:with_system_eigen=True" \
    --conf tools.cmake.cmake_layout:test_folder="$build/conan_test"
  runs conan grep "G(2, 0)" "$build/log"
fi

if [ "$program" != OFF ]; then
  rm -rf "$build/program"
  quiet cmake --install "$program" --component tools --prefix "$build/program"
  runs ressvd-llm "$build/program/bin/ressvd-llm" --version
fi
