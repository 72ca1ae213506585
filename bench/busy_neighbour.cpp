// SPDX-License-Identifier: Apache-2.0
//
// What a program beside it that keeps every core busy costs the CPU backend: the time of four
// singular value decompositions and of a few steps of a compression, with such a neighbour over
// alone (`ratio`; with fair shares of the machine 2, or more than that where threads wait for each
// other). The numbers of threads are 1 and the default.
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "support.hpp"

namespace {

using namespace bench;

/// Keeps every core busy while it lives.
class neighbour {
 public:
  neighbour() {
    for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i)
      threads_.emplace_back([this] {
        while (!done_) {
        }
      });
  }
  neighbour(const neighbour&) = delete;
  neighbour& operator=(const neighbour&) = delete;
  ~neighbour() {
    done_ = true;
    for (std::thread& thread : threads_)
      thread.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::vector<std::thread> threads_;
};

void decompose(eigen_backend<float>& be) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    auto w = be.allocate(512, 192);
    auto u = be.allocate(512, 192);
    std::vector<double> values(192);
    be.random_normal(w, seed);
    be.svd(w, values, u);
  }
}

/// Gram, whitening and four weights that read the same input, as in a small layer.
void compress(eigen_backend<float>& be) {
  auto x = be.allocate(288, 2048);
  be.random_normal(x, 1);
  gram_accumulator sums(be, 288);
  sums.add(x, token_order::features_by_tokens);
  calibration input(be, std::move(sums));
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    auto w = be.allocate(768, 288);
    be.random_normal(w, seed);
    benchmark::DoNotOptimize(input.compress(w, methods::ressvd{}, at_ratio(0.4)));
  }
}

template <class F>
void compare(benchmark::State& state, F work) {
  const auto context =
      std::make_shared<host_context>(host_context_options{.threads = state.range(0)});
  eigen_backend<float> be(context);
  work(be);
  double alone = 0;
  double beside = 0;
  for (auto _ : state) {
    alone += seconds_of([&] { work(be); });
    const neighbour other;
    beside += seconds_of([&] { work(be); });
  }
  state.counters["alone_ms"] = benchmark::Counter(1e3 * alone, benchmark::Counter::kAvgIterations);
  state.counters["ratio"] = beside / alone;
}

BENCHMARK_CAPTURE(compare, svd_512x192_four_times, decompose)
    ->Arg(1)
    ->Arg(0)
    ->Iterations(10)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(compare, compress_768x288_four_times, compress)
    ->Arg(1)
    ->Arg(0)
    ->Iterations(10)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

} // namespace

BENCHMARK_MAIN();
