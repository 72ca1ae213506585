// SPDX-License-Identifier: Apache-2.0
//
// How a matrix is stored: factors of some rank, or the matrix itself. Host scalars only.
//
// The compression ratio R is the share of parameters removed. A pair of factors of rank r stores an
// m×n matrix in r(m+n) numbers, so R = 1 − r(m+n)/(mn) = 1 − r/α with the break-even rank
// α = mn/(m+n), and a ratio R asks for the rank r = ⌊(1−R)α⌋ (the convention of SVD-LLM, arXiv
// 2403.07378). A pivoted pair of rank r takes r(m+n−r) numbers, so a ratio R asks for
//   r = ⌊((m+n) − √((m+n)² − 4(1−R)mn)) / 2⌋,
// the largest r with r(m+n−r) ≤ (1−R)mn. Rank min(m, n) takes mn, what the matrix takes: every
// rank below saves something.
//
// Rounding rule. Ratios such as 0.9 or N·R/k are rarely exact in binary: (1 − 0.9)·10 is
// 0.99999999999999978. So a share of parameters counts as another when they differ by no more than
// the error such a ratio can have, 64 ε ≈ 1.4e-14.
//
// Errors: std::invalid_argument, with the numbers, for sizes outside [1, 2³¹), ratios outside
// [0, 1) and ranks that the matrix does not have.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <variant>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

/// How factors of rank r store an m×n matrix: a pair U·V, U m×r and V r×n, in r(m+n) numbers; a
/// pivoted pair P·[I; C]·Z, P a permutation, C (m−r)×r and Z r×n, in r(m+n−r). There r rows of the
/// product span it, and only the other rows need coefficients.
enum class factored_form : std::uint8_t { pair, pivoted };

/// Factors of this rank, or the matrix itself.
struct rank_choice {
  index_t rank = 0;   ///< of the factors; min(rows, cols) when dense
  bool dense = false; ///< the matrix itself is kept

  friend bool operator==(const rank_choice&, const rank_choice&) = default;
};

/// To which integer a rank is rounded. Halves go down: towards the smaller model.
enum class rounding : std::uint8_t { down, nearest, up };

struct rank_rounding {
  index_t multiple = 1;              ///< ranks are multiples of this (8, 32, 64 for tensor cores)
  rounding towards = rounding::down; ///< which multiple
  factored_form form = factored_form::pair; ///< what a rank costs
};

namespace detail {

inline constexpr double ratio_epsilon = 64 * std::numeric_limits<double>::epsilon();

inline void require_shape(index_t rows, index_t cols) {
  constexpr index_t largest = (std::numeric_limits<std::int32_t>::max)();
  require(rows > 0 && cols > 0 && rows <= largest && cols <= largest, "a matrix of ", rows, " x ",
          cols, " has no compression ratio; both sizes must be in [1, ", largest, "]");
}

inline void require_rank(index_t rows, index_t cols, index_t rank) {
  require_shape(rows, cols);
  require(rank >= 1 && rank <= (std::min)(rows, cols), "rank ", rank, " of a ", rows, " x ", cols,
          " matrix is outside [1, ", (std::min)(rows, cols), "]");
}

inline void require_ratio(double ratio) {
  require(ratio >= 0 && ratio < 1, "compression ratio ", ratio, " is outside [0, 1)");
}

inline void require_multiple(index_t multiple) {
  require(multiple >= 1, "rank multiple ", multiple, " is below 1");
}

inline index_t rounded(double value, rounding towards) {
  switch (towards) {
    case rounding::down:
      return static_cast<index_t>(std::floor(value));
    case rounding::up:
      return static_cast<index_t>(std::ceil(value));
    case rounding::nearest:
      break;
  }
  return static_cast<index_t>(std::ceil(value - 0.5));
}

/// What factors of this rank take, below 2⁶³ for the shapes of require_shape.
inline index_t factor_parameters(index_t rows, index_t cols, index_t rank, factored_form form) {
  return rank * (form == factored_form::pair ? rows + cols : rows + cols - rank);
}

} // namespace detail

/// The choice of the matrix itself.
inline rank_choice keep_dense(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return {.rank = (std::min)(rows, cols), .dense = true};
}

/// What stays of an m×n matrix: mn when dense, else r(m+n) in a pair, r(m+n−r) in a pivoted pair.
inline index_t kept_parameters(index_t rows, index_t cols, const rank_choice& choice,
                               factored_form form = factored_form::pair) {
  detail::require_rank(rows, cols, choice.rank);
  return choice.dense ? rows * cols : detail::factor_parameters(rows, cols, choice.rank, form);
}

