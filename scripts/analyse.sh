#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Static analysis: clang-tidy (14) with .clang-tidy over the headers of the library and the sources
# of the program, and cppcheck over the same. Any finding fails.
#
#   scripts/analyse.sh [tidy|cppcheck] [SOURCE...]      (default: both, all sources)
#
# Environment: ANALYSIS_DIR (default: build/analysis), JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=(tidy cppcheck)
case ${1:-} in
  tidy | cppcheck)
    tools=("$1")
    shift
    ;;
esac
sources=("$@")
bash scripts/install_dependencies.sh build analysis
PRESET=analysis
source scripts/build.sh
build_dir=${ANALYSIS_DIR:-$build_dir}

tidy() {
  # The build is needed only for its database of commands. The examples include every header of the
  # library, and the second one instantiates the methods.
  configure -B "$build_dir" >/dev/null
  local files=("${sources[@]}")
  if [ ${#files[@]} -eq 0 ]; then
    mapfile -t files < <(git ls-files 'src/*.cpp' 'examples/*.cpp' | grep -v _cuda)
  fi
  printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$jobs" clang-tidy -p "$build_dir" --quiet
}

cppcheck_all() {
  local files=("${sources[@]}")
  if [ ${#files[@]} -eq 0 ]; then
    mapfile -t files < <(git ls-files 'include/*.hpp' 'examples/*.cpp')
  fi
  # Structs of a few numbers are passed by value.
  cppcheck --enable=warning,performance,portability --error-exitcode=1 --inline-suppr --quiet \
    --suppress=passedByValue \
    --std=c++20 --language=c++ -I include -I examples/ressvd-llm -j "$jobs" "${files[@]}"
}

status=0
for tool in "${tools[@]}"; do
  if [ "$tool" = tidy ]; then
    tidy || status=1
  else
    cppcheck_all || status=1
  fi
done
[ $status -ne 0 ] || echo "nothing found"
exit $status
