# SPDX-License-Identifier: Apache-2.0
#
# Sourced from the repository's root: build [CMake options] configures and builds $PRESET.
# Sets build_dir and jobs.
preset=${PRESET:-release}
build_dir=build/$preset
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}

build() {
  # The generator of an existing build stays as it is.
  if [ ! -f "$build_dir/CMakeCache.txt" ] && [ -z "${CMAKE_GENERATOR:-}" ] &&
    command -v ninja >/dev/null; then
    export CMAKE_GENERATOR=Ninja
  fi
  cmake --preset "$preset" "$@"
  cmake --build "$build_dir" --parallel "$jobs"
}
