#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Line coverage of include/ressvd: measured with g++ and gcov in a build of its own, summed over all
# instances of a template. The LAPACK backend counts where LAPACKE is installed, the CUDA backend
# where the CUDA toolkit is too: its tests run on tests/cuda_stand_in, without a device. The report
# names what does not count. Fails below the threshold.
#
#   scripts/coverage.sh [PERCENT]        (default: 95)
#
# Environment: COVERAGE_DIR (default: build/coverage), JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
threshold=${1:-95}
bash scripts/install_dependencies.sh build coverage
PRESET=coverage
source scripts/build.sh
build_dir=${COVERAGE_DIR:-$build_dir}

configure -B "$build_dir" >/dev/null
programs=(ressvd_tests_host ressvd_tests_threads ressvd_tests_cpu)
left_out=()
targets=$(cmake --build "$build_dir" --target help)
# count BACKEND PROGRAM...: with those programs, or not at all.
count() {
  local backend=$1
  shift
  for program in "$@"; do
    if ! grep -q "$program" <<<"$targets"; then
      left_out+=("$backend")
      return
    fi
  done
  programs+=("$@")
}
count lapack ressvd_tests_lapack
count cuda ressvd_tests_cuda_stand_in ressvd_tests_cuda_host

compile "${programs[@]}"
find "$build_dir" -name '*.gcda' -delete
for program in "${programs[@]}"; do
  tests=()
  # The same tests that ctest knows of this program, see tests/CMakeLists.txt.
  [ "$program" != ressvd_tests_cuda_stand_in ] || tests=("~[long]~[torture]")
  "$build_dir/bin/$program" "${tests[@]}"
done
exclude=()
for backend in "${left_out[@]}"; do
  echo "Left out, for want of its libraries: the $backend backend"
  exclude+=(--exclude "include/ressvd/(backend/)?$backend")
done
gcovr --root . --object-directory "$build_dir" --filter 'include/ressvd/' "${exclude[@]}" \
  --fail-under-line "$threshold" "$build_dir"
