# shellcheck shell=bash disable=SC2119,SC2120
# SPDX-License-Identifier: Apache-2.0
#
# Sourced from the repository's root. Sets preset, build_dir and jobs, and defines
#   configure [CMake options]
#   compile [targets]            (all without any)
preset=${PRESET:-release}
build_dir=build/$preset
# With ccache, one checkout's objects serve another.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
# What ccache wants for precompiled headers.
export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}

configure() {
  # An existing build keeps its generator.
  if [ ! -f "$build_dir/CMakeCache.txt" ] && [ -z "${CMAKE_GENERATOR:-}" ] &&
    command -v ninja >/dev/null; then
    export CMAKE_GENERATOR=Ninja
  fi
  cmake --preset "$preset" "$@"
}

compile() {
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  cmake --build "$build_dir" --parallel "$jobs" "${targets[@]}"
}
