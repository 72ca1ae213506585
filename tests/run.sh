#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds and runs all tests. Fails on any failure.
#
#   bash tests/run.sh [arguments for ctest]
#
# Environment: PRESET, a name of CMakePresets.json (default: release); OPTIONS, for CMake, e.g.
# "-D RESSVD_CUDA=OFF"; TARGETS to build (default: all); JOBS (default: the number of processors).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/build.sh

bash scripts/install_dependencies.sh build
# shellcheck disable=SC2086
configure ${OPTIONS:-}
# shellcheck disable=SC2086
compile ${TARGETS:-}

results=$build_dir/results.xml
rm -f "$results"
status=0
ctest --test-dir "$build_dir" --parallel "$jobs" --output-on-failure --no-tests=error \
  --output-junit "$(pwd)/$results" "$@" || status=$?

count() { grep -m 1 -A 8 '<testsuite ' "$results" | grep -o "$1=\"[0-9]*\"" | head -n 1 | tr -dc 0-9; }
total=$(count tests)
failed=$(count failures)
skipped=$(($(count skipped) + $(count disabled)))
# What cannot run here: a line each, with the reason that the test gives first.
sed -n '/<testcase .*status="\(notrun\|disabled\)"/,/<\/testcase>/p' "$results" |
  sed -n 's/.*<testcase name="\([^"]*\)".*/\1/; T output; h; b; :output
          s/.*<system-out>\([^<]*\).*/: \1/; T; H; g; s/\n//; s/^/not run here: /p'
echo "$((total - failed - skipped)) passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] || exit 1
exit "$status"
