// SPDX-License-Identifier: Apache-2.0
//
// Leading singular subspace of A: m × p by Chebyshev-filtered block subspace iteration, in the
// backend's own scalar. On the shorter side of A, H = BᵀB with B = A (m ≥ p) or B = Aᵀ, a block Q
// of b = r + max(r/5, 8) orthonormal columns goes through sweeps
//   Z = B·Q                        loss certificate ‖A‖² − ‖Z‖²_F for all b columns
//   [θ_b, θ_r] of ZᵀZ              its lowest Ritz values, by inverse iteration in double
//   Q ← orth(T_d(2H/a − 1)·Q)      damps [0, a], a = θ_b, and lifts what is above it
// and one Rayleigh–Ritz step ends: ZᵀZ = VΘVᵀ, U = Q·V or Z·V·Θ^(-1/2).
//
// A Ritz value never exceeds the eigenvalue it stands for, so that no wanted direction is damped;
// those of the start block are far below it, and there a = min(θ_r, 2θ_b). Each sweep divides the
// excess of the loss at rank r by about 1/c = T_d(2θ_r/θ_b − 1)², so one that gained δ left about
// δ·c/(1 − c). Where that is within the tolerance, the Ritz vectors' residuals decide, with what
// they miss of the optimum:
//   E = (I − QQᵀ)·BᵀZ·V            Σ ‖e_i‖²/(θ_i − θ_m) for i ≤ r, m = (r + b)/2
// The product serves the next filter if there is one. Where sweeps no longer lower that estimate
// the iteration ends above the tolerance.
//
// A filter lifts the largest eigenvalue by T_d(2θ_1/a − 1), which must leave digits for the others
// and draws the columns together: beyond 1e3 Cholesky QR begins with a pass in mixed precision. The
// degree is bounded by the lift, and Ritz vectors that are far above the rest and have converged
// are locked: kept as they are and projected out of A (a quarter of the block at a time). Where
// even degree one lifts too much, the sweep goes by B and Bᵀ in turn, with a basis of its own
// between them.
//
//   cost        2mpb flops for each multiplication by B or Bᵀ, 6·min(m, p)·b² for each
//               orthonormalisation; for each decision, mostly one, a multiplication,
//               8·min(m, p)·b² and 5b³
//   workspace   at most 2(m + p)·b + 3b² scalars and 3b² + 512b doubles
//   blocks      in every sweep
//   source      Zhou, Saad, Tiago, Chelikowsky, "Self-consistent-field calculations using
//               Chebyshev-filtered subspace iteration", J. Comput. Phys. 219 (2006)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/truncated_svd/ritz_values.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

struct subspace_options {
  index_t rank = 0;
  double tolerance = 1e-3;
  std::uint64_t seed = 0;
};

struct subspace_outcome {
  double tail = 0; ///< energy of A beyond the rank
  index_t sweeps = 0;
  double applications = 0; ///< of BᵀB to the block
  double excess = 0;       ///< estimate of tail / optimum − 1
};

/// Columns that the iteration works on.
inline index_t subspace_block(index_t rank) {
  return rank + (std::max)(rank / 5, index_t{8});
}

/// T_d(x) for x ≥ −1; |T_d| ≤ 1 below 1.
inline double chebyshev(double x, index_t degree) {
  return x <= 1 ? 1 : std::cosh(static_cast<double>(degree) * std::acosh(x));
}

template <backend B>
class subspace_iteration {
  using T = typename B::scalar;
  using wide = wide_backend<B>;
  using block_type = block_of<B>;
  using wide_block = block_of<wide>;

 public:
  /// a: destroyed.
  subspace_iteration(B& be, block_type a, const subspace_options& options)
      : be_(be),
        be64_(be),
        a_(a),
        options_(options),
        on_right_(a.rows >= a.cols),
        largest_lift_(lift_allowed(options.tolerance)),
        short_(on_right_ ? a.cols : a.rows),
        long_(on_right_ ? a.rows : a.cols),
        columns_(subspace_block(options.rank)),
        active_(columns_) {}

