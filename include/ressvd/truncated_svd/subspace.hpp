// SPDX-License-Identifier: Apache-2.0
//
// Leading singular subspace of A: m × p by Chebyshev-filtered block subspace iteration, in the
// backend's own scalar: a block of directions is multiplied by AᵀA until it holds the leading ones,
// which takes nothing but products, and few of them for a small rank. The iteration works on the
// shorter side of A, H = BᵀB with B = A (m ≥ p) or B = Aᵀ. A block Q of b = r + max(r/5, 8)
// orthonormal columns goes through sweeps
//   Z = B·Q                        loss certificate ‖A‖² − ‖Z‖²_F for all b columns
//   [θ_b, θ_r] of ZᵀZ              its lowest Ritz values, by inverse iteration in double
//   Q ← orth(T_d(2H/a − 1)·Q)      damps [0, a], a = θ_b, and lifts what is above it
// and one Rayleigh–Ritz step ends: ZᵀZ = VΘVᵀ, U = Q·V or Z·V·Θ^(-1/2).
//
// A Ritz value never exceeds the eigenvalue it stands for, so no wanted direction is damped. The
// Ritz values of the start block are far too low; a = min(θ_r, 2θ_b) there. Each sweep divides the
// excess of the loss at rank r by about 1/c = T_d(2θ_r/θ_b − 1)², so one that gained δ left about
// δ·c/(1 − c). The residuals of the Ritz vectors decide once that is within the tolerance, with
// what they miss of the optimum:
//   E = (I − QQᵀ)·BᵀZ·V            Σ ‖e_i‖²/(θ_i − θ_m) for i ≤ r, m = (r + b)/2
// The product serves the next filter if there is one. The iteration ends above the tolerance when
// sweeps no longer lower that estimate.
//
// A filter lifts the largest eigenvalue by T_d(2θ_1/a − 1), which must leave digits for the others
// and draws the columns together: Cholesky QR begins with a pass in mixed precision beyond 1e3. The
// lift bounds the degree. Ritz vectors that are far above the rest and have converged are locked:
// kept as they are and projected out of A (a quarter of the block at a time). A sweep goes by B and
// Bᵀ in turn, with a basis of its own between them, where even degree one lifts too much.
//
//   cost        2mpb flops for each multiplication by B or Bᵀ, 6·min(m, p)·b² for each
//               orthonormalisation; for each decision, mostly one, a multiplication,
//               8·min(m, p)·b² and 5b³
//   workspace   A, at most 2(m + p)·b + 3b² scalars and 3b² + 512b doubles
//   blocks      in every sweep
//   source      Zhou, Saad, Tiago, Chelikowsky, "Self-consistent-field calculations using
//               Chebyshev-filtered subspace iteration", J. Comput. Phys. 219 (2006)
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
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/ritz_svd.hpp"
#include "ressvd/truncated_svd/ritz_values.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Columns that the iteration works on.
inline index_t subspace_block(index_t rank) {
  return rank + (std::max)(rank / 5, index_t{8});
}

/// T_d(x) for x ≥ −1; |T_d| ≤ 1 below 1.
inline double chebyshev(double x, index_t degree) {
  return x <= 1 ? 1 : std::cosh(static_cast<double>(degree) * std::acosh(x));
}

/// The iteration on a B of norm 1 up to a power of two.
template <backend B>
class subspace_iteration {
  using T = typename B::scalar;
  using wide = wide_backend<B>;
  using block_type = block_of<B>;

 public:
  /// energy: ‖B‖_F². Makes the blocks it works on in the caller's frame; b is destroyed.
  subspace_iteration(B& be, iterated_matrix<B>& b, double energy, index_t rank,
                     const svd_options& options)
      : be_(be),
        be64_(be),
        b_(b),
        options_(options),
        rank_(rank),
        largest_lift_(lift_allowed(options.tolerance)),
        columns_(columns(rank)),
        active_(columns_),
        all_(be, be.scratch(b.cols(), columns_), be.scratch(b.rows(), columns_)),
        y_(be.scratch(b.cols(), columns_)),
        ritz_(be, all_, rank),
        total_(energy),
        remaining_(energy) {}

  /// Columns of the block.
  static index_t columns(index_t rank) { return subspace_block(rank); }

  /// Never declines.
  bool run() {
    take_first_outliers();
    start();
    iterate();
    report_.algorithm = svd_algorithm::subspace;
    report_.applications =
        static_cast<double>(b_.columns_multiplied()) / static_cast<double>(2 * columns_);
    return true;
  }

  const svd_report& report() const { return report_; }
  leading_ritz_vectors<B>& ritz() { return ritz_; }

