// SPDX-License-Identifier: Apache-2.0
//
// Residual compensation: of a rank budget r, the intermediate rank r_i = r − r_r goes to the
// whitened truncation, and the residual rank r_r to what that truncation leaves of W:
//   W_i = U_i·U_iᵀ·W                 stage 1, U_i the top r_i vectors of a whitened factorisation
//   R   = W − W_i = (I − U_iU_iᵀ)W   so its left singular vectors are orthogonal to U_i
//   R_r = U_R·U_Rᵀ·R                 stage 2, by default the plain (un-whitened) SVD of R
//   Ŵ   = W_i + R_r = Q·Qᵀ·W,        Q = [U_i, U_R] orthonormal
//
// With the same metric in both stages Ŵ is the direct rank-r truncation. With the plain metric in
// stage 2, at equal rank the activation loss on the calibration data is never lower than the direct
// truncation's and the weight loss never higher.
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
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"

namespace ressvd {
inline namespace v0 {

/// How a rank is divided: give at most one of residual_rank and intermediate_rank; without either
/// r_r = βα, rounded, with α = mn/(m+n) of the matrix, but at most r − 1.
struct residual_options {
  index_t rank = 0;   ///< r, the rank of the result
  double beta = 0.05; ///< share of α that compensates the residual, in [0, 1)
  std::optional<index_t> residual_rank = std::nullopt;     ///< r_r in [0, r − 1]
  std::optional<index_t> intermediate_rank = std::nullopt; ///< r_i in [1, r]
  svd_algorithm algorithm = svd_algorithm::automatic;      ///< of the second stage
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
template <backend B, class U>
compensated_basis<B> residual_compensation(B& be, matrix_view<U, typename B::space> weights,
                                           const svd_basis<B>& stage1,
                                           const residual_options& options,
                                           const metric<typename B::space>& second = {}) {
  using T = typename B::scalar;
  const auto w = const_view(weights);
  detail::check_nonempty(w, "W");
  detail::check_first_stage(stage1, w.rows);
  const index_t r = options.rank;
  const index_t ri = detail::intermediate_rank_within(stage1.rank(), w.rows, w.cols, options);

  compensated_basis<B> result{.q = be.allocate(w.rows, r), .intermediate_rank = ri};
  const auto ui = stage1.q.ref().left_cols(ri);
  be.copy(ui.view(), result.q.ref().left_cols(ri));

  auto frame = be.frame();
  const auto residual = be.scratch(w.rows, w.cols);
  const auto coordinates = be.scratch(ri, w.cols);
  be.copy(w, residual);
  be.gemm(op::transpose, op::none, T{1}, ui, residual, T{0}, coordinates);
  be.gemm(op::none, op::none, T{-1}, ui, coordinates, T{1}, residual);
  const auto r_view = const_view(residual);
  result.residual_energy = be.dot(residual, residual);
  if (r == ri) return result;
  const auto stage2 = truncated_svd(be, r_view, metric<typename B::space>::identity(), second,
                                    {.rank = r - ri, .algorithm = options.algorithm});
  const auto ur = result.q.ref().col_range(ri, r - ri);
  be.copy(stage2.q.view(), ur);
  // Orthogonal by theory; a residual near zero leaves directions that are not.
  detail::orthonormalize_against<B>(be, ui, ur);
  return result;
}

/// The second stages of one matrix at many ranks, as a search over compression ratios wants them.
/// When d vectors U_d leave U_i, the residual gains what they held,
///   R' = R + U_d·C_d,  C = UᵀW, computed once,
/// and the last block of Ritz vectors Q beside U_d has the image [RᵀQ, C_dᵀ] under R'ᵀ without a
/// product. From there, with b = r_r + max(r_r/5, 8) vectors:
///   RRᵀ ≈ Q·Θ·Qᵀ,  Z = RᵀQ       Rayleigh–Ritz
///   E = R·Z − Q·Θ                 residuals of the first r_r
///   Σ ‖e_i‖²/(θ_i − θ_m)          what these miss of the optimum, m = (r_r + b)/2; at most the
///                                 tolerance of svd_options times the loss, this ends the stage
///   Q ← [Q, E]
/// Ranks may come in any order. Descending intermediate ranks are fast. Where they rise or fall by
/// more than 4b, where r_r rises, for algorithms other than automatic and subspace, and where
/// rounding would decide, a stage begins anew with truncated_svd. Equal sequences of ranks give
/// equal results; those of one rank after different sequences agree within the tolerance.
///
///   cost        4mnr to construct, r = stage1.rank(). For a stage 2mn(d + r_r) and 4mn·r_r for
///               each extension, of which there are mostly 0 to 2; 6m·r_i·r_r to finish
///   state       mn + rn + (m + n)b scalars; to construct, mn + rn in workspace
///   workspace   (m + n)·max(2b, b + d) scalars, and truncated_svd's for a stage that begins anew
///   blocks      yes
///   source      the bound: Parlett, "The Symmetric Eigenvalue Problem", ch. 11
template <backend B>
class residual_stages {
  using T = typename B::scalar;
  using space = typename B::space;

 public:
  /// stage1 must outlive this object; weights and `second` need not.
  /// Throws as residual_compensation does, and nonfinite_error for NaN or infinity in W.
  template <class U>
  residual_stages(B be, matrix_view<U, space> weights, const svd_basis<B>& stage1,
                  const metric<space>& second = {})
      : be_(std::move(be)), rows_(weights.rows), cols_(weights.cols) {
    const auto w = const_view(weights);
    detail::check_nonempty(w, "W");
    detail::check_metric(second, w.cols, "the second stage's metric");
    detail::check_first_stage(stage1, w.rows);
    u_ = stage1.q.ref();
    position_ = u_.cols;
    const double unit = detail::power_of_two_above(detail::require_finite(be_, w, "W"));
    residual_ = be_.allocate(w.rows, second.width(w.cols));
    held_ = be_.allocate(u_.cols, residual_.cols());

    auto frame = be_.frame();
    const auto plain = be_.scratch(w.rows, w.cols);
    const auto coordinates = be_.scratch(u_.cols, w.cols);
    be_.copy(w, plain);
    be_.scale(static_cast<T>(1 / unit), plain);
    be_.gemm(op::transpose, op::none, T{1}, u_, plain, T{0}, coordinates);
    be_.gemm(op::none, op::none, T{-1}, u_, coordinates, T{1}, plain);
    energies_ = energies(plain, coordinates);
    for (double& e : energies_)
      e *= unit * unit;
    detail::weigh<B>(be_, plain, second, residual_.ref());
    detail::weigh<B>(be_, coordinates, second, held_.ref());
    // Of norm 1 to a power of two, as its squares are formed in the backend's scalar.
    weighed_energies_ = energies(residual_.ref(), held_.ref());
    const double norm = detail::power_of_two_above(std::sqrt(weighed_energies_.front()));
    be_.scale(static_cast<T>(1 / norm), residual_.ref());
    be_.scale(static_cast<T>(1 / norm), held_.ref());
    for (double& e : weighed_energies_)
      e /= norm * norm;
  }
  template <class U>
  residual_stages(B, matrix_view<U, space>, svd_basis<B>&&, const metric<space>& = {}) = delete;

  /// As residual_compensation for these options, within the tolerance.
  compensated_basis<B> at(const residual_options& options) {
    const index_t ri = detail::intermediate_rank_within(u_.cols, rows_, cols_, options);
    const index_t rr = options.rank - ri;
    compensated_basis<B> result{.q = be_.allocate(rows_, options.rank),
                                .intermediate_rank = ri,
                                .residual_energy = energies_[static_cast<std::size_t>(ri)]};
    const auto ui = u_.left_cols(ri);
    be_.copy(ui.view(), result.q.ref().left_cols(ri));
    auto known = std::exchange(known_, {});
    const index_t joining = position_ - ri;
    move_to(ri);
    if (rr == 0) return result;

    const bool iterates = options.algorithm == svd_algorithm::automatic ||
                          options.algorithm == svd_algorithm::subspace;
    if (!iterates || joining < 0 || !refine(known, joining, rr)) {
      known = begin(rr, options.algorithm);
    }
    const auto ur = result.q.ref().col_range(ri, rr);
    be_.copy(known.q.ref().left_cols(rr), ur);
    orthonormalize_beside(ui, ur);
    known_ = std::move(known);
    return result;
  }

  /// Stages so far that began anew.
  index_t begun() const { return begun_; }

 private:
  static constexpr index_t most_extensions = 8;

  struct ritz_block {
    matrix_of<B> q; ///< orthonormal, beside U_i; leading Ritz vectors first
    matrix_of<B> z; ///< Rᵀ·q
  };

  /// ‖R_i‖² = ‖R‖² + Σ_{j>i} ‖c_j‖² for every intermediate rank i.
  std::vector<double> energies(const_block_of<B> residual, const_block_of<B> coordinates) {
    std::vector<double> values(static_cast<std::size_t>(coordinates.rows));
    be_.row_squared_norms(coordinates, values);
    values.push_back(be_.dot(residual, residual));
    for (std::size_t i = values.size() - 1; i-- > 0;)
      values[i] += values[i + 1];
    return values;
  }

  /// Makes R that of r_i.
  void move_to(index_t ri) {
    const index_t first = (std::min)(ri, position_);
    const index_t count = (std::max)(ri, position_) - first;
    if (count > 0) {
      be_.gemm(op::none, op::none, ri < position_ ? T{1} : T{-1}, u_.col_range(first, count),
               held(first, count), T{1}, residual_.ref());
    }
    position_ = ri;
  }

  const_block_of<B> held(index_t first, index_t count) const {
    return held_.ref().part(first, 0, count, held_.cols());
  }

  ritz_block begin(index_t rr, svd_algorithm algorithm) {
    ++begun_;
    const index_t largest = (std::min)(residual_.rows(), residual_.cols());
    const index_t b = (std::max)(rr, (std::min)(detail::subspace_block(rr), largest));
    auto svd = truncated_svd(be_, const_view(residual_), metric<space>::identity(),
                             metric<space>::identity(), {.rank = b, .algorithm = algorithm});
    ritz_block block{.q = std::move(svd.q), .z = be_.allocate(residual_.cols(), b)};
    be_.gemm(op::transpose, op::none, T{1}, residual_.ref(), block.q.ref(), T{0}, block.z.ref());
    return block;
  }

  /// The block for R from that for the R before it, which the last `joining` vectors of U were not
  /// part of. False where it cannot be had from it.
  bool refine(ritz_block& known, index_t joining, index_t rr) {
    const index_t b = detail::subspace_block(rr);
    const index_t before = known.q.cols();
    const index_t room = (std::min)(residual_.rows() - position_, residual_.cols());
    const index_t most = (std::max)(b + rr, before + joining);
    if (before < b || joining > 4 * b || most > room) return false;
    auto frame = be_.frame();
    const auto q = be_.scratch(residual_.rows(), most);
    const auto z = be_.scratch(residual_.cols(), most);
    if (!join(known, joining, q, z)) return false;
    auto theta = rotate_to_ritz(q.left_cols(before + joining), z.left_cols(before + joining), b);

    const auto lead = q.left_cols(rr);
    const auto e = q.col_range(b, rr);
    for (index_t step = 0;; ++step) {
      double tail = weighed_energies_[static_cast<std::size_t>(position_)];
      for (index_t i = 0; i < rr; ++i)
        tail -= theta[static_cast<std::size_t>(i)];
      // The sum of the Ritz values has an error of a few eps of the largest.
      constexpr double noise = 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
      if (!(noise * theta.front() < tolerance() * tail)) return false;
      residuals(lead, z.left_cols(rr), theta, e);
      if (missing(e, theta) <= tolerance() * tail) break;
      if (step == most_extensions) return false;
      extend(q.left_cols(b), e);
      be_.gemm(op::transpose, op::none, T{1}, residual_.ref(), e, T{0}, z.col_range(b, rr));
      theta = rotate_to_ritz(q.left_cols(b + rr), z.left_cols(b + rr), b);
    }
    if (before != b) {
      known = {.q = be_.allocate(q.rows, b), .z = be_.allocate(z.rows, b)};
    }
    be_.copy(q.left_cols(b), known.q.ref());
    be_.copy(z.left_cols(b), known.z.ref());
    return true;
  }

  static double tolerance() { return svd_options{}.tolerance; }

  /// q ← [Q, U_d], z ← [Z, C_dᵀ]. False where Q is not orthogonal to U_d, having been found in a
  /// residual of rounding errors.
  bool join(const ritz_block& known, index_t joining, block_of<B> q, block_of<B> z) {
    auto frame = be_.frame();
    const index_t before = known.q.cols();
    const auto first = q.left_cols(before);
    be_.copy(known.q.view(), first);
    be_.copy(known.z.view(), z.left_cols(before));
    if (joining == 0) return true;
    const auto ud = u_.col_range(position_, joining);
    const auto overlap = be_.scratch(joining, before);
    be_.gemm(op::transpose, op::none, T{1}, ud, first, T{0}, overlap);
    if (!(be_.max_abs(overlap) < 1e-3)) return false;
    be_.gemm(op::none, op::none, T{-1}, ud, overlap, T{1}, first);
    be_.copy(ud.view(), q.col_range(before, joining));
    be_.copy(held(position_, joining).view().transposed(), z.col_range(before, joining));
    return true;
  }

  /// Rotates q and z to Ritz vectors of RRᵀ, of which the largest b stay, in the leading columns.
  /// Returns their Ritz values, descending.
  std::vector<double> rotate_to_ritz(block_of<B> q, block_of<B> z, index_t b) {
    auto frame = be_.frame();
    const auto h = be_.scratch(z.cols, z.cols);
    be_.fill(h, T{0});
    be_.add_gram(z.transposed(), h);
    std::vector<double> theta(static_cast<std::size_t>(z.cols));
    const auto v = be_.scratch(z.cols, b);
    detail::leading_eigenpairs(be_, h, std::span<double>(theta), v);
    theta.resize(static_cast<std::size_t>(b));
    for (const auto& c : {q, z}) {
      const auto rotated = be_.scratch(c.rows, b);
      be_.gemm(op::none, op::none, T{1}, c, v, T{0}, rotated);
      be_.copy(rotated, c.left_cols(b));
    }
    return theta;
  }

  /// e ← R·z − q·Θ.
  void residuals(const_block_of<B> q, const_block_of<B> z, const std::vector<double>& theta,
                 block_of<B> e) {
    auto frame = be_.frame();
    const std::vector<T> values(theta.begin(), theta.begin() + q.cols);
    const auto scale = be_.scratch(q.cols, 1);
    be_.upload({values.data(), q.cols, 1, q.cols}, scale);
    be_.copy(q.view(), e);
    be_.scale_cols(e, scale);
    be_.gemm(op::none, op::none, T{1}, residual_.ref(), z, T{-1}, e);
  }

  /// What the Ritz values of the residuals e miss.
  double missing(const_block_of<B> e, const std::vector<double>& theta) {
    auto frame = be_.frame();
    const auto h = be_.scratch(e.cols, e.cols);
    be_.fill(h, T{0});
    be_.add_gram(e.view().transposed(), h);
    std::vector<double> squares(static_cast<std::size_t>(e.cols));
    be_.diagonal(h, squares);
    return detail::missed_by_ritz_values(theta, squares);
  }

  /// e ← an orthonormal basis of the same columns beside q, which they are orthogonal to but for
  /// rounding; completed where there are fewer directions.
  void extend(const_block_of<B> q, block_of<B> e) {
    subtract_projection(q, e);
    const double independence = detail::cholesky_qr_pass(be_, e).independence;
    if (!(independence > 1e-3)) return detail::orthonormalize_against(be_, q, e);
    if (independence < 0.1) detail::cholesky_qr_pass(be_, e);
  }

  /// The same for orthonormal columns.
  void orthonormalize_beside(const_block_of<B> q, block_of<B> c) {
    if (subtract_projection(q, c) > 1e-2) return detail::orthonormalize_against(be_, q, c);
    detail::orthonormalize(be_, c);
  }

  /// c ← (I − qqᵀ)·c; the largest element of qᵀc.
  double subtract_projection(const_block_of<B> q, block_of<B> c) {
    auto frame = be_.frame();
    const auto overlap = be_.scratch(q.cols, c.cols);
    be_.gemm(op::transpose, op::none, T{1}, q, c, T{0}, overlap);
    be_.gemm(op::none, op::none, T{-1}, q, overlap, T{1}, c);
    return be_.max_abs(overlap);
  }

  B be_;
  index_t rows_;
  index_t cols_;
  const_block_of<B> u_;
  index_t position_ = 0;                 ///< r_i that the residual is of
  matrix_of<B> residual_;                ///< R·F, F the metric, in units of the norm of W·F
  matrix_of<B> held_;                    ///< C·F, likewise
  std::vector<double> energies_;         ///< ‖R‖² for every r_i
  std::vector<double> weighed_energies_; ///< of what `residual_` becomes
  ritz_block known_;                     ///< for `residual_`; empty before the first stage
  index_t begun_ = 0;
};

/// The pair (Q, QᵀW).
template <backend B, class U>
low_rank<typename B::scalar, typename B::space> project(B& be,
                                                        matrix_view<U, typename B::space> weights,
                                                        matrix_of<B> q) {
  using T = typename B::scalar;
  const auto w = const_view(weights);
  detail::require(q.rows() == w.rows, "the basis has ", q.rows(), " rows, W has ", w.rows);
  auto frame = be.frame();
  low_rank<T, typename B::space> pair{std::move(q), {}};
  pair.v = be.allocate(pair.u.cols(), w.cols);
  detail::product(be, pair.u.transposed(), detail::in_scalar(be, w), T{0}, pair.v.view());
  return pair;
}

} // namespace v0
} // namespace ressvd
