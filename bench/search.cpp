// SPDX-License-Identifier: Apache-2.0
//
// The decompositions behind a search over the number k of last layers: a model of 32 layers with
// one matrix each, 20 % overall, every feasible k.
//   uniform      each matrix once, at the rank of k = 32
//   factor_once  each matrix once, for all the ranks that any k needs
//   refactor     each matrix anew for every k that compresses it
// with the residual stage of ResSVD for every rank (ressvd) or without it (svd_llm). Counter
// "of_uniform": the time over that of `uniform`, which runs layer by layer in turn with the others.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ressvd/layer_ratio/last_layers.hpp"
#include "ressvd/methods/svd.hpp"
#include "support.hpp"

namespace {

using namespace bench;

constexpr index_t layers = 32;
constexpr double overall_ratio = 0.2;

enum class how { uniform, factor_once, refactor };

/// ResSVD with the identity as metric: its losses are those of the truncated SVD.
struct plain_ressvd : methods::svd {
  std::optional<residual_plan> residual() const { return residual_plan{}; }
};

/// The rank of each candidate k that compresses this layer, counted from the last (1); k descends
/// from all layers.
std::vector<index_t> ranks_of(index_t size, index_t from_last, how way) {
  std::vector<index_t> result;
  for (const layer_candidate& c : last_layer_candidates(layers, overall_ratio)) {
    if (c.layers < (way == how::uniform ? layers : from_last)) break;
    result.push_back(rank_for_ratio(size, size, c.ratio).rank);
  }
  return result;
}

/// Decompositions of one matrix for these ranks: the sum of the losses.
template <class B, class Method>
double decompose(B& be, const known_matrix& known, const std::vector<index_t>& ranks, how way,
                 const Method& method) {
  calibration<B> input(be); // of which nothing is known
  const auto w = std::make_shared<const weight<B>>(be, known.a);
  double losses = 0;
  const auto factor = [&](const std::vector<index_t>& of) {
    const auto factored = input.factor(w, method, of);
    for (const index_t rank : of)
      losses += factored.weight_loss({.rank = rank}).absolute;
  };
  if (way != how::refactor) {
    factor(ranks);
  } else {
    for (const index_t rank : ranks)
      factor({rank});
  }
  return losses;
}

template <class B, class Method>
void search(benchmark::State& state, B be, index_t size, how way, const Method& method) {
  const known_matrix& known = known_matrix_of(spectrum::layer, size, size);
  double seconds = 0;
  double uniform_seconds = 0;
  double losses = 0;
  for (auto _ : state) {
    losses = 0;
    double time = 0;
    for (index_t layer = 1; layer <= layers; ++layer) {
      const auto seconds_by = [&](how by, double& sum) {
        const auto ranks = ranks_of(size, layer, by);
        return seconds_of([&] { sum += decompose(be, known, ranks, by, method); });
      };
      double ignored = 0;
      if (way != how::uniform) uniform_seconds += seconds_by(how::uniform, ignored);
      time += seconds_by(way, losses);
    }
    state.SetIterationTime(time);
    seconds += time;
  }

  // Every loss is that of its rank, up to the tolerance of the factorisation and float's rounding
  // beside the outliers.
  double expected = 0;
  for (index_t layer = 1; layer <= layers; ++layer) {
    for (const index_t rank : ranks_of(size, layer, way))
      expected += known.optimum(rank);
  }
  if (!(losses >= 0.99 * expected && losses <= 1.01 * expected)) {
    return state.SkipWithError("the losses are wrong");
  }
  state.counters["of_uniform"] = way == how::uniform ? 1 : seconds / uniform_seconds;
}

void add_all() {
  for (const index_t size : {512, 1024}) {
    for_each_backend([&](const auto& be) {
      const auto add_method = [&](const std::string& name, const auto& method) {
        const auto add = [&](const char* way_name, how way) {
          benchmark::RegisterBenchmark(
              (name + "/" + way_name + "/" + name_of(be) + "/" + std::to_string(size)).c_str(),
              [=](benchmark::State& state) { search(state, be, size, way, method); })
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond)
              ->Iterations(1);
        };
        add("uniform", how::uniform);
        add("factor_once", how::factor_once);
        if (size <= 512) add("refactor", how::refactor); // else minutes
      };
      add_method("svd_llm", methods::svd{});
      add_method("ressvd", plain_ressvd{});
    });
  }
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  return bench::run(argc, argv);
}
