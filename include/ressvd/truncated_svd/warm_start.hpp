// SPDX-License-Identifier: Apache-2.0
//
// Truncated SVDs of one matrix A without its first i directions, for many i, each from the one
// before: R_i = (I − U_iU_iᵀ)·A, U_i the first i columns of an orthonormal U. R gains what d
// vectors U_d hold when they return,
//   R' = R + U_d·C_d,  C = UᵀA, known from the start,
// and the last block of Ritz vectors Q beside U_d has the image [RᵀQ, C_dᵀ] under R'ᵀ without a
// product. A block of b = r + max(r/5, 8) vectors goes on from there, for rank r:
//   RRᵀ ≈ Q·Θ·Qᵀ,  Z = RᵀQ       Rayleigh–Ritz
//   E = (I − QQᵀ)·R·Z             residuals of the first r
//   Σ ‖e_i‖²/(θ_i − θ_m)          what these miss of the optimum, m = (r + b)/2; at most the
//                                 tolerance times the loss, this ends the call
//   Q ← [Q, E]
// Counts may come in any order; descending ones are fast. An ordinary truncated SVD begins anew
// where i rises or falls by more than 4b, where r rises, for algorithms other than automatic and
// subspace, and where rounding would decide. Equal sequences of calls give equal results; those of
// one call after different sequences agree within the tolerance.
//
//   cost        for A: m × p, 2mp(d + r) a call and 4mp·r for each extension, of which there are
//               mostly 0 to 2
//   state       mp + p·(columns of U) + (m + p)·b scalars
//   workspace   (m + p)·max(2b, b + d) scalars, and truncated_svd's for a call that begins anew
//   blocks      yes
//   source      the bound: Parlett, "The Symmetric Eigenvalue Problem", ch. 11
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// ‖R_i‖_F² = ‖R‖² + Σ_{j≥i} ‖c_j‖² for every i from 0 to the rows of C, R being what all of U
/// leaves.
template <backend B>
std::vector<double> energies_without(B& be, const_block_of<B> residual, const_block_of<B> held) {
  std::vector<double> values(static_cast<std::size_t>(held.rows));
  be.row_squared_norms(held, values);
  values.push_back(be.dot(residual, residual));
  for (std::size_t i = values.size() - 1; i-- > 0;)
    values[i] += values[i + 1];
  return values;
}

} // namespace detail

template <backend B>
class warm_started_svd {
  using T = typename B::scalar;

 public:
  /// u: m × k, orthonormal, which must outlive this object; residual: A − U·C, m × p; held: C =
  /// UᵀA, k × p.
  warm_started_svd(B be, const_block_of<B> u, matrix_of<B> residual, matrix_of<B> held)
      : be_(std::move(be)),
        u_(u),
        position_(u.cols),
        residual_(std::move(residual)),
        held_(std::move(held)),
        energies_(detail::energies_without<B>(be_, residual_, held_)) {
    // A gets norm 1 up to a power of two, as its squares are formed in the backend's scalar.
    const double norm = detail::power_of_two_above(std::sqrt(energies_.front()));
    be_.scale(static_cast<T>(1 / norm), residual_.ref());
    be_.scale(static_cast<T>(1 / norm), held_.ref());
    for (double& e : energies_)
      e /= norm * norm;
  }

  /// The leading `rank` left singular vectors of R_i, i = removed, m × rank, orthonormal; they live
  /// until the next call. Rank 0 changes i alone. Throws as truncated_svd does; the next call then
  /// begins anew.
  const_block_of<B> leading_vectors(index_t removed, index_t rank, const svd_options& options) {
    auto known = std::exchange(known_, {});
    const index_t joining = position_ - removed;
    move_to(removed);
    if (rank == 0) return {};
    const svd_options watched = detail::with_rising_progress(options);
    const bool iterates = options.algorithm == svd_algorithm::automatic ||
                          options.algorithm == svd_algorithm::subspace;
    if (!iterates || joining < 0 || !refine(known, joining, rank, watched)) {
      known = begin(rank, watched);
    }
    known_ = std::move(known);
    return std::as_const(known_.q).ref().left_cols(rank);
  }

  /// Calls so far that began anew.
  index_t begun() const { return begun_; }

 private:
  static constexpr index_t most_extensions = 8;

  struct known_vectors {
    matrix_of<B> q; ///< orthonormal, beside U_i; leading Ritz vectors first
    matrix_of<B> z; ///< Rᵀ·q
  };

  void move_to(index_t removed) {
    const index_t first = (std::min)(removed, position_);
    const index_t count = (std::max)(removed, position_) - first;
    if (count > 0) {
      be_.gemm(op::none, op::none, removed < position_ ? T{1} : T{-1}, u_.col_range(first, count),
               held(first, count), T{1}, residual_);
    }
    position_ = removed;
  }

