// SPDX-License-Identifier: Apache-2.0
//
// The factorisations and baselines of bench_truncated_svd on the layers of a real model: on W·S for
// each of its matrices W, S being the whitening of W's inputs on the model's own samples. One
// benchmark takes all layers and verifies their loss against singular values in double.
//
//   RESSVD_BENCH_MODEL=folder bench_model_layers      default: the model of the repository
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>

#include "compress/samples.hpp"
#include "cpu_baselines.hpp"
#include "io/error.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"
#include "ressvd/whitening/gram.hpp"
#include "ressvd/whitening/whitening.hpp"

namespace {

using namespace bench;
using namespace ressvd_llm;

using wide_backend = eigen_backend<double>;
using gram_sum = gram_accumulator<wide_backend>;

known_matrix whitened(const linear& weights, const whitening<eigen_backend<float>>& s) {
  eigen_backend<float> be;
  wide_backend be64;
  const auto values = weights.dense.values();
  const index_t m = weights.out();
  const index_t n = weights.in();
  auto w = be64.allocate(m, n);
  auto product = be64.allocate(m, s.factor.cols());
  be64.copy(row_major(values.data(), m, n), w);
  if (s.kind == metric_kind::triangular) {
    be64.trmm(side::right, op::none, s.factor, w, product);
  } else {
    be64.gemm(op::none, op::none, 1.0, w, s.factor, 0.0, product);
  }
  auto ws = be.allocate(m, product.cols());
  be.copy(product, ws);
  be64.copy(ws, product);
  auto sigma =
      truncated_svd(be64, product, {}, {}, 1, {.algorithm = svd_algorithm::exact}).singular_values;
  return {std::move(ws), std::move(sigma)};
}

using kind_of_matrix = ressvd_llm::projection;
using projections = std::vector<std::pair<kind_of_matrix, std::vector<known_matrix>>>;

/// Every projection's matrices of all layers.
projections whitened_layers(const language_model& model) {
  const model_config& config = model.config();
  compress_options options;
  options.samples = 32;
  options.seqlen = 256;
  options.heldout_samples = 0;
  const sample_set samples = make_samples(options, model).calibration;
  cpu_forward engine(config);
  std::vector<float> hidden(static_cast<std::size_t>(samples.tokens() * config.hidden_size));
  engine.embed(model.outer(), samples.ids, samples.length, hidden.data());

  projections result;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    std::map<std::size_t, std::optional<gram_sum>> sums; // by layer_input::index
    const input_observer add_to_sums = [&](const input_observation& seen) {
      auto& sum = sums[seen.input.index()];
      if (!sum) sum.emplace(wide_backend{}, seen.x.cols);
      sum->add(row_major(seen.x.host(), seen.x.rows, seen.x.cols));
    };
    engine.layer(model.layer(layer), hidden.data(), samples.tokens(), samples.length, &add_to_sums);
    for (const linear_module& module : linear_modules(config, layer)) {
      eigen_backend<float> be;
      auto& sum = sums[module.input.index()];
      if (!sum) continue; // an expert without tokens
      const auto s = whiten(be, sum->gram());
      auto of_kind = std::ranges::find(result, module.place.kind, &projections::value_type::first);
      if (of_kind == result.end()) {
        result.emplace_back(module.place.kind, std::vector<known_matrix>{});
        of_kind = result.end() - 1;
      }
      of_kind->second.push_back(whitened(model.layer(layer)[module.place], s));
    }
  }
  return result;
}

} // namespace

int main(int argc, char** argv) try {
  const char* const asked = std::getenv("RESSVD_BENCH_MODEL");
  const std::filesystem::path folder = asked != nullptr ? asked : RESSVD_BENCH_DEFAULT_MODEL;
  const std::string name = std::filesystem::canonical(folder).filename().string();
  const projections layers = whitened_layers(language_model::open(folder));
  for (const auto& layer : layers) {
    const std::span<const known_matrix> matrices = layer.second;
    const matrix_set set{name + ":" + std::string(ressvd_llm::name_of(layer.first)),
                         {matrices.front().a.rows(), matrices.front().a.cols()},
                         [=] { return matrices; }};
    for_each_backend([&](const auto& be) {
      add_factorings(be, set, true);
      for (const int percent : {20, 40, 60}) {
        const index_t rank = rank_at(set.size, percent);
        add(benchmark_name("automatic", bench::name_of(be), set) + "/" + std::to_string(percent),
            [=](benchmark::State& state) { factor(state, be, set, rank, {}); });
      }
    });
    add_baselines(set);
  }
  return run(argc, argv);
} catch (const std::exception& e) {
  std::cerr << "bench_model_layers: " << e.what() << '\n';
  return 1;
}
