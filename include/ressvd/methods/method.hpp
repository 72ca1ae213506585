// SPDX-License-Identifier: Apache-2.0
//
// What a method of compression is, and what it gives back. A method is a small type that holds its
// options and has
//   svd_basis<B> basis(B&, const weight<B>& w, calibration<B>& input, index_t rank) const
// which factors W once for all ranks up to `rank`, from the statistics of W's input. A method with
// a residual stage also has
//   std::optional<residual_plan> residual() const
// and, where its metric has a left side that the stage keeps,
//   std::shared_ptr<const whitening<B>> residual_metric(B&, const weight<B>& w) const
// and one whose factors are fitted to shifted inputs otherwise than SVD-LLM's has
//   update_options update() const
// (methods/shifted_input.hpp). `void prepare(calibration<B>&) const` makes what a method needs of
// the input ahead of its first weight; it is optional. calibration::factor and
// calibration::compress do the rest; see methods/asvd.hpp for the shortest example and
// methods/support.hpp for what methods share.
#pragma once

#include <concepts>
#include <optional>

#include "ressvd/core/backend.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"
#include "ressvd/residual/losses.hpp"
#include "ressvd/residual/residual_compensation.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/truncated_svd/weight.hpp"
#include "ressvd/whitening/whitening.hpp"

namespace ressvd {
inline namespace v0 {

template <backend B>
class calibration;

template <class M, class B>
concept method_on = backend<B> &&
    requires(const M& method, B& be, const weight<B>& w, calibration<B>& input, index_t rank) {
  { method.basis(be, w, input, rank) } -> std::same_as<svd_basis<B>>;
};

/// A method's residual stage, whatever the rank.
struct residual_plan {
  residual_options options = {}; ///< but for the rank
  bool whitened = false;         ///< in the first stage's metric; published: in the plain one
};

/// How a matrix was compressed, and what it lost.
struct method_report {
  index_t rows = 0;
  index_t cols = 0;
  rank_choice choice = {};
  index_t intermediate_rank = 0; ///< the rank where there is no residual stage; 0 when dense
  double compression_ratio = 0;  ///< 1 − kept/(mn), negative when the factors cost more than W
  loss weight_loss = {};         ///< ‖W−Ŵ‖_F²
  /// ‖(W−Ŵ)X‖_F², where the Gram of X or a factor of it is known.
  std::optional<loss> activation_loss = std::nullopt;
  /// ‖F_Lᵀ(W−Ŵ)F_R‖_F² in the metrics of the method itself, damping included: the curvature loss
  /// of KFAC-SVD. Not known with a residual stage and after fits to shifted inputs.
  std::optional<loss> truncation_loss = std::nullopt;
  /// Of the metric that the method used, else of the Gram's factor behind the activation loss.
  std::optional<whitening_report> whitening = std::nullopt;
  svd_report svd = {};
  std::optional<index_t> update_rank = std::nullopt; ///< rank of the last closed-form update
  double seconds = 0;                                ///< to factor the matrix and to cut this rank
};

/// Two factors, or W itself.
template <backend B>
struct compressed_matrix {
  low_rank<typename B::scalar, typename B::space> factors = {}; ///< empty when dense
  method_report report = {};

  /// W is to be kept as it is: no rank saves anything, or none was asked for.
  bool dense() const { return report.choice.dense; }
};

} // namespace v0
} // namespace ressvd