 private:
  static constexpr bool is_float = sizeof(T) == 4;
  static constexpr auto eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  static constexpr index_t largest_degree = 4;
  static constexpr index_t most_sweeps = 60;
  /// The estimate was up to 1.15 times too small.
  static constexpr double margin = 0.8;
  /// The condition that Cholesky QR can still take apart.
  static constexpr double most_lift = is_float ? 3e5 : 1e8;
  /// Above this the columns of a filtered block are too dependent for a Gram in their own scalar.
  static constexpr double plain_lift = 1e3;

  /// The most that a filter may lift: it leaves the directions it lifts least a part of eps·lift of
  /// noise, whose energy counts against the tolerance.
  static double lift_allowed(double tolerance) {
    return (std::min)(most_lift, std::sqrt(tolerance / 3) / eps);
  }

  index_t locked() const { return columns_ - active_; }
  ritz_block<B> active() const { return all_.part(locked(), active_); }
  block_type q() const { return active().x(); }
  block_type z() const { return active().image(); }

  /// The directions far above the rest. Without them a random start block is well enough
  /// conditioned for Cholesky QR.
  void take_first_outliers() {
    if (total_ == 0) return;
    const index_t count = (std::min)(columns_ / 2, (std::max)(columns_ / 16, index_t{16}));
    all_.part(0, count).seek_leading(b_, options_.seed);
    lock(count, 9);
  }

  void start() {
    be_.random_normal(z(), options_.seed + 1);
    b_.backward(z(), q());
    orthonormalize(be_, q());
  }

  void iterate() {
    // The rounding errors of forming A and of taking parts out of it.
    const double noise = eps * eps * static_cast<double>(b_.cols() + b_.rows()) * total_;
    std::optional<double> previous_loss;
    bool estimated = false;
    double missed = std::numeric_limits<double>::infinity();
    double damped_up_to = 0; // the upper end of the last filter's interval
    index_t degree = 1;
    index_t hidden_sweeps = 0;
    for (;; ++report_.sweeps) {
      report_progress(options_, sweeps_done());
      b_.forward(q(), z());
      double loss = remaining_ - be_.dot(z(), z());
      if (loss < 0.01 * remaining_) {
        active().polish();
        loss = remaining_ - be_.dot(z(), z());
      }
      // A loss that rounding hides in the difference shows when the largest part is taken out.
      const auto hidden = [&] { return loss <= 4 * eps * remaining_ && remaining_ > noise; };
      while (hidden() && active_ >= 16 && lock(active_ / 4, 1) > 0)
        loss = remaining_ - be_.dot(z(), z());
      if (hidden()) {
        if (++hidden_sweeps > 4) return finish(4 * eps * remaining_ / loss);
        half_steps();
        orthonormalize_active(most_lift);
        continue;
      }

      if (loss <= noise) return finish(0);

      ritz_interval theta = active_interval();
      const double loss_at_rank = loss + theta.beyond;
      double& excess = report_.excess_loss;
      if (previous_loss) {
        const double a = damped_up_to;
        const double kept = chebyshev(2 * (std::max)(theta.lowest, a) / a - 1, degree) /
                            chebyshev(2 * (std::max)(theta.wanted, a) / a - 1, degree);
        const double contraction = std::clamp(kept * kept, 1e-6, 0.9);
        const double progress = (std::max)(*previous_loss / loss_at_rank - 1, 0.0);
        const double left = progress * contraction / (1 - contraction);
        excess = estimated ? (std::min)(excess * contraction, left) : left;
        estimated = true;
        const bool last = report_.sweeps >= most_sweeps;
        if (excess <= options_.tolerance || last) {
          const double before = std::exchange(missed, missed_by_ritz_vectors());
          excess = missed;
          if (missed <= margin * options_.tolerance || missed > 0.9 * before || last) return;
        }
      }
      previous_loss = loss_at_rank;

      const bool may_lock = active_ > columns_ / 2 && active_ >= 16;
      if (may_lock && lift(theta, 3) > largest_lift_ && lock(active_ / 4, 1) > 0) {
        theta.highest = 1.1 * highest_unlocked_;
      }
      // The Ritz values of the start block are far too low.
      if (!estimated) theta.lowest = (std::min)(theta.wanted, 2 * theta.lowest);
      damped_up_to = theta.lowest;
      if (lift(theta, 1) > 2 * largest_lift_) {
        degree = 1;
        half_steps();
        orthonormalize_active(most_lift);
      } else {
        degree = choose_degree(theta, estimated);
        filter(degree, theta.lowest);
        orthonormalize_active(lift(theta, degree));
      }
    }
  }

  /// The share of the work behind a sweep: most matrices take about four.
  double sweeps_done() const {
    const auto sweeps = static_cast<double>(report_.sweeps + 1);
    return sweeps / (sweeps + 3);
  }

