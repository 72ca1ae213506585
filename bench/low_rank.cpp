// SPDX-License-Identifier: Apache-2.0
//
// y = U(V·x) against y = W·x, 4096 × 4096 in float. Counters: speedup, the dense time over the
// low-rank one; of_ideal, its share of the ratio of parameters, which is that of the flops (large
// batches) and of the bytes read (batch 1).
#include "support.hpp"

namespace {

using namespace bench;

constexpr index_t size = 4096;

template <class B>
void apply_pair(benchmark::State& state, B be, index_t batch, int percent) {
  const auto rank = static_cast<index_t>((100 - percent) / 100.0 * size / 2);
  low_rank<float> pair{be.allocate(size, rank), be.allocate(rank, size)};
  auto x = be.allocate(size, batch);
  auto y = be.allocate(size, batch);
  be.random_normal(pair.u.ref(), 1);
  be.random_normal(pair.v.ref(), 2);
  be.random_normal(x.ref(), 3);
  const auto input = std::as_const(x).view();
  double seconds = 0;
  for (auto _ : state) {
    const double time = seconds_of([&] { apply(be, pair, input, y.view()); });
    state.SetIterationTime(time);
    seconds += time;
  }
  seconds /= static_cast<double>(state.iterations());
  // (Ux')ᵀy for x' = V·x, against the same without the library's apply.
  auto held = be.allocate(rank, batch);
  auto check = be.allocate(size, batch);
  be.gemm(op::none, op::none, 1.0f, pair.v.ref(), x.ref(), 0.0f, held.ref());
  be.gemm(op::none, op::none, 1.0f, pair.u.ref(), held.ref(), 0.0f, check.ref());
  const double energy = be.dot(check.ref(), check.ref());
  be.add(-1.0f, y.ref(), check.ref());
  if (!(be.dot(check.ref(), check.ref()) <= 1e-8 * energy)) state.SkipWithError("y is wrong");
  const double speedup = gemm_seconds(be, size, size, batch) / seconds;
  const double ideal = static_cast<double>(size) / static_cast<double>(2 * rank);
  state.counters["speedup"] = speedup;
  state.counters["of_ideal"] = speedup / ideal;
}

void add_all() {
  for_each_backend([&]<class B>(const B& be) {
    for (const index_t batch : {1, 16, 256, 2048}) {
      for (const int percent : {20, 40, 60, 80}) {
        const std::string name = std::string("low_rank/") + name_of(be) + "/" +
                                 std::to_string(batch) + "/" + std::to_string(percent);
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { apply_pair(state, be, batch, percent); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  });
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