  /// values: the leading `rank` singular values; u: m × rank.
  subspace_outcome run(std::span<double> values, block_type u) {
    auto frame = be64_.frame();
    vectors_ = be64_.scratch(columns_, options_.rank);
    q_ = be_.scratch(short_, columns_);
    y_ = be_.scratch(short_, columns_);
    z_ = be_.scratch(long_, columns_);
    // Of norm 1 to a power of two: its products neither overflow nor vanish in float.
    const double unit = power_of_two_above(std::sqrt(be_.dot(a_, a_)));
    be_.scale(static_cast<T>(1 / unit), a_);
    total_ = be_.dot(a_, a_);
    remaining_ = total_;
    find_outliers();
    start();
    iterate();
    take_result(values, u);
    for (double& v : values)
      v *= unit;
    outcome_.tail *= unit * unit;
    return outcome_;
  }

 private:
  static constexpr bool is_float = sizeof(T) == 4;
  static constexpr auto eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  static constexpr index_t largest_degree = 4;
  static constexpr index_t most_sweeps = 60;
  /// The estimate was up to 1.15 times too small.
  static constexpr double margin = 0.8;
  /// What Cholesky QR can still take apart.
  static constexpr double most_lift = is_float ? 3e5 : 1e8;
  /// Above this the columns of a filtered block are too dependent for a Gram in their own scalar.
  static constexpr double plain_lift = 1e3;
  /// ‖BᵀB·x − θx‖/θ below which a Ritz vector is locked: it misses this squared of a direction, and
  /// the block has r/5 directions to spare.
  static constexpr double lock_residual = 0.02;

  /// What a filter may lift: it leaves the directions it lifts least a part of eps·lift of noise,
  /// whose energy counts against the tolerance.
  static double lift_allowed(double tolerance) {
    return (std::min)(most_lift, std::sqrt(tolerance / 3) / eps);
  }

  block_type q() { return q_.col_range(locked(), active_); }
  block_type z() { return z_.col_range(locked(), active_); }
  index_t locked() const { return columns_ - active_; }

  /// out ← B·x.
  void forward(block_type x, block_type out) {
    be_.gemm(on_right_ ? op::none : op::transpose, op::none, T{1}, a_, x, T{0}, out);
    outcome_.applications += 0.5 * share(x);
  }
  /// out ← alpha·Bᵀ·y + beta·out.
  void backward(T alpha, block_type y, T beta, block_type out) {
    be_.gemm(on_right_ ? op::transpose : op::none, op::none, alpha, a_, y, beta, out);
    outcome_.applications += 0.5 * share(y);
  }
  double share(block_type x) const {
    return static_cast<double>(x.cols) / static_cast<double>(columns_);
  }

  /// The directions far above the rest, by power iteration on a small block. Without them a random
  /// start block is well enough conditioned for Cholesky QR.
  void find_outliers() {
    const index_t count = (std::min)(columns_ / 2, (std::max)(columns_ / 16, index_t{16}));
    if (total_ == 0) return;
    const auto x = q_.left_cols(count);
    const auto y = z_.left_cols(count);
    be_.random_normal(y, options_.seed);
    for (int step = 0; step < 3; ++step) {
      backward(T{1}, y, T{0}, x);
      orthonormalize(be_, x);
      forward(x, y);
    }
    lock(count, 9);
  }

  void start() {
    be_.random_normal(z(), options_.seed + 1);
    backward(T{1}, z(), T{0}, q());
    orthonormalize(be_, q());
  }

