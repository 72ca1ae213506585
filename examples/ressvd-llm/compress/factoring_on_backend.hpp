// SPDX-License-Identifier: Apache-2.0
//
// The factoring engine over the library's backend concept: from a layer's weights and the Grams of
// its inputs to bases, and from bases to factors.
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
class factoring_on_backend final : public factoring_engine {
  using space = typename B::space;
  using wide = ressvd::wide_backend<B>;
  using accumulator = ressvd::gram_accumulator<wide>;

 public:
  factoring_on_backend(B be, const compress_options& options)
      : be_(std::move(be)), options_(options) {
    if (!options.fisher.empty()) fisher_ = checkpoint::open_file(options.fisher);
  }

  std::unique_ptr<layer_factoring> begin_layer(const model_config& config, std::int64_t layer,
                                               double power) override {
    return std::make_unique<factoring_session>(*this, config, layer, power);
  }

  linear slice(const factored_matrix& m, const linear& original, std::int64_t rank) override {
    return linear_of(sliced(m, original, rank), original);
  }

  std::unique_ptr<shifted_refit> begin_refit(const std::string& name, std::int64_t features,
                                             double power) override {
    return std::make_unique<refit_session>(*this, name, features, power);
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

  class factoring_session final : public layer_factoring {
   public:
    factoring_session(factoring_on_backend& engine, const model_config& config, std::int64_t layer,
                      double power)
        : engine_(engine), modules_(linear_modules(config, layer)), layer_(layer), power_(power) {}

    void observe(input_group group, const float* x, std::int64_t tokens,
                 std::int64_t features) override {
      auto& gram = observed_[static_cast<std::size_t>(group)];
      if (!gram) {
        gram.emplace(wide(engine_.be_), features,
                     ressvd::gram_options{.name = input_name(group), .channel_means = true});
      }
      gram->add(uploaded_matrix<B>(engine_.be_, x, tokens, features).view());
    }

    void take(input_group group, const ressvd::gram_state& state) override {
      observed_[static_cast<std::size_t>(group)] =
          accumulator::from_state(wide(engine_.be_), state, {.name = input_name(group)});
    }

    std::vector<factored_matrix> factor(const layer_weights& weights,
                                        const std::vector<rank_list>& wanted) override {
      std::vector<factored_matrix> result;
      std::optional<input_group> current;
      std::optional<ressvd::whitening<B>> reference; // of the Gram itself: for the activation loss
      std::optional<ressvd::whitening<B>> tempered;
      ressvd::matrix<double, space> means;
      for (std::size_t i = 0; i < modules_.size(); ++i) {
        if (current != modules_[i].group) {
          if (current) observed_[static_cast<std::size_t>(*current)].reset();
          current = modules_[i].group;
          reference.reset();
          tempered.reset();
        }
        factored_matrix m;
        m.module = modules_[i];
        if (!wanted[i].empty()) {
          if (!reference) {
            accumulator& gram = observed_[static_cast<std::size_t>(m.module.group)].value();
            reference = ressvd::whiten(engine_.be_, gram.gram());
            means = gram.mean_abs();
            if (engine_.options_.method == method::tempered) {
              tempered = ressvd::whiten_power(engine_.be_, gram.gram(), power_);
            }
          }
          engine_.factor_matrix(m, weights[m.module.kind], *reference,
                                tempered ? *tempered : *reference, means, wanted[i]);
        }
        result.push_back(std::move(m));
      }
      if (current) observed_[static_cast<std::size_t>(*current)].reset();
      return result;
    }

   private:
    std::string input_name(input_group group) const {
      return "layer " + std::to_string(layer_) + ", input of " + std::string(name_of(group));
    }

    factoring_on_backend& engine_;
    std::vector<linear_module> modules_;
    std::int64_t layer_;
    double power_;
    std::array<std::optional<accumulator>, input_group_count> observed_;
  };

  class refit_session final : public shifted_refit {
   public:
    refit_session(factoring_on_backend& engine, const std::string& name, std::int64_t features,
                  double power)
        : engine_(engine),
          features_(features),
          power_(power),
          sums_(wide(engine.be_), features,
                {.name = name, .cross_features = target_mix(engine.options_) > 0 ? features : 0}) {}

    void observe(const float* x, const float* original, std::int64_t tokens) override {
      const uploaded_matrix<B> shifted(engine_.be_, x, tokens, features_);
      if (original == nullptr) {
        sums_.add(shifted.view());
      } else {
        sums_.add(shifted.view(),
                  uploaded_matrix<B>(engine_.be_, original, tokens, features_).view());
      }
    }

    linear fit(const factored_matrix& m, const linear& original, std::int64_t rank) override {
      const compress_options& options = engine_.options_;
      const auto gram = sums_.gram();
      if (target_.empty()) prepare();
      const auto values = original.dense.values();
      const uploaded_matrix<B> w(engine_.be_, values.data(), m.module.out, m.module.in);
      return engine_.linear_of(
          options.retruncate
              ? engine_.truncated_fit(w.view(), gram, target_.ref(), *metric_, rank)
              : engine_.updated(engine_.sliced(m, original, rank), w.view(), gram, target_.ref()),
          original);
    }

   private:
    // The target's Gram, and the metric of a new truncation.
    void prepare() {
      wide be64(engine_.be_);
      const compress_options& options = engine_.options_;
      const auto gram = sums_.gram();
      target_ = be64.allocate(gram.rows, gram.cols);
      be64.copy(gram.view(), target_.ref());
      if (const double mix = target_mix(options); mix > 0) {
        be64.scale(1 - mix, target_.ref());
        be64.add(mix, sums_.cross(), target_.ref());
      }
      if (options.retruncate) {
        metric_ = options.method == method::tempered
                      ? ressvd::whiten_power(engine_.be_, gram, power_)
                      : ressvd::whiten(engine_.be_, gram, {.ridge = options.ridge});
      }
    }

    factoring_on_backend& engine_;
    std::int64_t features_;
    double power_;
    accumulator sums_;
    ressvd::matrix<double, space> target_;
    std::optional<ressvd::whitening<B>> metric_;
  };

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
  std::optional<checkpoint> fisher_;
};

} // namespace ressvd_llm
