#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks what can be told of a source by looking at its text: a licence line, include guards, the
# length of the library's headers, nothing left to do. Prints each breach and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
longest=450

status=0
breach() {
  echo "$1"
  status=1
}

list() { git ls-files --cached --others --exclude-standard -- "$@"; }

while IFS= read -r file; do
  head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || breach "$file: no SPDX line"
done < <(list '*.cpp' '*.hpp' '*.h' '*.c' '*.sh' '*.py' '*.cmake' '*CMakeLists.txt' .ci/run)

while IFS= read -r file; do
  grep -q '^#pragma once$' "$file" || breach "$file: no #pragma once"
done < <(list '*.hpp')

while IFS= read -r file; do
  lines=$(wc -l <"$file")
  [ "$lines" -le $longest ] || breach "$file: $lines lines, more than $longest"
done < <(list 'include/*.hpp' 'include/*.h')

# The words are split, so that this line is no breach.
if list | grep -v -E '\.(svg|safetensors|model|npy)$' | tr '\n' '\0' |
  xargs -0 grep -n -I -w -E 'TO''DO|FIX''ME'; then
  breach "something is left to do"
fi
exit $status
