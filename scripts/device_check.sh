#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Packs the tests and benchmarks of the CUDA backend for a machine with a GPU that has the run-time
# libraries of CUDA and nothing else, and writes the script that runs them there:
#
#   scripts/device_check.sh [FOLDER]        (default: build/device/check)
#   FOLDER/run.sh [OUT]                     there; OUT: where the report goes (default: FOLDER/report)
#
# A full round takes at most six minutes there: every step has a time limit, and report.txt comes
# last. The benchmarks stand beside PyTorch's routines where PyTorch is installed.
#
# Environment: JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build/device/check}
bash scripts/install_dependencies.sh build bench
PRESET=release
source scripts/build.sh
build_dir=build/device
# Any processor of the last ten years; nothing of the compiler's own libraries.
configure -B "$build_dir" -D RESSVD_NATIVE=OFF -D CMAKE_CXX_FLAGS="-march=x86-64-v3" \
  -D CMAKE_EXE_LINKER_FLAGS="-static-libstdc++ -static-libgcc" -D RESSVD_LAPACK=OFF \
  -D RESSVD_BUILD_BENCH=ON -D RESSVD_TEST_BACKENDS=cuda -D RESSVD_TEST_CONSUMERS=OFF >/dev/null
programs=(ressvd_tests_cuda bench_cuda 05_cuda_engine)
compile "${programs[@]}"

rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib"
for program in "${programs[@]}"; do
  strip -o "$folder/bin/$program" "$build_dir/bin/$program"
  # What a machine that runs CUDA programs lacks: all but the system's and CUDA's own libraries.
  ldd "$build_dir/bin/$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' |
    { grep -Ev '/(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|libcu|libnv|ld-linux)' || true; } |
    xargs -r cp -L -t "$folder/lib"
done
for library in "$folder"/lib/*; do
  [ ! -f "$library" ] || strip --strip-unneeded "$library"
done
cp bench/cuda_peers.py "$folder"

cat >"$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs what scripts/device_check.sh packed; see there.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out=${1:-report}
mkdir -p "$out"
# The CUDA libraries of a toolkit, or those that PyTorch brings.
paths=$(python3 - <<'PYTHON' 2>/dev/null
import glob, importlib.util
for name in ("nvidia", "torch"):
    spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations or []) if spec else []:
        print(*glob.glob(place + "/**/lib", recursive=True), sep=":", end=":")
PYTHON
)
export LD_LIBRARY_PATH=$PWD/lib:/usr/local/cuda/lib64:/usr/local/cuda/lib:${paths}${LD_LIBRARY_PATH:-}

# step SECONDS NAME COMMAND...: its output in OUT/NAME.txt, a line in the report.
step() {
  local limit=$1 name=$2 start=$SECONDS code=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
  case $code in
    0) verdict=passed ;;
    4 | 77) verdict="skipped: no CUDA device" ;;
    124 | 137) verdict="cut off after $limit s" ;;
    127) verdict="skipped: not installed" ;;
    *) verdict="FAILED ($code)" ;;
  esac
  if grep -q "skipped, there is no CUDA device" "$out/$name.txt"; then
    verdict="skipped: no CUDA device"
  fi
  printf '%-22s %-26s %4d s\n' "$name" "$verdict" $((SECONDS - start)) >>"$out/summary.txt"
}

bench() {
  local limit=$1 name=$2 filter=$3 repetitions=$4
  shift 4
  step "$limit" "bench_$name" bin/bench_cuda --benchmark_filter="$filter" \
    --benchmark_repetitions="$repetitions" --benchmark_report_aggregates_only=true \
    --benchmark_out="$out/$name.json" --benchmark_out_format=json "$@"
}

rm -f "$out/summary.txt"
step 5 device nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
bench 80 factorisations '^(projector|subspace|gram|exact|syevd|gesvd)/cuda/layer/4096x(4096|1024)' 2
bench 20 rectangular '^(projector|gram)/cuda/layer/(11008x4096|2048x2048)' 2
bench 30 low_rank_rows '^(low_rank|pivoted)_rows/cuda/bfloat16/(1|8)/(20|40|60)' 3
bench 40 low_rank '^(low_rank|pivoted)/cuda/(1|16|2048)/(20|40|60)' 1 --benchmark_min_time=0.1
bench 30 gram_sums '^gram_sum/cuda/bfloat16' 2
bench 80 whole_model '^llama_7b' 1
# Nothing of these is timed.
step 40 memcheck compute-sanitizer --tool memcheck --error-exitcode 1 bin/ressvd_tests_cuda \
  "svd gives singular values*,potrf*,factors by rows*,a pivoted pair by rows*" &
step 120 tests bin/ressvd_tests_cuda "~[long]" --durations yes &
step 15 engine bin/05_cuda_engine
wait
step 40 peers bash -c 'python3 -c "import torch" 2>/dev/null || exit 127; python3 cuda_peers.py'

{
  date -u
  cat "$out/device.txt"
  cat "$out/summary.txt"
  for part in tests memcheck; do
    printf '\n== %s\n' "$part"
    tail -n 40 "$out/$part.txt"
  done
  for part in bench_factorisations bench_rectangular bench_low_rank_rows bench_low_rank \
    bench_gram_sums bench_whole_model peers; do
    printf '\n== %s\n' "$part"
    grep -E '_median|/manual_time |ERROR|ms$|failed' "$out/$part.txt"
  done
} >"$out/report.txt" 2>&1
cat "$out/report.txt"
! grep -Eq 'FAILED|cut off' "$out/summary.txt"
RUN
chmod +x "$folder/run.sh"

bytes=$(du -sb "$folder" | cut -f 1)
echo "$folder: $((bytes / 1024)) KiB, libraries: $(ls "$folder/lib" | tr '\n' ' ')"
if [ "$bytes" -gt 31457280 ]; then
  echo "more than 30 MB" >&2
  exit 1
fi
