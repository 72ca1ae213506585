#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What .ci/run leaves out, some hours on two cores: optimised tests, long tests of the CUDA stand-in,
# 50 killed runs, whole builds with both compilers with and without sanitizers, threads,
# every header by both compilers, the site, analysis, coverage, and fuzzing.
#
#   scripts/nightly.sh [SECONDS]         of fuzzing for each target (default: 600)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/steps.sh
export UNITY=OFF # each source by itself

threads() {
  cmake --preset tsan && cmake --build --preset tsan --parallel && ctest --preset tsan
}
headers() {
  cmake --build "build/$1" --parallel --target ressvd_headers ressvd_odr
}

step "dependencies" bash scripts/install_dependencies.sh build ci fuzz bench coverage analysis site
step "tests, default compiler, -O2, long tests, 50 kills" env PRESET=nightly bash tests/run.sh
for preset in gcc-debug clang-debug; do
  step "tests, AddressSanitizer and UBSan, $preset" \
    env PRESET=$preset OPTIONS="-D RESSVD_CUDA=OFF" bash tests/run.sh
done
step "tests and benchmarks, clang++" \
  env PRESET=clang-release OPTIONS="-D RESSVD_BUILD_BENCH=ON" bash tests/run.sh
for preset in nightly clang-release; do
  step "every header alone, $preset" headers "$preset"
done
step "threads, ThreadSanitizer" threads
step "packing for a machine with a GPU" bash scripts/device_check.sh
step "site" cmake --build build/nightly --target ressvd_docs
step "analysis" bash scripts/analyse.sh
step "coverage" bash scripts/coverage.sh
step "fuzz targets, ${1:-600} s each" bash scripts/fuzz.sh "${1:-600}"

report
