// SPDX-License-Identifier: Apache-2.0
//
// What a program beside it that keeps every core busy costs the CPU backend: the time of small
// singular value decompositions and of a small layer's compression, with such a neighbour over
// alone. The numbers of threads are 1 and 0, the default. With fair shares `ratio` is 2 where the
// threads fill the machine and less where they do not; threads that wait for each other take more.
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

/// Long enough for the scheduler to share the cores out.
constexpr int repetitions = 20;

template <class F>
void compare(benchmark::State& state, F work) {
  const auto context =
      std::make_shared<host_context>(host_context_options{.threads = state.range(0)});
  eigen_backend<float> be(context);
  const auto repeated = [&] {
    for (int i = 0; i < repetitions; ++i)
      work(be);
  };
  repeated();
  double alone = 0;
  double beside = 0;
  for (auto _ : state) {
    alone += seconds_of(repeated);
    const neighbour other;
    beside += seconds_of(repeated);
  }
  state.counters["alone_ms"] =
      benchmark::Counter(1e3 / repetitions * alone, benchmark::Counter::kAvgIterations);
  state.counters["ratio"] = beside / alone;
}

BENCHMARK_CAPTURE(compare, svd_512x192_four_times, decompose)
    ->Arg(1)
    ->Arg(0)
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(compare, compress_768x288_four_times, compress)
    ->Arg(1)
    ->Arg(0)
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

} // namespace

BENCHMARK_MAIN();
