// SPDX-License-Identifier: Apache-2.0
//
// The compressor over the library's backend concept: from a layer's weights and the Grams of its
// inputs to bases, and from bases to factors.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/algorithms.hpp>

#include "compress/factoring.hpp"

namespace ressvd_llm {

// A matrix on a backend that was uploaded from row-major host values: held transposed,
// column-major.
template <ressvd::backend B>
class uploaded_matrix {
 public:
  uploaded_matrix(B& be, const float* values, std::int64_t rows, std::int64_t cols)
      : held_(be.allocate(cols, rows)) {
    be.upload({values, cols, rows, cols}, held_);
  }
  auto view() const { return held_.view().transposed(); }

 private:
  ressvd::matrix<float, typename B::space> held_;
};

template <ressvd::backend B>
class compressor_on final : public compressor {
  using space = typename B::space;
  using wide = ressvd::wide_backend<B>;
  using accumulator = ressvd::gram_accumulator<wide>;

 public:
  compressor_on(B be, const compress_options& options, std::optional<checkpoint> fisher)
      : be_(std::move(be)), options_(options), fisher_(std::move(fisher)) {}

  void temper(double power) override { power_ = power; }

  void observe(std::int64_t layer, input_group group, const float* x, std::int64_t tokens,
               std::int64_t features) override {
    auto& gram = observed_[static_cast<std::size_t>(group)];
    if (!gram) {
      gram.emplace(wide(be_), features,
                   ressvd::gram_options{.name = input_name(layer, group), .channel_means = true});
    }
    gram->add(uploaded_matrix<B>(be_, x, tokens, features).view());
  }

  void take(std::int64_t layer, input_group group, const ressvd::gram_state& state) override {
    observed_[static_cast<std::size_t>(group)] =
        accumulator::from_state(wide(be_), state, {.name = input_name(layer, group)});
  }

  factored_layer factor(std::int64_t index, const model_config& config,
                        const layer_weights& weights,
                        const std::vector<std::vector<std::int64_t>>& wanted) override {
    factored_layer result{.index = index, .similarity = 0, .matrices = {}};
    auto modules = linear_modules(config, index);
    std::optional<input_group> current;
    std::optional<ressvd::whitening<B>> reference; // of the Gram itself: for the activation loss
    std::optional<ressvd::whitening<B>> tempered;
    ressvd::matrix<double, space> means;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (current != modules[i].group) {
        if (current) observed_[static_cast<std::size_t>(*current)].reset();
        current = modules[i].group;
        reference.reset();
        tempered.reset();
      }
      factored_matrix m;
      m.module = std::move(modules[i]);
      if (!wanted[i].empty()) {
        if (!reference) {
          accumulator& gram = observed_[static_cast<std::size_t>(m.module.group)].value();
          reference = ressvd::whiten(be_, gram.gram());
          means = gram.mean_abs();
          if (options_.method == method::tempered) {
            tempered = ressvd::whiten_power(be_, gram.gram(), power_);
          }
        }
        factor_matrix(m, weights[m.module.kind], *reference, tempered ? *tempered : *reference,
                      means, wanted[i]);
      }
      result.matrices.push_back(std::move(m));
    }
    if (current) observed_[static_cast<std::size_t>(*current)].reset();
    return result;
  }

  linear slice(const factored_matrix& m, const linear& original, std::int64_t rank) override {
    return linear_of(sliced(m, original, rank), original);
  }

  void begin_shifted(const std::string& name, std::int64_t features, bool cross) override {
    shifted_.emplace(wide(be_), features,
                     ressvd::gram_options{.name = name, .cross_features = cross ? features : 0});
  }

  void observe_shifted(const float* x, const float* original, std::int64_t tokens,
                       std::int64_t features) override {
    const uploaded_matrix<B> shifted(be_, x, tokens, features);
    if (original == nullptr) {
      shifted_->add(shifted.view());
    } else {
      shifted_->add(shifted.view(), uploaded_matrix<B>(be_, original, tokens, features).view());
    }
  }

  void fit(layer_weights& weights, const factored_layer& bases,
           const std::vector<ressvd::rank_choice>& ranks, std::size_t first,
           std::size_t last) override {
    wide be64(be_);
    auto frame = be64.frame();
    const auto gram = shifted_->gram();
    const auto target = be64.scratch(gram.rows, gram.cols);
    be64.copy(gram.view(), target);
    if (const double mix = target_mix(options_); mix > 0) {
      be64.scale(1 - mix, target);
      be64.add(mix, shifted_->cross(), target);
    }
    std::optional<ressvd::whitening<B>> metric;
    if (options_.retruncate) {
      metric = options_.method == method::tempered
                   ? ressvd::whiten_power(be_, gram, power_)
                   : ressvd::whiten(be_, gram, {.ridge = options_.ridge});
    }
    for (std::size_t i = first; i < last; ++i) {
      if (ranks[i].dense) continue;
      const factored_matrix& m = bases.matrices[i];
      linear& original = weights[m.module.kind];
      const auto values = original.dense.values();
      const uploaded_matrix<B> w(be_, values.data(), m.module.out, m.module.in);
      const std::int64_t rank = ranks[i].rank;
      original = linear_of(metric ? truncated_fit(w.view(), gram, target, *metric, rank)
                                  : updated(sliced(m, original, rank), w.view(), gram, target),
                           original);
    }
    shifted_.reset();
  }

