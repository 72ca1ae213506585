#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds the program and compresses the model in examples/models at
# several ratios with several methods, calibrated on text that the model writes itself. Reports,
# models and, where Python has matplotlib, charts are left in build/demo. Fails on any failure.
#
# Environment: as for tests/run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/build.sh

bash scripts/install_dependencies.sh build
# shellcheck disable=SC2086
configure ${OPTIONS:-}
compile ressvd-llm

export program=$build_dir/bin/ressvd-llm
export model=examples/models/bytes-llama-2m
export out=build/demo
ratios=(0.2 0.3 0.4)
methods=(svd asvd svd-llm ressvd)
rm -rf "$out"
mkdir -p "$out"

echo "Writing samples"
calibration=16
heldout=16
"$program" sample "$model" "$out/samples.u16" --samples $((calibration + heldout)) --seqlen 256

# Name and options of every run.
runs() {
  local ratio method
  for ratio in "${ratios[@]}"; do
    for method in "${methods[@]}"; do
      echo "$method-$ratio-uniform --ratio $ratio --method $method --last-layers all"
      echo "$method-$ratio-last --ratio $ratio --method $method --last-layers auto --step 2" \
        "--search-samples 8"
    done
    echo "tempered-$ratio --ratio $ratio --method tempered --power 0.6 --allocation sensitivity" \
      "--probe-samples 4"
  done
}

compress() {
  local name=$1
  shift
  # The model is small: one thread each, several at once. 255 makes xargs stop.
  "$program" compress "$model" "$out/$name" --json "$out/$name.json" --threads 1 "$@" \
    >"$out/$name.log" 2>&1 || {
    echo "$name failed" >&2
    cat "$out/$name.log" >&2
    exit 255
  }
}
export -f compress

echo "Compressing ($(runs | wc -l) runs)"
runs | sed "s|\$| --calibration $out/samples.u16 --windows first --samples $calibration --seqlen 256 \
--heldout-samples $heldout|" |
  xargs -P "$jobs" -L 1 bash -c 'compress "$@"' compress

"$program" compare "$model" "$out"/{svd,asvd,svd-llm,ressvd}-0.4-uniform \
  "$out/tempered-0.4" --samples 8 --seed 1 --seqlen 256 --threads 1 \
  --json "$out/compare.json" >"$out/compare.txt"

show() {
  printf '\n%s writes:\n' "$1"
  "$program" generate "$1" --prompt "Once upon a time there was a king who" --tokens 240 \
    --seed 2 --threads 1
}
show "$model"
show "$out/ressvd-0.4-last"

mapfile -t reports < <(runs | sed "s|^\([^ ]*\) .*|$out/\1.json|")
printf '\n'
"$program" table "${reports[@]}"

if python3 -c 'import matplotlib' 2>/dev/null; then
  plot() {
    python3 examples/plot.py "$@"
  }
  for ratio in "${ratios[@]}"; do
    plot search "$out"/*-"$ratio"-last.json -o "$out/error_against_k-$ratio.svg"
  done
  plot ratio "${reports[@]}" -o "$out/perplexity_against_ratio.svg"
  plot ranks "$out/tempered-0.4.json" -o "$out/kept_by_layer-0.4.svg"
  plot errors "$out/compare.json" -o "$out/layer_errors.svg"
  printf '\nCharts:\n'
  ls "$out"/*.svg
else
  printf '\nNo charts: examples/plot.py needs matplotlib.\n'
fi
