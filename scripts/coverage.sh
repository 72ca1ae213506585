#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Line coverage of include/ressvd, the CUDA backend left out, by the tests on the CPU: measured with
# g++ and gcov in a build of its own, summed over all instances of a template. Fails below the
# threshold.
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
compile "${programs[@]}"
find "$build_dir" -name '*.gcda' -delete
for program in "${programs[@]}"; do
  OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 "$build_dir/bin/$program"
done
gcovr --root . --object-directory "$build_dir" --filter 'include/ressvd/' \
  --exclude 'include/ressvd/backend/(cuda|lapack)' --fail-under-line "$threshold" "$build_dir"
