// SPDX-License-Identifier: Apache-2.0
//
// The decompositions behind a search over the number k of last layers: a model of 32 layers with
// one matrix each, 20 % overall, every feasible k.
//   uniform      each matrix once, at the rank of k = 32
//   factor_once  each matrix once, up to the largest rank any k needs, sliced for each k
//   refactor     each matrix anew for every k that compresses it
// with the residual stage of ResSVD for every rank (ressvd) or without it (svd_llm). Counter
// "of_uniform": the time over that of `uniform`, which runs layer by layer in turn with the others.
#include <string>
#include <vector>

#include "ressvd/layer_ratio/last_layers.hpp"
#include "ressvd/residual/residual_compensation.hpp"
#include "support.hpp"

namespace {

using namespace bench;

constexpr index_t layers = 32;
constexpr double overall_ratio = 0.2;

enum class how { uniform, factor_once, refactor };

/// The rank of each candidate k, k descending from all layers.
std::vector<std::pair<index_t, index_t>> candidates(index_t size) {
  std::vector<std::pair<index_t, index_t>> result;
  for (const layer_candidate& c : last_layer_candidates(layers, overall_ratio))
    result.emplace_back(c.layers, rank_for_ratio(size, size, c.ratio).rank);
  return result;
}

/// Decompositions of the matrix of one layer, counted from the last (1): the sum of the losses.
template <class B>
double decompose(B& be, const known_matrix& known, index_t from_last, how way, bool residual) {
  const auto w = known.a.view();
  const auto all = candidates(w.rows);
  double losses = 0;
  const auto finish = [&](const svd_basis<B>& basis, index_t rank) {
    losses += residual ? residual_compensation(be, w, basis, {.rank = rank}).residual_energy
                       : basis.truncation_loss(rank);
  };
  const auto basis_of = [&](index_t rank) {
    const index_t stage1 = residual ? intermediate_rank(w.rows, w.cols, {.rank = rank}) : rank;
    return truncated_svd(be, w, {}, {}, stage1);
  };
  if (way == how::uniform) {
    finish(basis_of(all.front().second), all.front().second);
    return losses;
  }
  const auto each_rank = [&](auto f) {
    for (const auto& [k, rank] : all) {
      if (k < from_last) break;
      f(rank);
    }
  };
  if (way == how::refactor) {
    each_rank([&](index_t rank) { finish(basis_of(rank), rank); });
    return losses;
  }
  const auto once = basis_of(all.front().second);
  if (!residual) {
    each_rank([&](index_t rank) { finish(once, rank); });
    return losses;
  }
  residual_stages<B> stages(be, w, once);
  each_rank([&](index_t rank) { losses += stages.at({.rank = rank}).residual_energy; });
  return losses;
}

template <class B>
void search(benchmark::State& state, B be, index_t size, how way, bool residual) {
  const known_matrix& known = known_matrix_of(spectrum::layer, size, size);
  double seconds = 0;
  double uniform_seconds = 0;
  double losses = 0;
  for (auto _ : state) {
    losses = 0;
    double time = 0;
    for (index_t layer = 1; layer <= layers; ++layer) {
      if (way != how::uniform) {
        uniform_seconds += seconds_of([&] { decompose(be, known, layer, how::uniform, residual); });
      }
      time += seconds_of([&] { losses += decompose(be, known, layer, way, residual); });
    }
    state.SetIterationTime(time);
    seconds += time;
  }

  // Every loss is that of its rank, up to the tolerance of the factorisation and float's rounding
  // beside the outliers.
  double expected = 0;
  for (index_t layer = 1; layer <= layers; ++layer) {
    for (const auto& [k, rank] : candidates(size)) {
      if (k < layer || (way == how::uniform && k < layers)) break;
      expected += known.optimum(residual ? intermediate_rank(size, size, {.rank = rank}) : rank);
    }
  }
  if (!(losses >= 0.99 * expected && losses <= 1.01 * expected)) {
    return state.SkipWithError("the losses are wrong");
  }
  state.counters["of_uniform"] = way == how::uniform ? 1 : seconds / uniform_seconds;
}

void add_all() {
  for (const index_t size : {512, 1024}) {
    for_each_backend([&]<class B>(const B& be) {
      for (const bool residual : {false, true}) {
        for (const how way : {how::uniform, how::factor_once, how::refactor}) {
          if (way == how::refactor && size > 512) continue; // minutes
          const std::string name = std::string(residual ? "ressvd/" : "svd_llm/") +
                                   (way == how::uniform       ? "uniform/"
                                    : way == how::factor_once ? "factor_once/"
                                                              : "refactor/") +
                                   name_of(be) + "/" + std::to_string(size);
          benchmark::RegisterBenchmark(
              name.c_str(),
              [=](benchmark::State& state) { search(state, be, size, way, residual); })
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond)
              ->Iterations(1);
        }
      }
    });
  }
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  return bench::run(argc, argv);
}
