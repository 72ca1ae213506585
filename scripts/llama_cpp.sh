#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks what ressvd-llm writes with llama.cpp, built from the source package of llama-cpp-python:
#   - the perplexity of a dense GGUF file is the same in both programs, within 0.5 %
#   - an adapter lowers the perplexity of its quantised base
#
#   scripts/llama_cpp.sh PROGRAM MODEL TEXT [CALIBRATION [FOLDER]]
#
# PROGRAM: ressvd-llm. MODEL: a directory or a GGUF file whose tokenizer puts no token before a text.
# CALIBRATION: a text that is not TEXT (default: the model's own samples). FOLDER keeps the build
# (default: build/llama.cpp). Takes minutes to an hour; no other check runs it.
#
# Environment: PYTHON, JOBS (default: 1), RANK (default: 32), SAMPLES (default: 32), and
# LLAMA_PERPLEXITY: a program that is there already, as scripts/llama_perplexity.py is.
set -euo pipefail
program=$1 model=$2 text=$3 calibration=${4:-self}
folder=${5:-$(dirname "${BASH_SOURCE[0]}")/../build/llama.cpp}
python=${PYTHON:-python3}
window=512
mkdir -p "$folder"
theirs=${LLAMA_PERPLEXITY:-$folder/build/bin/llama-perplexity}

if [ ! -x "$theirs" ]; then
  "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python -d "$folder" llama-cpp-python
  tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
  # What is in C++ only sets up the products; nothing here is timed.
  cmake -S "$folder"/llama_cpp_python-*/vendor/llama.cpp -B "$folder/build" -D CMAKE_BUILD_TYPE=Release \
    -D CMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -D BUILD_SHARED_LIBS=OFF -D LLAMA_BUILD_TESTS=OFF \
    -D LLAMA_BUILD_EXAMPLES=OFF -D LLAMA_BUILD_SERVER=OFF -D LLAMA_BUILD_APP=OFF \
    -D LLAMA_OPENSSL=OFF
  nice -n 15 cmake --build "$folder/build" -j "${JOBS:-1}" --target llama-perplexity
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
their_perplexity() {
  "$theirs" -f "$text" -c $window "$@" 2>&1 | sed -n 's/^.*Final estimate: PPL = \([0-9.]*\).*/\1/p'
}
# Theirs predicts the second half of every window.
our_perplexity() {
  "$program" perplexity "$1" --text "$text" --seqlen $window --context $((window / 2)) |
    sed -n 's/^perplexity //p'
}

"$program" convert "$model" "$work/dense.gguf" --dtype f16
"$program" compress "$model" "$work/base.gguf" --format gguf-adapter --dtype q4_0 \
  --rank "${RANK:-32}" --calibration "$calibration" --samples "${SAMPLES:-32}" --seqlen $window \
  --heldout-samples 2
ours=$(our_perplexity "$work/dense.gguf")
dense=$(their_perplexity -m "$work/dense.gguf")
base=$(their_perplexity -m "$work/base.gguf")
corrected=$(their_perplexity -m "$work/base.gguf" --lora "$work/base.lora.gguf")
echo "windows of $window tokens, the second half of each predicted"
printf '%-36s %s\n' "F16, ressvd-llm" "$ours" "F16, llama.cpp" "$dense" "Q4_0, llama.cpp" "$base" \
  "Q4_0 with the adapter, llama.cpp" "$corrected"
"$python" - "$ours" "$dense" "$base" "$corrected" <<'PYTHON'
import sys
ours, dense, base, corrected = map(float, sys.argv[1:])
difference = abs(ours / dense - 1)
print(f"dense: {100 * difference:.3f} % apart")
sys.exit(difference > 0.005 or corrected >= base)
PYTHON
