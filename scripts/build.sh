# shellcheck shell=bash disable=SC2119,SC2120
# SPDX-License-Identifier: Apache-2.0
#
# Sourced from the repository's root. Sets preset, build_dir and jobs, and defines
#   configure [CMake options]
#   compile [targets]            (all without any)
# Environment: UNITY=OFF compiles each source by itself.
preset=${PRESET:-release}
build_dir=build/$preset
# With ccache, one checkout's objects serve another.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
# What ccache wants for precompiled headers.
export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}

configure() {
  local first=()
  # An existing build keeps what it was configured with.
  if [ ! -f "$build_dir/CMakeCache.txt" ]; then
    # Sources in batches take 0.6 of the time that they take one by one.
    first=(-D CMAKE_UNITY_BUILD="${UNITY:-ON}" -D CMAKE_UNITY_BUILD_BATCH_SIZE=6)
    if [ -z "${CMAKE_GENERATOR:-}" ] && command -v ninja >/dev/null; then
      export CMAKE_GENERATOR=Ninja
    fi
  fi
  cmake --preset "$preset" "${first[@]}" "$@"
}

compile() {
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  cmake --build "$build_dir" --parallel "$jobs" "${targets[@]}"
}
