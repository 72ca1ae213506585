#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the fuzz targets with clang++ and runs them, each for some seconds, from the seeds in
# tests/fuzz/corpus. A crash, a leak, an input that takes a minute or 2 GB fails the run and stays
# in build/fuzz/crashes. Inputs that were found stay in build/fuzz/corpus for the next run.
#
#   scripts/fuzz.sh SECONDS [TARGET...]
#
# Environment: JOBS (default: the number of processors) for the build; RUNS (default: JOBS), how many
# targets run at once; FUZZ_DIR (default: build/fuzz).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors gguf config index tokens tokenizer matrix_view)
bash scripts/install_dependencies.sh fuzz
PRESET=fuzz
source scripts/build.sh
build_dir=${FUZZ_DIR:-$build_dir}
configure -B "$build_dir" >/dev/null
compile "${targets[@]/#/fuzz_}"

run() {
  local target=$1 out=$build_dir/corpus/$1 words=()
  mkdir -p "$out"
  [ ! -f "tests/fuzz/$target.dict" ] || words=("-dict=tests/fuzz/$target.dict")
  "$build_dir/bin/fuzz_$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
    -max_len=4096 -print_final_stats=1 "${words[@]}" \
    -artifact_prefix="$build_dir/crashes/$target-" \
    "$out" "tests/fuzz/corpus/$target" >"$build_dir/$target.log" 2>&1
}

mkdir -p "$build_dir/crashes"
status=0
running=()
# Waits for the first of the running targets.
finish() {
  local target=${running[0]%%:*}
  if ! wait "${running[0]#*:}"; then
    status=1
    echo "$target failed:"
    grep -A 40 -m 1 -E '==[0-9]+==|ERROR|SUMMARY' "$build_dir/$target.log" || cat "$build_dir/$target.log"
  fi
  running=("${running[@]:1}")
}
for target in "${targets[@]}"; do
  run "$target" &
  running+=("$target:$!")
  [ ${#running[@]} -lt "${RUNS:-$jobs}" ] || finish
done
while [ ${#running[@]} -gt 0 ]; do
  finish
done

for target in "${targets[@]}"; do
  log=$build_dir/$target.log
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | tr -dc 0-9) || true
  printf '%-12s %12s executions, %s edges, %s inputs kept\n' "$target" "${executions:-?}" \
    "${edges:-?}" "$(find "$build_dir/corpus/$target" -type f | wc -l)"
done
exit $status
