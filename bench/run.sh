#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds the benchmarks and writes one JSON file for each of them.
#
#   bash bench/run.sh [name...]                     (default: all)
#   OUT=directory ARGUMENTS="--benchmark_filter=4096" bash bench/run.sh
#
# The figures are medians of five repetitions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/build.sh

bash scripts/install_dependencies.sh build bench
configure -D RESSVD_BUILD_BENCH=ON
out=${OUT:-$build_dir/bench-results}
mkdir -p "$out"

if [ $# -eq 0 ]; then
  compile
  for program in "$build_dir"/bin/bench_*; do # without CUDA there are fewer
    set -- "$@" "${program##*/bench_}"
  done
else
  compile "${@/#/bench_}"
fi
for name in "$@"; do
  # shellcheck disable=SC2086
  "$build_dir/bin/bench_$name" --benchmark_repetitions=5 --benchmark_report_aggregates_only=true \
    --benchmark_out_format=json --benchmark_out="$out/$name.json" ${ARGUMENTS:-}
done
echo "Results: $out"
