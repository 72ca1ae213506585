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
mode=(--dry-run -Werror)
[ "${1:-}" != --fix ] || mode=(-i)
git ls-files -z --cached --others --exclude-standard '*.cpp' '*.hpp' |
  xargs -0 -r "$tool" --style=file "${mode[@]}"
