#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Has the compiler of a preset read, with all warnings as errors, every source that was not built
# there: each header alone, the documentation's code, the program and its tests, the examples and the
# benchmarks. No code is made, which saves time.
#
# Environment: PRESET (default: clang-check); JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PRESET=${PRESET:-clang-check}
source scripts/build.sh

configure -D RESSVD_BUILD_BENCH=ON >/dev/null
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
