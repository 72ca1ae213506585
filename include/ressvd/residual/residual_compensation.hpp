// SPDX-License-Identifier: Apache-2.0
//
// Residual compensation divides a rank budget r: the intermediate rank r_i = r − r_r goes to the
// whitened truncation, the residual rank r_r to what that truncation leaves of W:
//   W_i = U_i·U_iᵀ·W                 stage 1, U_i the top r_i vectors of a whitened factorisation
//   R   = W − W_i = (I − U_iU_iᵀ)W   so its left singular vectors are orthogonal to U_i
//   R_r = U_R·U_Rᵀ·R                 stage 2, by default the plain (un-whitened) SVD of R
//   Ŵ   = W_i + R_r = Q·Qᵀ·W,        Q = [U_i, U_R] orthonormal
//
// Ŵ is the direct rank-r truncation if both stages have the same metric. If stage 2 has the plain
// one, the activation loss on the calibration data is never lower than the direct truncation's of
// equal rank, and the weight loss never higher.
//
//   cost        4mn·r_i flops for R, one truncated SVD of rank r_r, 10m·r_i·r_r + 12m·r_r² to
//               make U_R orthonormal beside U_i
//   workspace   mn + n·r_i scalars and the truncated SVD's
//   blocks      yes
//   many ranks  residual_stages, for a fraction of that each
//   source      ResSVD, arXiv 2505.20112, Algorithm 1; the final version (ERC-SVD), Algorithm 2
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/truncated_svd/warm_start.hpp"
#include "ressvd/truncated_svd/weight.hpp"

