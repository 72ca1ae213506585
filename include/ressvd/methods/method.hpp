// SPDX-License-Identifier: Apache-2.0
//
// What all methods share: the statistics they read, the way a rank is asked for, the report. A
// method is a function
//   compressed_matrix<B> method(B& be, matrix_view W, const calibration<B>&, const ..._options&)
// and, for those that only choose a basis, `method_basis`, which factors once for many ranks.
#pragma once

#include <chrono>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"
#include "ressvd/residual/residual_compensation.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/whitening/whitening.hpp"

namespace ressvd {
inline namespace v0 {

/// What is known of a layer's inputs X (n channels) and of its gradients. Each method states what
/// it needs; all memory stays the caller's. Blocks are double, in the backend's space.
template <backend B>
struct calibration {
  using space = typename B::space;

  /// Factor of the Gram XXᵀ, or of a power of it. Methods that do not need it report the
  /// activation loss when it is there; for a power they need the Gram to do so.
  const ressvd::whitening<B>* whitening = nullptr;
  block<const double, space> gram = {};           ///< XXᵀ itself, n × n
  block<const double, space> mean_abs = {};       ///< mean_t |x_it|, n × 1
  block<const double, space> row_importance = {}; ///< Σ_j F_ij of the Fisher information F, m × 1
  block<const double, space> shifted_gram = {}; ///< X'X'ᵀ, X' from the compressed prefix, n × n
  block<const double, space> cross_gram = {};   ///< XX'ᵀ, n × n
};

/// The rank wanted: by number, or by compression ratio (1 − R)·mn/(m+n) with rounding.
struct method_target {
  std::optional<index_t> rank = std::nullopt;
  std::optional<double> ratio = std::nullopt;
  rank_rounding rounding = {};
};

struct method_options {
  method_target target = {};
  svd_algorithm algorithm = svd_algorithm::automatic;
};

struct method_report {
  index_t rows = 0;
  index_t cols = 0;
  index_t rank = 0;
  index_t intermediate_rank = 0; ///< = rank where there is no residual stage
  double compression_ratio = 0;  ///< 1 − r(m+n)/(mn), negative when the factors cost more than W
  loss weight_loss = {};         ///< ‖W−Ŵ‖_F²
  /// ‖(W−Ŵ)X‖_F², where a factor of the Gram or the Gram itself was given.
  std::optional<loss> activation_loss = std::nullopt;
  std::optional<whitening_report> whitening = std::nullopt;
  svd_report svd = {};
  std::optional<index_t> update_rank = std::nullopt; ///< rank of the last closed-form update
  double seconds = 0;
};

template <backend B>
struct compressed_matrix {
  low_rank<typename B::scalar, typename B::space> factors;
  method_report report = {};
};

namespace detail {

template <class U, class Space>
index_t wanted_rank(const method_target& target, const matrix_view<U, Space>& w) {
  check_nonempty(w, "W");
  require(target.rank.has_value() != target.ratio.has_value(),
          "a method needs a rank or a compression ratio, and not both");
  const rank_target wanted =
      target.rank ? at_rank(*target.rank) : at_ratio(*target.ratio, target.rounding);
  return wanted.choose(w.rows, w.cols).rank;
}

template <backend B>
const whitening<B>& required_whitening(const calibration<B>& data, const char* method) {
  require(data.whitening != nullptr, method, " needs the whitening factor of the calibration Gram");
  return *data.whitening;
}

/// A diagonal metric of f(value) for each of `values` (k × 1).
template <backend B, class F>
matrix<double, typename B::space> diagonal_weights(B& be,
                                                   block<const double, typename B::space> values,
                                                   index_t k, const char* name, F f) {
  wide_backend<B> be64(be);
  check_nonempty(values.view(), name);
  check_shape(values, k, 1, name);
  std::vector<double> host(static_cast<std::size_t>(k));
  be64.download(values, {host.data(), k, 1, k});
  for (std::size_t i = 0; i < host.size(); ++i) {
    require<nonfinite_error>(std::isfinite(host[i]), name, " has ", host[i], " at ", i);
    require(host[i] >= 0, name, " has the negative value ", host[i], " at ", i);
    host[i] = f(host[i]);
  }
  auto weights = be64.allocate(k, 1);
  be64.upload({host.data(), k, 1, k}, weights);
  return weights;
}

class stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// ‖(W−Ŵ)X‖_F² from what is known of X. The metric of a damped factor is G + δI: the loss under G
/// is that in the metric less δ·‖W−Ŵ‖_F².
template <backend B, class U>
std::optional<loss> known_activation_loss(
    B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
    const low_rank<typename B::scalar, typename B::space>& pair, const loss& plain) {
  const bool has_factor = data.whitening != nullptr && data.whitening->report.power == 1;
  if (!has_factor && data.gram.empty()) return std::nullopt;
  if (!has_factor) return activation_loss(be, w, pair, data.gram.view());
  const auto norm = [](const loss& l) { return l.relative > 0 ? l.absolute / l.relative : 0.0; };
  const double delta = data.whitening->report.damping;
  const loss damped = weighted_loss(be, w, pair, data.whitening->metric());
  const double lost = (std::max)(damped.absolute - delta * plain.absolute, 0.0);
  const double total = norm(damped) - delta * norm(plain);
  return loss{lost, total > 0 ? lost / total : 0};
}

/// Completes the report of a pair: sizes, losses, time.
template <backend B, class U>
compressed_matrix<B> finish(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                            low_rank<typename B::scalar, typename B::space> pair,
                            method_report report, const stopwatch& watch) {
  report.rows = w.rows;
  report.cols = w.cols;
  report.rank = pair.rank();
  if (report.intermediate_rank == 0) report.intermediate_rank = report.rank;
  report.compression_ratio = achieved_ratio(w.rows, w.cols, {.rank = pair.rank()});
  report.weight_loss = weight_loss(be, w, pair);
  report.activation_loss = known_activation_loss(be, w, data, pair, report.weight_loss);
  if (data.whitening != nullptr) report.whitening = data.whitening->report;
  report.seconds = watch.seconds();
  return {std::move(pair), std::move(report)};
}

/// The tail of a method that slices its basis.
template <backend B, class U>
compressed_matrix<B> slice_and_finish(B& be, matrix_view<U, typename B::space> w,
                                      const calibration<B>& data, const svd_basis<B>& basis,
                                      const stopwatch& watch) {
  return finish(be, w, data, slice(be, w, basis, basis.rank()), {.svd = basis.report}, watch);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
