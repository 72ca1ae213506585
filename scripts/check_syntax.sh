#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Has clang++ read, with all warnings as errors, every source that the preset clang-check did not
# build: each header alone, the documentation's code, the examples, the benchmarks and what belongs to
# CUDA and LAPACK. No code is made, which saves time.
#
# Environment: JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PRESET=clang-check
source scripts/build.sh

configure -D RESSVD_BUILD_BENCH=ON -D RESSVD_CUDA=AUTO -D RESSVD_LAPACK=AUTO -D RESSVD_SANITIZE= \
  -D RESSVD_TEST_BACKENDS= >/dev/null
python3 - "$build_dir/compile_commands.json" <<'PYTHON' | xargs -0 -n 1 -P "$jobs" bash -c
import json, os, re, sys

read = 0
for entry in json.load(open(sys.argv[1])):
    command, folder = entry["command"], entry["directory"]
    target = re.search(r" -o (\S+) ", command).group(1)
    if "cmake_pch" in target or os.path.exists(os.path.join(folder, target)):
        continue
    # A precompiled header that was not built is read as text.
    command = re.sub(r"-Xclang -include-pch -Xclang \S+", "", command)
    command = re.sub(r" -o \S+ ", " -fsyntax-only ", command)
    print(f"cd '{folder}' && {command}", end="\0")
    read += 1
print(f"{read} sources", file=sys.stderr)
PYTHON
