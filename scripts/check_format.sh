#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks the C++ sources against .clang-format (clang-format 14; other versions differ in details).
# With --fix it formats them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=$(command -v clang-format-14 || command -v clang-format) || {
  echo "clang-format is not installed" >&2
  exit 1
}
mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard '*.cpp' '*.hpp')
if [ "${1:-}" = --fix ]; then
  "$tool" -i "${files[@]}"
  exit
fi

# A comparison, since --dry-run reports the closing comments of inline namespaces that it would
# leave as they are.
status=0
for file in "${files[@]}"; do
  "$tool" "$file" | diff -u --label "$file" --label "$file, formatted" "$file" - || status=1
done
exit $status