  fallback_report fallbacks() const override {
    if constexpr (requires { be_.context()->report.fallbacks; }) {
      const auto& report = be_.context()->report;
      return {.count = report.fallbacks, .last = report.last_fallback};
    } else {
      return {};
    }
  }

 private:
  using view = ressvd::matrix_view<const float, space>;
  using pair = ressvd::low_rank<float, space>;
  using wide_block = ressvd::block<const double, space>;

  static std::string input_name(std::int64_t layer, input_group group) {
    return "layer " + std::to_string(layer) + ", input of " + std::string(name_of(group));
  }

  // W' and its best truncation for the shifted inputs.
  pair truncated_fit(const view& w, wide_block gram, wide_block target,
                     const ressvd::whitening<B>& metric, std::int64_t rank) {
    const auto fitted = ressvd::shifted_weights(be_, w, gram, target, options_.ridge);
    const auto basis =
        ressvd::truncated_svd(be_, fitted.view(), {}, metric.metric(), {.rank = rank});
    return ressvd::slice(be_, fitted.view(), basis, rank);
  }

  // Closed-form updates of the factors.
  pair updated(pair factors, const view& w, wide_block gram, wide_block target) {
    const int rounds = options_.method == method::adasvd ? options_.adasvd_iterations : 1;
    for (int round = 0; round < rounds; ++round) {
      ressvd::update_left(be_, w, factors, gram, target);
      if (options_.method == method::adasvd) ressvd::update_right(be_, w, factors);
    }
    return factors;
  }

  // The pair as the linear layer that takes the place of `original`.
  linear linear_of(const pair& factors, const linear& original) {
    return make_linear(weight_matrix(factors.rows(), factors.rank(), row_major_values(factors.u)),
                       weight_matrix(factors.rank(), factors.cols(), row_major_values(factors.v)),
                       original.bias);
  }

  pair sliced(const factored_matrix& m, const linear& weights, std::int64_t rank) {
    const auto values = weights.dense.values();
    const uploaded_matrix<B> w(be_, values.data(), m.module.out, m.module.in);
    return sliced(m, w.view(), rank);
  }

  pair sliced(const factored_matrix& m, const view& w, std::int64_t rank) {
    const residual_stage* stage = m.stage_for(rank);
    if (options_.method == method::ressvd && stage == nullptr) return compensated(m, w, rank);
    const std::int64_t rows = m.basis_rows();
    const std::int64_t leading = stage != nullptr ? stage->intermediate_rank : rank;
    auto q = be_.allocate(rows, rank);
    be_.upload({m.q.data(), rows, leading, rows}, q.ref().left_cols(leading));
    if (leading < rank) {
      be_.upload({stage->q.data(), rows, rank - leading, rows},
                 q.ref().col_range(leading, rank - leading));
    }
    if (m.acts == ressvd::projection::left) return ressvd::project(be_, w, std::move(q));
    // Ŵᵀ = QQᵀWᵀ
    const auto transposed = ressvd::project(be_, w.transposed(), std::move(q));
    pair factors{be_.allocate(w.rows, rank), be_.allocate(rank, w.cols)};
    be_.copy(transposed.v.view().transposed(), factors.u.ref());
    be_.copy(transposed.u.view().transposed(), factors.v.ref());
    return factors;
  }

  // Both stages for a rank that was not known when the matrix was factored.
  pair compensated(const factored_matrix& m, const view& w, std::int64_t rank) {
    const ressvd::residual_options options{.rank = rank, .beta = options_.beta};
    const std::int64_t leading = ressvd::intermediate_rank(w.rows, w.cols, options);
    ressvd::svd_basis<B> stage1;
    stage1.q = be_.allocate(w.rows, leading);
    be_.upload({m.q.data(), w.rows, leading, w.rows}, stage1.q.ref());
    return ressvd::project(be_, w, ressvd::residual_compensation(be_, w, stage1, options).q);
  }