  void finish(double excess) {
    ritz_.find(active(), remaining_);
    report_.excess_loss = excess;
  }

  /// The loss of the Ritz vectors, relative to the optimum.
  double missed_by_ritz_vectors() {
    ritz_.find(active(), remaining_);
    applied_ = true;
    return ritz_.missed(b_, y_);
  }

  static double lift(const ritz_interval& theta, index_t degree) {
    return chebyshev(2 * theta.highest / theta.lowest - 1, degree);
  }

  /// As many as the lift allows and the tolerance still needs.
  index_t choose_degree(const ritz_interval& theta, bool estimated) const {
    index_t allowed = 1;
    while (allowed < largest_degree && lift(theta, allowed + 1) <= largest_lift_)
      ++allowed;
    if (!estimated) return allowed;
    const double missing = std::sqrt(report_.excess_loss / options_.tolerance);
    index_t needed = 1;
    while (needed < allowed && chebyshev(2 * theta.wanted / theta.lowest - 1, needed) < missing)
      ++needed;
    return needed;
  }

  /// q ← T_d(2BᵀB/a − 1)·q, by the three-term recurrence; z = B·q on entry.
  void filter(index_t degree, double a) {
    const auto unit = static_cast<T>(2 / a);
    auto before = q();
    auto now = y_.col_range(locked(), active_);
    if (applied_) {
      be_.scale(unit, now);
      be_.add(T{-1}, before, now);
    } else {
      be_.copy(before, now);
      b_.backward(unit, z(), T{-1}, now);
    }
    applied_ = false;
    for (index_t step = 1; step < degree; ++step) {
      b_.forward(now, z());
      b_.backward(2 * unit, z(), T{-1}, before);
      be_.add(T{-2}, now, before);
      std::swap(before, now);
    }
    if (now.data != q().data) be_.copy(now, q());
  }

  /// q ← Bᵀ·orth(z).
  void half_steps() {
    applied_ = false;
    orthonormalize(be_, z());
    b_.backward(z(), q());
  }

  /// Within the complement of what is locked; `lifted`: how far the filter drew the columns
  /// together. One pass of Cholesky QR where they are independent enough: between sweeps a basis
  /// need not be orthonormal to the last digits.
  void orthonormalize_active(double lifted) {
    if (locked() > 0) project_out<B>(be_, all_.x().left_cols(locked()), q());
    if (is_float && lifted > plain_lift) mixed_cholesky_qr_pass(be_, q());
    if (cholesky_qr_pass(be_, q()).independence * 1e-4 < eps) orthonormalize(be_, q());
  }

  ritz_interval active_interval() {
    auto frame = be64_.frame();
    const auto h = be64_.scratch(active_, active_);
    { // zᵀz, summed in the backend's scalar; both triangles
      auto inner = be_.frame();
      const auto sum = be_.scratch(active_, active_);
      be_.fill(sum, T{0});
      be_.add_gram(z().transposed(), sum);
      be_.mirror_lower(sum);
      be64_.copy(sum, h);
    }
    return ritz_interval_of<wide>(be64_, h, columns_ - rank_, eps, options_.seed + 2);
  }

  /// Locks those among the first `count` active directions that are outliers of b, `ratio` times
  /// above the last one. z = B·q on entry and on return. Returns how many.
  index_t lock(index_t count, double ratio) {
    applied_ = false; // y serves as scratch
    const auto taken = active().part(0, count).take_outliers(b_, ratio, count, y_.left_cols(count));
    highest_unlocked_ = taken.next;
    if (taken.count() == 0) return 0;
    remaining_ = b_.energy();
    active_ -= taken.count();
    return taken.count();
  }

  B& be_;
  wide be64_;
  iterated_matrix<B>& b_;
  const svd_options& options_;
  index_t rank_;
  double largest_lift_;
  index_t columns_;   ///< b
  index_t active_;    ///< columns that still iterate; the locked ones come first
  ritz_block<B> all_; ///< Q and Z = B·Q
  block_type y_;      ///< like Q; Bᵀ·Z where `applied_`
  bool applied_ = false;
  leading_ritz_vectors<B> ritz_;
  double total_;
  double remaining_;            ///< energy of B without what is locked
  double highest_unlocked_ = 0; ///< Ritz value that the last call of lock stopped at
  svd_report report_;
};

/// u: the leading u.cols left singular vectors. Declines where its block has as many columns as A
/// has rows or columns.
template <backend B>
std::optional<svd_outcome> subspace_svd(B& be, const weighted_matrix<B>& parts,
                                        const svd_options& options, block_of<B> u) {
  return ritz_svd<subspace_iteration<B>>(be, parts, options, u);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