/// The ratio that a choice reaches, 1 − kept/(mn): 0 when dense, negative where a pair is larger
/// than the matrix, which no pivoted pair is.
inline double achieved_ratio(index_t rows, index_t cols, const rank_choice& choice,
                             factored_form form = factored_form::pair) {
  const auto kept = static_cast<double>(kept_parameters(rows, cols, choice, form));
  return 1 - kept / static_cast<double>(rows * cols);
}

/// α = mn/(m+n), the rank at which a pair costs what the matrix costs.
inline double break_even_rank(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return static_cast<double>(rows * cols) / static_cast<double>(rows + cols);
}

/// The largest rank whose factors are smaller than the matrix: ⌈α⌉ − 1 of a pair, min(m, n) − 1 of
/// a pivoted pair; 0 for a vector.
inline index_t largest_saving_rank(index_t rows, index_t cols,
                                   factored_form form = factored_form::pair) {
  detail::require_shape(rows, cols);
  return form == factored_form::pair ? (rows * cols - 1) / (rows + cols)
                                     : (std::min)(rows, cols) - 1;
}

namespace detail {

/// The real r at which factors keep the share ρ ∈ [0, 1] of an m×n matrix: ρα in a pair, the
/// smaller root of r(m+n−r) = ρmn in a pivoted pair, written without differences of like numbers.
inline double rank_keeping(index_t rows, index_t cols, double share, factored_form form) {
  if (form == factored_form::pair) return share * break_even_rank(rows, cols);
  require_shape(rows, cols);
  const auto whole = static_cast<double>(rows * cols), sum = static_cast<double>(rows + cols),
             difference = static_cast<double>(rows - cols);
  return 2 * share * whole / (sum + std::sqrt(difference * difference + 4 * (1 - share) * whole));
}

} // namespace detail

/// The rank whose factors keep the share 1 − R of an m×n matrix, rounded as `options` says, at
/// least one multiple: (1−R)α of a pair, ((m+n) − √((m+n)² − 4(1−R)mn))/2 of a pivoted pair.
/// Rounded down, more than one multiple never keeps more than asked. Dense where that rank saves
/// nothing, or R = 0.
inline rank_choice rank_for_ratio(index_t rows, index_t cols, double ratio,
                                  const rank_rounding& options = {}) {
  detail::require_shape(rows, cols);
  detail::require_ratio(ratio);
  detail::require_multiple(options.multiple);
  const double slack =
      options.towards == rounding::down ? detail::ratio_epsilon : -detail::ratio_epsilon;
  const double share = std::clamp(1 - ratio + slack, 0.0, 1.0);
  const double multiples =
      detail::rank_keeping(rows, cols, share, options.form) / static_cast<double>(options.multiple);
  const index_t rank =
      options.multiple * std::max<index_t>(detail::rounded(multiples, options.towards), 1);
  if (ratio == 0 || rank > largest_saving_rank(rows, cols, options.form))
    return keep_dense(rows, cols);
  return {.rank = rank, .dense = false};
}

/// What a caller asks of a matrix whose shape is not known yet: at_ratio(0.4), at_rank(128).
class rank_target {
 public:
  friend rank_target at_ratio(double ratio, const rank_rounding& rounding);
  friend rank_target at_rank(index_t rank);

  /// The choice for an m×n matrix. A rank is taken as it is, also where a pair of it is larger than
  /// the matrix; it must be in [1, min(rows, cols)].
  rank_choice choose(index_t rows, index_t cols) const {
    if (const auto* by_ratio = std::get_if<wanted_ratio>(&wanted_))
      return rank_for_ratio(rows, cols, by_ratio->ratio, by_ratio->rounding);
    const index_t rank = std::get<index_t>(wanted_);
    detail::require_rank(rows, cols, rank);
    return {.rank = rank, .dense = false};
  }

 private:
  struct wanted_ratio {
    double ratio;
    rank_rounding rounding;
  };

  explicit rank_target(std::variant<index_t, wanted_ratio> wanted) : wanted_{wanted} {}

  std::variant<index_t, wanted_ratio> wanted_;
};

/// The share of parameters to remove, in [0, 1): rank_for_ratio, of the form in `rounding`.
inline rank_target at_ratio(double ratio, const rank_rounding& rounding = {}) {
  detail::require_ratio(ratio);
  detail::require_multiple(rounding.multiple);
  return rank_target{rank_target::wanted_ratio{ratio, rounding}};
}

/// Factors of this rank, of either form.
inline rank_target at_rank(index_t rank) {
  return rank_target{rank};
}

} // namespace v0
} // namespace ressvd