  const_block_of<B> held(index_t first, index_t count) const {
    return held_.ref().part(first, 0, count, held_.cols());
  }

  known_vectors begin(index_t rank, const svd_options& options) {
    ++begun_;
    const index_t largest = (std::min)(residual_.rows(), residual_.cols());
    const index_t b = (std::max)(rank, (std::min)(detail::subspace_block(rank), largest));
    auto svd =
        detail::factor(be_, detail::weighted_matrix<B>{.w = const_view(residual_)}, b, options);
    known_vectors known{.q = std::move(svd.q), .z = be_.allocate(residual_.cols(), b)};
    be_.gemm(op::transpose, op::none, T{1}, residual_, known.q, T{0}, known.z);
    return known;
  }

  /// The vectors for R from those for the R before it, which the last `joining` vectors of U were
  /// not part of. False where they cannot be had from them.
  bool refine(known_vectors& known, index_t joining, index_t rank, const svd_options& options) {
    const index_t b = detail::subspace_block(rank);
    const index_t before = known.q.cols();
    const index_t room = (std::min)(residual_.rows() - position_, residual_.cols());
    const index_t most = (std::max)(b + rank, before + joining);
    if (before < b || joining > 4 * b || most > room) return false;
    auto frame = be_.frame();
    detail::iterated_matrix<B> r(be_, residual_, op::transpose);
    const detail::ritz_block<B> all(be_, be_.scratch(residual_.rows(), most),
                                    be_.scratch(residual_.cols(), most));
    if (!join(all, known, joining)) return false;
    auto theta = all.part(0, before + joining).rotate_to_ritz_vectors(b);

    const auto kept = all.part(0, b);
    const auto extension = all.part(b, rank);
    for (index_t step = 0;; ++step) {
      const auto steps = static_cast<double>(step);
      detail::report_progress(options, (steps + 1) / (steps + 3));
      double tail = energies_[static_cast<std::size_t>(position_)];
      for (index_t i = 0; i < rank; ++i)
        tail -= theta[static_cast<std::size_t>(i)];
      // The sum of the Ritz values has an error of a few eps of the largest.
      constexpr double noise = 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
      if (!(noise * theta.front() < options.tolerance * tail)) return false;
      r.backward(kept.image().left_cols(rank), extension.x());
      const auto missed = detail::missed_by_ritz_values(theta, kept.residuals(extension.x()));
      if (missed <= options.tolerance * tail) break;
      if (step == most_extensions) return false;
      orthonormalize_residuals(kept.x(), extension.x());
      r.forward(extension.x(), extension.image());
      theta = all.part(0, b + rank).rotate_to_ritz_vectors(b);
    }
    if (before != b) {
      known = {.q = be_.allocate(residual_.rows(), b), .z = be_.allocate(residual_.cols(), b)};
    }
    be_.copy(kept.x(), known.q.ref());
    be_.copy(kept.image(), known.z.ref());
    return true;
  }

  /// What is known, and the directions that return, become the leading columns. False where these
  /// are not orthogonal, what is known having been found in a residual of rounding errors.
  bool join(const detail::ritz_block<B>& all, const known_vectors& known, index_t joining) {
    const index_t before = known.q.cols();
    all.join(0, known.q.view(), known.z.view());
    if (joining == 0) return true;
    auto frame = be_.frame();
    const auto returning = u_.col_range(position_, joining);
    const auto overlap = be_.scratch(joining, before);
    detail::project_out<B>(be_, returning, all.x().left_cols(before), overlap);
    if (!(be_.max_abs(overlap) < 1e-3)) return false;
    all.join(before, returning.view(), held(position_, joining).transposed());
    return true;
  }

  /// e ← an orthonormal basis of the same columns beside q, which they are orthogonal to but for
  /// rounding; completed where there are fewer directions.
  void orthonormalize_residuals(const_block_of<B> q, block_of<B> e) {
    detail::project_out<B>(be_, q, e);
    const double independence = detail::cholesky_qr_pass(be_, e).independence;
    if (!(independence > 1e-3)) return detail::orthonormalize_against<B>(be_, q, e);
    if (independence < 0.1) detail::cholesky_qr_pass(be_, e);
  }

  B be_;
  const_block_of<B> u_;
  index_t position_;             ///< i that the residual is of
  matrix_of<B> residual_;        ///< R_i, in units of the norm of A
  matrix_of<B> held_;            ///< C, likewise
  std::vector<double> energies_; ///< ‖R_i‖² for every i, likewise
  known_vectors known_;          ///< for `residual_`; empty before the first call
  index_t begun_ = 0;
};

} // namespace v0
} // namespace ressvd
