// SPDX-License-Identifier: Apache-2.0
//
// y = U(V·x) against y = W·x in turn, 4096 × 4096 in float, on any backend. Counters: speedup, the
// dense time over the low-rank one; of_ideal, its share of the ratio of parameters, which is that
// of the flops (large batches) and of the bytes read (batch 1).
//
// pivoted: the pivoted form against the pair in turn, at the pair's rank and at its size. Counters:
// at_rank and at_size, the pair's time over the pivoted one's.
#pragma once

#include <string>

#include "support.hpp"

namespace bench {

inline constexpr index_t layer_size = 4096;

template <class B>
void apply_pair(benchmark::State& state, B be, index_t batch, int percent) {
  const auto rank = static_cast<index_t>((100 - percent) / 100.0 * layer_size / 2);
  low_rank<float, typename B::space> pair{be.allocate(layer_size, rank),
                                          be.allocate(rank, layer_size)};
  auto w = be.allocate(layer_size, layer_size);
  auto x = be.allocate(layer_size, batch);
  auto y = be.allocate(layer_size, batch);
  be.random_normal(pair.u, 1);
  be.random_normal(pair.v, 2);
  be.random_normal(x, 3);
  be.random_normal(w, 4);
  double seconds = 0;
  double dense_seconds = 0;
  for (auto _ : state) {
    dense_seconds += seconds_on(be, [&] { be.gemm(op::none, op::none, 1.0f, w, x, 0.0f, y); });
    const double time = seconds_on(be, [&] { apply(be, pair, x.view(), y.view()); });
    state.SetIterationTime(time);
    seconds += time;
  }
  // The same product without the library's apply checks the result.
  auto held = be.allocate(rank, batch);
  auto check = be.allocate(layer_size, batch);
  be.gemm(op::none, op::none, 1.0f, pair.v, x, 0.0f, held);
  be.gemm(op::none, op::none, 1.0f, pair.u, held, 0.0f, check);
  const double energy = be.dot(check, check);
  be.add(-1.0f, y, check);
  if (!(be.dot(check, check) <= 1e-8 * energy)) state.SkipWithError("y is wrong");
  const double speedup = dense_seconds / seconds;
  const double ideal = static_cast<double>(layer_size) / static_cast<double>(2 * rank);
  state.counters["speedup"] = speedup;
  state.counters["of_ideal"] = speedup / ideal;
}

template <class B>
low_rank<float, typename B::space> random_pair(B& be, index_t rank) {
  low_rank<float, typename B::space> pair{be.allocate(layer_size, rank),
                                          be.allocate(rank, layer_size)};
  be.random_normal(pair.u, 1);
  be.random_normal(pair.v, 2);
  return pair;
}

template <class B>
void apply_pivoted(benchmark::State& state, B be, index_t batch, int percent) {
  const double ratio = percent / 100.0;
  const auto pair = random_pair(be, at_ratio(ratio).choose(layer_size, layer_size).rank);
  const auto same_rank = pivot(be, pair).pair;
  const index_t larger =
      at_ratio(ratio, {.form = factored_form::pivoted}).choose(layer_size, layer_size).rank;
  const auto same_size = pivot(be, random_pair(be, larger)).pair;
  auto x = be.allocate(layer_size, batch);
  auto y = be.allocate(layer_size, batch);
  auto expected = be.allocate(layer_size, batch);
  be.random_normal(x, 3);
  double of_pair = 0;
  double at_rank = 0;
  double at_size = 0;
  for (auto _ : state) {
    of_pair += seconds_on(be, [&] { apply(be, pair, x.view(), expected.view()); });
    at_size += seconds_on(be, [&] { apply(be, same_size, x.view(), y.view()); });
    const double time = seconds_on(be, [&] { apply(be, same_rank, x.view(), y.view()); });
    state.SetIterationTime(time);
    at_rank += time;
  }
  const double energy = be.dot(expected, expected);
  be.add(-1.0f, y, expected);
  if (!(be.dot(expected, expected) <= 1e-8 * energy)) state.SkipWithError("y is wrong");
  state.counters["at_rank"] = of_pair / at_rank;
  state.counters["at_size"] = of_pair / at_size;
}

/// Registers every batch and ratio.
template <class B>
void add_low_rank(const B& be) {
  for (const index_t batch : {1, 8, 16, 256, 2048}) {
    for (const int percent : {20, 40, 60, 80}) {
      const std::string name = std::string("low_rank/") + name_of(be) + "/" +
                               std::to_string(batch) + "/" + std::to_string(percent);
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { apply_pair(state, be, batch, percent); })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
      benchmark::RegisterBenchmark(
          ("pivoted/" + name.substr(name.find('/') + 1)).c_str(),
          [=](benchmark::State& state) { apply_pivoted(state, be, batch, percent); })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

} // namespace bench
