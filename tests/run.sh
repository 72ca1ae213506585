#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds and runs all tests. Fails on any failure.
#
#   bash tests/run.sh [arguments for ctest]
#   PRESET=gcc-debug bash tests/run.sh       (presets: see CMakePresets.json; default: release)
#   JOBS=4 bash tests/run.sh                 (default: the number of processors)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/build.sh

bash scripts/install_dependencies.sh build
configure
compile

results=$build_dir/results.xml
rm -f "$results"
status=0
ctest --test-dir "$build_dir" --parallel "$jobs" --output-on-failure --no-tests=error \
  --output-junit "$(pwd)/$results" "$@" || status=$?

count() { grep -m 1 -A 8 '<testsuite ' "$results" | grep -o "$1=\"[0-9]*\"" | head -n 1 | tr -dc 0-9; }
total=$(count tests)
failed=$(count failures)
skipped=$(($(count skipped) + $(count disabled)))
echo "$((total - failed - skipped)) passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] || exit 1
exit "$status"