  void factor_matrix(factored_matrix& m, const linear& weights,
                     const ressvd::whitening<B>& reference, const ressvd::whitening<B>& metric,
                     const ressvd::matrix<double, space>& means,
                     const std::vector<std::int64_t>& ranks) {
    const auto start = std::chrono::steady_clock::now();
    const auto values = weights.dense.values();
    const uploaded_matrix<B> held(be_, values.data(), m.module.out, m.module.in);
    const view w = held.view();
    ressvd::calibration<B> data{.whitening = &metric, .mean_abs = means.ref()};
    const auto importance = row_importance(m.module);
    if (importance) data.row_importance = importance->ref();

    std::int64_t largest = 0;
    for (const std::int64_t rank : ranks) {
      largest = (std::max)(largest, options_.method == method::ressvd
                                        ? ressvd::intermediate_rank(
                                              w.rows, w.cols, {.rank = rank, .beta = options_.beta})
                                        : rank);
    }
    const auto basis = factor_basis(w, data, largest);
    m.acts = basis.acts;
    m.rank = basis.rank();
    m.q = to_host(basis.q);
    m.singular_values = basis.singular_values;
    m.svd = basis.report;
    m.whitening = metric.report;

    const double damping = reference.report.damping;
    m.weight_total = ressvd::weighted_energy(be_, w);
    m.activation_total =
        ressvd::weighted_energy(be_, w, reference.metric()) - damping * m.weight_total;
    m.weight_energies = ressvd::captured_energies(be_, w, basis);
    m.activation_energies = undamped(ressvd::captured_energies(be_, w, basis, reference.metric()),
                                     m.weight_energies, damping);
    if (options_.method == method::ressvd) {
      add_residual_stages(m, w, basis, ranks, reference);
    }
    m.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  ressvd::svd_basis<B> factor_basis(const view& w, const ressvd::calibration<B>& data,
                                    std::int64_t rank) {
    switch (options_.method) {
      case method::svd:
        return ressvd::methods::svd_basis_of(be_, w, rank);
      case method::fwsvd:
        return ressvd::methods::fwsvd_basis(be_, w, data, rank);
      case method::asvd:
        return ressvd::methods::asvd_basis(be_, w, data, rank, {.alpha = options_.asvd_alpha});
      case method::svd_llm:
      case method::adasvd:
      case method::ressvd:
      case method::tempered:
        break;
    }
    return ressvd::methods::svd_llm_basis(be_, w, data, rank);
  }

  // ranks: descending, the fast order.
  void add_residual_stages(factored_matrix& m, const view& w, const ressvd::svd_basis<B>& stage1,
                           const std::vector<std::int64_t>& ranks,
                           const ressvd::whitening<B>& reference) {
    const auto options = [&](std::int64_t rank) {
      return ressvd::residual_options{.rank = rank, .beta = options_.beta};
    };
    const auto add = [&](std::int64_t rank, const ressvd::compensated_basis<B>& both) {
      m.residual_stages.push_back(residual(w, both, rank, reference));
    };
    if (ranks.size() == 1) {
      add(ranks[0], ressvd::residual_compensation(be_, w, stage1, options(ranks[0])));
      return;
    }
    ressvd::residual_stages<B> stages(be_, w, stage1);
    for (const std::int64_t rank : ranks)
      add(rank, stages.at(options(rank)));
  }

  residual_stage residual(const view& w, const ressvd::compensated_basis<B>& both,
                          std::int64_t rank, const ressvd::whitening<B>& reference) {
    const std::int64_t leading = both.intermediate_rank;
    residual_stage stage{.rank = rank, .intermediate_rank = leading, .q = {}};
    if (leading == rank) return stage;
    const auto q = both.q.ref().col_range(leading, rank - leading);
    const auto weight = ressvd::basis_energies(be_, w, q);
    const auto activation = undamped(ressvd::basis_energies(be_, w, q, reference.metric()), weight,
                                     reference.report.damping);
    for (const double e : weight)
      stage.weight_energy += e;
    for (const double e : activation)
      stage.activation_energy += e;
    stage.q.resize(static_cast<std::size_t>(q.size()));
    be_.download(q, {stage.q.data(), q.rows, q.cols, q.rows});
    return stage;
  }

  // Energies under G from those under G + δI.
  static std::vector<double> undamped(std::vector<double> energies,
                                      const std::vector<double>& weight_energies, double damping) {
    for (std::size_t i = 0; i < energies.size(); ++i)
      energies[i] -= damping * weight_energies[i];
    return energies;
  }

  std::optional<ressvd::matrix<double, space>> row_importance(const linear_module& module) {
    if (!fisher_) return std::nullopt;
    const auto values = read_f32(*fisher_, module.weight_name(), {module.out, module.in});
    const uploaded_matrix<B> f(be_, values.data(), module.out, module.in);
    return ressvd::methods::fisher_row_importance(be_, f.view());
  }

  std::vector<float> to_host(const ressvd::matrix<float, space>& a) {
    std::vector<float> host(static_cast<std::size_t>(a.size()));
    be_.download(a, {host.data(), a.rows(), a.cols(), a.rows()});
    return host;
  }

  // Row-major host values of a matrix.
  std::vector<float> row_major_values(const ressvd::matrix<float, space>& a) {
    auto frame = be_.frame();
    const auto transposed = be_.scratch(a.cols(), a.rows());
    be_.copy(a.view().transposed(), transposed);
    std::vector<float> host(static_cast<std::size_t>(a.size()));
    be_.download(transposed, {host.data(), a.cols(), a.rows(), a.cols()});
    return host;
  }

  B be_;
  const compress_options& options_;
  double power_ = 1;
  std::optional<checkpoint> fisher_;
  std::array<std::optional<accumulator>, input_group_count> observed_; // of the layer at hand
  std::optional<accumulator> shifted_;
};

} // namespace ressvd_llm