  void iterate() {
    // What forming A and taking parts out of it leaves of rounding.
    const double noise = eps * eps * static_cast<double>(short_ + long_) * total_;
    std::optional<double> previous_loss;
    bool estimated = false;
    double missed = std::numeric_limits<double>::infinity();
    double damped_up_to = 0; // the upper end of the last filter's interval
    index_t degree = 1;
    index_t hidden_sweeps = 0;
    for (;; ++outcome_.sweeps) {
      forward(q(), z());
      double loss = remaining_ - be_.dot(z(), z());
      if (loss < 0.01 * remaining_) {
        polish<B>(be_, q(), z());
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
      if (previous_loss) {
        const double a = damped_up_to;
        const double kept = chebyshev(2 * (std::max)(theta.lowest, a) / a - 1, degree) /
                            chebyshev(2 * (std::max)(theta.wanted, a) / a - 1, degree);
        const double contraction = std::clamp(kept * kept, 1e-6, 0.9);
        const double progress = (std::max)(*previous_loss / loss_at_rank - 1, 0.0);
        const double left = progress * contraction / (1 - contraction);
        outcome_.excess = estimated ? (std::min)(outcome_.excess * contraction, left) : left;
        estimated = true;
        const bool last = outcome_.sweeps >= most_sweeps;
        if (outcome_.excess <= options_.tolerance || last) {
          const double before = std::exchange(missed, missed_by_ritz_vectors());
          outcome_.excess = missed;
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

  void finish(double excess) {
    rayleigh_ritz();
    outcome_.excess = excess;
  }

  /// Over all columns, the locked ones included: b directions, of which the best `rank` stay.
  void rayleigh_ritz() {
    polish<B>(be_, q(), z());
    theta_.resize(static_cast<std::size_t>(columns_));
    {
      auto frame = be64_.frame();
      leading_eigenpairs(be64_, wide_gram<B>(be64_, z_), std::span<double>(theta_), vectors_);
    }
    outcome_.tail = remaining_ - be_.dot(z(), z());
    for (auto i = static_cast<std::size_t>(options_.rank); i < theta_.size(); ++i)
      outcome_.tail += (std::max)(theta_[i], 0.0);
  }

  /// What the Ritz vectors lose, relative to the optimum.
  double missed_by_ritz_vectors() {
    rayleigh_ritz();
    auto frame = be_.frame();
    const auto v = be_.scratch(columns_, options_.rank);
    const auto overlap = be_.scratch(columns_, columns_);
    const auto rotated = be_.scratch(columns_, options_.rank);
    const auto e = be_.scratch(options_.rank, short_); // in rows
    backward(T{1}, z_, T{0}, y_);
    applied_ = true;
    be_.copy(vectors_, v);
    be_.gemm(op::transpose, op::none, T{1}, q_, y_, T{0}, overlap);
    be_.gemm(op::none, op::none, T{1}, overlap, v, T{0}, rotated);
    be_.gemm(op::transpose, op::transpose, T{1}, v, y_, T{0}, e);
    be_.gemm(op::transpose, op::transpose, T{-1}, rotated, q_, T{1}, e);
    std::vector<double> squares(static_cast<std::size_t>(options_.rank));
    be_.row_squared_norms(e, squares);
    const double missing = missed_by_ritz_values(theta_, squares);
    return missing < outcome_.tail ? missing / (outcome_.tail - missing)
                                   : std::numeric_limits<double>::infinity();
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
    const double missing = std::sqrt(outcome_.excess / options_.tolerance);
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
      backward(unit, z(), T{-1}, now);
    }
    applied_ = false;
    for (index_t step = 1; step < degree; ++step) {
      forward(now, z());
      backward(2 * unit, z(), T{-1}, before);
      be_.add(T{-2}, now, before);
      std::swap(before, now);
    }
    if (now.data != q().data) be_.copy(now, q());
  }

  /// q ← Bᵀ·orth(z).
  void half_steps() {
    applied_ = false;
    orthonormalize(be_, z());
    backward(T{1}, z(), T{0}, q());
  }

  /// Within the complement of what is locked; `lifted`: how far the filter drew the columns
  /// together. One pass of Cholesky QR where they are independent enough: between sweeps a basis
  /// need not be orthonormal to the last digits.
  void orthonormalize_active(double lifted) {
    auto frame = be_.frame();
    if (locked() > 0) {
      const auto fixed = q_.left_cols(locked());
      const auto overlap = be_.scratch(locked(), active_);
      be_.gemm(op::transpose, op::none, T{1}, fixed, q(), T{0}, overlap);
      be_.gemm(op::none, op::none, T{-1}, fixed, overlap, T{1}, q());
    }
    if (is_float && lifted > plain_lift) mixed_cholesky_qr_pass(be_, q());
    if (cholesky_qr_pass(be_, q()).independence * 1e-4 < eps) orthonormalize(be_, q());
  }

  ritz_interval active_interval() {
    auto frame = be64_.frame();
    return ritz_interval_of(be64_, rough_gram(), columns_ - options_.rank, eps, options_.seed + 2);
  }

  /// zᵀz of the active columns, summed in the backend's scalar; both triangles.
  wide_block rough_gram() {
    const auto h = be64_.scratch(active_, active_);
    auto frame = be_.frame();
    const auto sum = be_.scratch(active_, active_);
    be_.fill(sum, T{0});
    be_.add_gram(z().transposed(), sum);
    be_.mirror_lower(sum);
    be64_.copy(sum, h);
    return h;
  }

  /// Rotates the first `count` active columns to their Ritz vectors and locks those that have
  /// converged and are `ratio` times above the last one. z = B·q on entry and on return. Returns
  /// how many.
  index_t lock(index_t count, double ratio) {
    applied_ = false;
    auto frame = be_.frame();
    const auto lead = q().left_cols(count);
    const auto image = z().left_cols(count);
    polish<B>(be_, lead, image);
    const std::vector<double> theta = rotate_to_ritz_vectors<B>(be_, lead, image);
    // ‖BᵀB·x − θx‖² = ‖BᵀB·x‖² − θ²
    std::vector<double> squares(theta.size());
    const auto back = be_.scratch(count, short_);
    be_.gemm(op::transpose, on_right_ ? op::none : op::transpose, T{1}, image, a_, T{0}, back);
    outcome_.applications += 0.5 * share(image);
    be_.row_squared_norms(back, squares);
    index_t done = 0;
    for (std::size_t i = 0; i < theta.size(); ++i, ++done) {
      const double limit = (1 + lock_residual * lock_residual) * theta[i] * theta[i];
      if (!(theta[i] > ratio * theta.back() && squares[i] <= limit)) break;
    }
    highest_unlocked_ = theta[static_cast<std::size_t>((std::min)(done, count - 1))];
    if (done == 0) return 0;
    const auto x = lead.left_cols(done);
    const auto bx = image.left_cols(done);
    be_.gemm(op::none, op::transpose, T{-1}, on_right_ ? bx : x, on_right_ ? x : bx, T{1}, a_);
    remaining_ = be_.dot(a_, a_);
    active_ -= done;
    return done;
  }

  /// The Ritz vectors as left vectors of A.
  void take_result(std::span<double> values, block_type u) {
    auto frame = be_.frame();
    const auto v = be_.scratch(columns_, options_.rank);
    if (on_right_) {
      std::vector<double> reciprocals(static_cast<std::size_t>(options_.rank));
      for (std::size_t i = 0; i < reciprocals.size(); ++i) {
        reciprocals[i] = theta_[i] > 0 ? 1 / std::sqrt(theta_[i]) : 0;
      }
      const auto d = be64_.scratch(options_.rank, 1);
      be64_.upload({reciprocals.data(), options_.rank, 1, options_.rank}, d);
      be64_.scale_cols(vectors_, d);
    }
    be_.copy(vectors_, v);
    be_.gemm(op::none, op::none, T{1}, on_right_ ? z_ : q_, v, T{0}, u);
    orthonormalize(be_, u);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = std::sqrt((std::max)(theta_[i], 0.0));
    outcome_.tail = (std::max)(outcome_.tail, 0.0);
  }

  B& be_;
  wide be64_;
  block_type a_;
  subspace_options options_;
  bool on_right_; ///< Q acts on A's columns
  double largest_lift_;
  index_t short_;
  index_t long_;
  index_t columns_; ///< b
  index_t active_;  ///< columns that still iterate; the locked ones come first
  block_type q_;    ///< short × b
  block_type z_;    ///< long × b, B·q
  block_type y_;    ///< short × b, Bᵀ·z where `applied_`
  bool applied_ = false;
  wide_block vectors_;        ///< of zᵀz, b × rank
  std::vector<double> theta_; ///< its eigenvalues, descending
  double total_ = 0;
  double highest_unlocked_ = 0; ///< Ritz value that the last call of lock stopped at
  double remaining_ = 0;        ///< energy of A without what is locked
  subspace_outcome outcome_;
};

/// values: the leading q.cols singular values of a, descending; q: the left vectors. a is
/// destroyed. Needs subspace_block(q.cols) < min(m, p).
template <backend B>
subspace_outcome subspace_svd(B& be, block_of<B> a, const subspace_options& options,
                              std::span<double> values, block_of<B> q) {
  return subspace_iteration<B>(be, a, options).run(values, q);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
