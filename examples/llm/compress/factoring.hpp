// SPDX-License-Identifier: Apache-2.0
//
// From a layer's weights and the Grams of its inputs to bases, and from bases to factors. Written
// over the library's backend concept: host arrays go in and come out, the rest runs on the backend.
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

#include "compress/factored_layer.hpp"
#include "compress/options.hpp"
#include "compress/plan.hpp"
#include "io/checkpoint.hpp"
#include "model/forward.hpp"

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

// The statistics of the four inputs of one layer.
template <ressvd::backend B>
class input_statistics {
  using wide = ressvd::wide_backend<B>;

 public:
  input_statistics(B be, std::int64_t layer) : be_(std::move(be)), layer_(layer) {}

  void add(input_group group, const float* x, std::int64_t tokens, std::int64_t features) {
    auto& gram = grams_[static_cast<std::size_t>(group)];
    if (!gram) {
      gram.emplace(wide(be_), features,
                   ressvd::gram_options{.name = "layer " + std::to_string(layer_) + ", input of " +
                                                std::string(name_of(group)),
                                        .channel_means = true});
    }
    const uploaded_matrix<B> batch(be_, x, tokens, features);
    gram->add(batch.view());
  }

  ressvd::gram_accumulator<wide>& gram(input_group group) {
    return grams_[static_cast<std::size_t>(group)].value();
  }
  void release(input_group group) { grams_[static_cast<std::size_t>(group)].reset(); }

 private:
  B be_;
  std::int64_t layer_;
  std::array<std::optional<ressvd::gram_accumulator<wide>>, input_group_count> grams_;
};

template <ressvd::backend B>
class layer_factorizer {
  using space = typename B::space;
  using wide = ressvd::wide_backend<B>;

 public:
  // `power`: of tempered whitening, where the method asks for it.
  layer_factorizer(B be, const compress_options& options, double power,
                   std::optional<checkpoint> fisher)
      : be_(std::move(be)), options_(options), power_(power), fisher_(std::move(fisher)) {}

  // Bases of all matrices that some candidate compresses. The statistics of each input are released
  // as soon as its matrices are factored.
  factored_layer factor(std::int64_t index, const model_config& config,
                        const layer_weights& weights, input_statistics<B>& statistics,
                        const std::vector<std::vector<std::int64_t>>& wanted) {
    factored_layer result{.index = index, .similarity = 0, .matrices = {}};
    auto modules = linear_modules(config, index);
    std::optional<input_group> current;
    std::optional<ressvd::whitening<B>> reference; // of the Gram itself: for the activation loss
    std::optional<ressvd::whitening<B>> tempered;
    ressvd::matrix<double, space> means;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (current != modules[i].group) {
        if (current) statistics.release(*current);
        current = modules[i].group;
        reference.reset();
        tempered.reset();
      }
      factored_matrix m;
      m.module = std::move(modules[i]);
      if (!wanted[i].empty()) {
        if (!reference) {
          auto& gram = statistics.gram(m.module.group);
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
    if (current) statistics.release(*current);
    return result;
  }

  // The factors of one matrix at a rank.
  ressvd::low_rank<float, space> slice(const factored_matrix& m, const linear& weights,
                                       std::int64_t rank) {
    const auto values = weights.dense.values();
    const uploaded_matrix<B> w(be_, values.data(), m.module.out, m.module.in);
    return slice(m, w.view(), rank);
  }

  B& backend() { return be_; }

 private:
  using view = ressvd::matrix_view<const float, space>;

  ressvd::low_rank<float, space> slice(const factored_matrix& m, const view& w, std::int64_t rank) {
    const residual_stage* stage = m.stage_for(rank);
    const std::int64_t rows = m.basis_rows();
    std::int64_t leading = stage != nullptr ? stage->intermediate_rank : rank;
    auto q = be_.allocate(rows, rank);
    be_.upload({m.q.data(), rows, leading, rows}, q.ref().left_cols(leading));
    if (leading < rank) {
      be_.upload({stage->q.data(), rows, rank - leading, rows},
                 q.ref().col_range(leading, rank - leading));
    }
    if (m.acts == ressvd::projection::left) return ressvd::project(be_, w, std::move(q));
    // Ŵᵀ = QQᵀWᵀ
    const auto transposed = ressvd::project(be_, w.transposed(), std::move(q));
    ressvd::low_rank<float, space> pair{be_.allocate(w.rows, rank), be_.allocate(rank, w.cols)};
    be_.copy(transposed.v.view().transposed(), pair.u.ref());
    be_.copy(transposed.u.view().transposed(), pair.v.ref());
    return pair;
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
    const bool left = m.acts == ressvd::projection::left;
    const auto factored_view = left ? w : w.transposed();
    m.weight_total = ressvd::weighted_energy(be_, w);
    m.activation_total =
        ressvd::weighted_energy(be_, w, reference.metric()) - damping * m.weight_total;
    m.weight_energies = ressvd::basis_energies(be_, factored_view, basis.q.ref());
    if (left) {
      m.activation_energies =
          undamped(ressvd::basis_energies(be_, w, basis.q.ref(), reference.metric()),
                   m.weight_energies, damping);
    }
    if (options_.method == method::ressvd) {
      for (const std::int64_t rank : ranks) {
        m.residual_stages.push_back(residual(w, basis, rank, reference));
      }
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

  residual_stage residual(const view& w, const ressvd::svd_basis<B>& stage1, std::int64_t rank,
                          const ressvd::whitening<B>& reference) {
    const auto both =
        ressvd::residual_compensation(be_, w, stage1, {.rank = rank, .beta = options_.beta});
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

  B be_;
  const compress_options& options_;
  double power_;
  std::optional<checkpoint> fisher_;
};

// Row-major host values of a backend's matrix.
template <ressvd::backend B>
std::vector<float> row_major_values(B& be, const ressvd::matrix<float, typename B::space>& a) {
  auto frame = be.frame();
  const auto transposed = be.scratch(a.cols(), a.rows());
  be.copy(a.view().transposed(), transposed);
  std::vector<float> host(static_cast<std::size_t>(a.size()));
  be.download(transposed, {host.data(), a.cols(), a.rows(), a.cols()});
  return host;
}

} // namespace ressvd_llm
