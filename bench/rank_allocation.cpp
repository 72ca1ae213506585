// SPDX-License-Identifier: Apache-2.0
//
// Rank allocation of a whole model: matrices × singular values, one thread.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "ressvd/layer_ratio/rank_allocation.hpp"

namespace {

using ressvd::allocation_matrix;
using ressvd::index_t;

/// Spectra σ²_i = i^(−decay), the decay and the sensitivity varying from matrix to matrix.
struct synthetic_model {
  std::vector<double> singular_values;
  std::vector<allocation_matrix> matrices;

  synthetic_model(index_t count, index_t size) {
    std::mt19937_64 random{1};
    std::uniform_real_distribution<double> decay{0.5, 2.5};
    std::lognormal_distribution<double> sensitivity{0.0, 2.0};
    const auto length = static_cast<std::size_t>(size);
    singular_values.resize(static_cast<std::size_t>(count) * length);
    for (std::size_t j = 0; j < static_cast<std::size_t>(count); ++j) {
      const double exponent = -decay(random) / 2;
      double* const first = singular_values.data() + j * length;
      for (std::size_t i = 0; i < length; ++i)
        first[i] = std::pow(static_cast<double>(i + 1), exponent);
      matrices.push_back({.singular_values = {first, length},
                          .rows = j % 3 == 0 ? size * 11 / 4 : size,
                          .cols = size,
                          .sensitivity = sensitivity(random)});
    }
  }
};

void rank_allocation(benchmark::State& state) {
  const synthetic_model model{state.range(0), state.range(1)};
  const index_t budget =
      ressvd::uniform_budget(model.matrices, static_cast<double>(state.range(2)) / 100);
  ressvd::allocation result;
  for (auto _ : state) {
    result = ressvd::allocate_ranks(model.matrices, budget);
    benchmark::DoNotOptimize(result.loss);
  }
  state.counters["gap"] = (result.loss - result.loss_bound) / result.loss;
}

} // namespace

// 12 layers of 7 matrices, 32 layers of 7, and the size promised: 10 000 matrices × 4096 values.
BENCHMARK(rank_allocation)
    ->ArgNames({"matrices", "values", "ratio_percent"})
    ->Args({84, 192, 40})
    ->Args({224, 4096, 20})
    ->Args({224, 4096, 60})
    ->Args({10000, 4096, 20})
    ->Args({10000, 4096, 60})
    ->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();
