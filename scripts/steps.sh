# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced from the repository's root by what runs many checks. A failed step does not stop the later
# ones. Defines
#   step NAME COMMAND...      runs the command and keeps its outcome and time
#   report                    prints them; fails when a step has failed
passed=0
failed=0
outcomes=""

step() {
  local name=$1 start=$SECONDS outcome=passed
  shift
  printf '\n==> %s\n' "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    outcome=FAILED
    failed=$((failed + 1))
  fi
  outcomes+=$(printf '%-64s %s  %5d s' "$name" "$outcome" $((SECONDS - start)))$'\n'
}

report() {
  printf '\n%s' "$outcomes"
  printf '%-64s         %5d s\n' "all" "$SECONDS"
  echo "steps: $passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}