namespace ressvd {
inline namespace v0 {

/// How a rank is divided: give at most one of residual_rank and intermediate_rank; without either
/// r_r = βα, rounded, with α = mn/(m+n) of the matrix, but at most r − 1.
struct residual_options {
  index_t rank = 0;   ///< r, the rank of the result
  double beta = 0.05; ///< share of α that compensates the residual, in [0, 1)
  std::optional<index_t> residual_rank = std::nullopt;     ///< r_r in [0, r − 1]
  std::optional<index_t> intermediate_rank = std::nullopt; ///< r_i in [1, r]
  svd_options svd = {};                                    ///< of the second stage
};

/// r_i of an m × n matrix (rows, cols) for the options; r_r is what remains of the rank.
/// Throws std::invalid_argument for β outside [0, 1), for r_i or r_r out of its range, for both
/// given.
inline index_t intermediate_rank(index_t rows, index_t cols, const residual_options& options) {
  const index_t r = options.rank;
  detail::require(r >= 1, "residual compensation of rank ", r);
  detail::require(options.beta >= 0 && options.beta < 1, "residual share beta ", options.beta,
                  " is outside [0, 1)");
  detail::require(!(options.residual_rank && options.intermediate_rank),
                  "residual rank and intermediate rank are both given; one follows from the other");
  const index_t residual = options.residual_rank.value_or(0);
  detail::require(residual >= 0 && residual < r, "residual rank ", residual, " is outside [0, ",
                  r - 1, "]");
  const auto share = static_cast<index_t>(std::lround(options.beta * break_even_rank(rows, cols)));
  const index_t ri = options.intermediate_rank
                         ? *options.intermediate_rank
                         : r - options.residual_rank.value_or((std::min)(share, r - 1));
  detail::require(ri >= 1 && ri <= r, "intermediate rank ", ri, " is outside [1, ", r, "]");
  return ri;
}

/// Ŵ's basis Q and how it is divided.
template <backend B>
struct compensated_basis {
  matrix_of<B> q; ///< m × r, orthonormal: [U_i, U_R]
  index_t intermediate_rank = 0;
  double residual_energy = 0; ///< ‖R‖_F², what stage 1 left
};

namespace detail {

template <backend B>
void check_first_stage(const svd_basis<B>& stage1, index_t rows) {
  require(stage1.acts == projection::left && stage1.q.rows() == rows,
          "residual compensation needs a first stage with the identity as left metric, made for ",
          rows, " rows");
}

/// r_i of an m × n matrix whose first stage has `largest` vectors.
inline index_t intermediate_rank_within(index_t largest, index_t rows, index_t cols,
                                        const residual_options& options) {
  const index_t ri = intermediate_rank(rows, cols, options);
  require(options.rank <= (std::min)(rows, cols), "rank ", options.rank, " of a ", rows, " x ",
          cols, " matrix is outside [1, ", (std::min)(rows, cols), "]");
  require(ri <= largest, "intermediate rank ", ri, " exceeds the first stage's rank ", largest);
  return ri;
}

} // namespace detail

/// Both stages' basis for a W that `stage1` was factored from (with left metric identity).
/// `second` is the metric of stage 2, identity for the published method.
/// Throws std::invalid_argument when stage1 holds fewer than r_i vectors or acts on the right.
template <backend B>
compensated_basis<B> residual_compensation(B& be, const weight<B>& w, const svd_basis<B>& stage1,
                                           const residual_options& options,
                                           const metric<typename B::space>& second = {}) {
  detail::check_first_stage(stage1, w.rows());
  detail::check_metric(second, w.cols(), "the second stage's metric");
  const index_t r = options.rank;
  const index_t ri = detail::intermediate_rank_within(stage1.rank(), w.rows(), w.cols(), options);

  compensated_basis<B> result{.q = be.allocate(w.rows(), r), .intermediate_rank = ri};
  const auto ui = stage1.q.ref().left_cols(ri);
  be.copy(ui, result.q.ref().left_cols(ri));

  auto frame = be.frame();
  const auto residual = be.scratch(w.rows(), w.cols());
  be.copy(w.values, residual);
  detail::project_out<B>(be, ui, residual);
  result.residual_energy = be.dot(residual, residual) * w.unit * w.unit;
  if (r == ri) return result;
  const detail::weighted_matrix<B> weighed{.w = const_view(residual), .right = second};
  const auto stage2 = detail::factor(be, weighed, r - ri, options.svd);
  const auto ur = result.q.ref().col_range(ri, r - ri);
  be.copy(stage2.q, ur);
  // Orthogonal by theory; a residual near zero leaves directions that are not.
  detail::orthonormalize_against<B>(be, ui, ur);
  return result;
}

/// The same for a W in any layout and storage type, which is prepared here.
template <backend B, readable_matrix<typename B::space> M>
compensated_basis<B> residual_compensation(B& be, const M& w, const svd_basis<B>& stage1,
                                           const residual_options& options,
                                           const metric<typename B::space>& second = {}) {
  return residual_compensation(be, weight<B>(be, w), stage1, options, second);
}

/// The second stages of one matrix at many ranks, as a search over compression ratios wants them:
/// each from the one before (see warm_start.hpp). Ranks may come in any order; descending
/// intermediate ranks are fast.
///
///   cost        4mnr to construct, r = stage1.rank(). For a stage that of warm_started_svd, and
///               6m·r_i·r_r to finish
///   state       warm_started_svd's; to construct, mn + rn scalars in workspace
///   workspace   warm_started_svd's
///   blocks      yes
template <backend B>
class residual_stages {
  using space = typename B::space;

 public:
  /// stage1 must outlive this object; w and `second` need not. Throws as residual_compensation
  /// does.
  residual_stages(B be, const weight<B>& w, const svd_basis<B>& stage1,
                  const metric<space>& second = {})
      : residual_stages(be, split(be, w, stage1, second), stage1, w.cols()) {}
  template <readable_matrix<space> M>
  residual_stages(B be, const M& w, const svd_basis<B>& stage1, const metric<space>& second = {})
      : residual_stages(be, weight<B>(be, w), stage1, second) {}
  template <class M>
  residual_stages(B, const M&, svd_basis<B>&&, const metric<space>& = {}) = delete;

  /// As residual_compensation for these options, within the tolerance.
  compensated_basis<B> at(const residual_options& options) {
    const index_t ri = detail::intermediate_rank_within(u_.cols, u_.rows, cols_, options);
    const index_t rr = options.rank - ri;
    compensated_basis<B> result{.q = be_.allocate(u_.rows, options.rank),
                                .intermediate_rank = ri,
                                .residual_energy = energies_[static_cast<std::size_t>(ri)]};
    const auto ui = u_.left_cols(ri);
    const auto ur = result.q.ref().col_range(ri, rr);
    be_.copy(ui, result.q.ref().left_cols(ri));
    const auto vectors = svds_.leading_vectors(ri, rr, options.svd);
    if (rr == 0) return result;
    be_.copy(vectors, ur);
    detail::reorthonormalize_against<B>(be_, ui, ur);
    return result;
  }

  /// Stages so far that began anew.
  index_t begun() const { return svds_.begun(); }

 private:
  /// W, split by what the first stage holds of it, in the second stage's metric.
  struct split_weight {
    matrix_of<B> residual;        ///< (W − U·UᵀW)·F
    matrix_of<B> held;            ///< UᵀW·F
    std::vector<double> energies; ///< ‖W − U_i·U_iᵀW‖² for every intermediate rank i
  };

  static split_weight split(B& be, const weight<B>& w, const svd_basis<B>& stage1,
                            const metric<space>& second) {
    detail::check_metric(second, w.cols(), "the second stage's metric");
    detail::check_first_stage(stage1, w.rows());
    const auto u = stage1.q.ref();
    split_weight parts{.residual = be.allocate(w.rows(), second.width(w.cols())),
                       .held = be.allocate(u.cols, second.width(w.cols())),
                       .energies = {}};
    auto frame = be.frame();
    const auto plain = be.scratch(w.rows(), w.cols());
    const auto coordinates = be.scratch(u.cols, w.cols());
    be.copy(w.values, plain);
    detail::project_out<B>(be, u, plain, coordinates);
    parts.energies = detail::energies_without<B>(be, plain, coordinates);
    for (double& e : parts.energies)
      e *= w.unit * w.unit;
    detail::weigh<B>(be, plain, second, parts.residual.ref());
    detail::weigh<B>(be, coordinates, second, parts.held.ref());
    return parts;
  }

  residual_stages(B& be, split_weight&& parts, const svd_basis<B>& stage1, index_t cols)
      : be_(be),
        u_(stage1.q.ref()),
        cols_(cols),
        energies_(std::move(parts.energies)),
        svds_(be, u_, std::move(parts.residual), std::move(parts.held)) {}

  B be_;
  const_block_of<B> u_;
  index_t cols_;                 ///< of W
  std::vector<double> energies_; ///< ‖R‖² for every r_i
  warm_started_svd<B> svds_;
};

/// The pair (Q, QᵀW).
template <backend B>
low_rank<typename B::scalar, typename B::space> project(B& be, const weight<B>& w, matrix_of<B> q) {
  using T = typename B::scalar;
  detail::require(q.rows() == w.rows(), "the basis has ", q.rows(), " rows, W has ", w.rows());
  low_rank<T, typename B::space> pair{std::move(q), {}};
  pair.v = be.allocate(pair.rank(), w.cols());
  be.gemm(op::transpose, op::none, static_cast<T>(w.unit), pair.u, w.values, T{0}, pair.v);
  return pair;
}

/// The same for a W in any layout and storage type, which is prepared here.
template <backend B, readable_matrix<typename B::space> M>
low_rank<typename B::scalar, typename B::space> project(B& be, const M& w, matrix_of<B> q) {
  return project(be, weight<B>(be, w), std::move(q));
}

} // namespace v0
} // namespace ressvd
