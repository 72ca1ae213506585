// SPDX-License-Identifier: Apache-2.0
//
// How a matrix is stored: two factors of some rank, or the matrix itself. Host scalars only.
//
// Two factors of rank r store an m×n matrix in r(m+n) numbers, so the compression ratio (the share
// of parameters removed) is R = 1 − r(m+n)/(mn) = 1 − r/α with the break-even rank α = mn/(m+n),
// and a ratio R asks for the rank r = ⌊(1−R)α⌋ (the convention of SVD-LLM, arXiv 2403.07378).
//
// Rounding rule. Ratios such as 0.9 or N·R/k are rarely exact in binary: (1 − 0.9)·10 is
// 0.99999999999999978. A value is taken for the integer next to it when they differ by less than
// the error such a ratio can cause, 64 ε α ≈ 1.4e-14 α.
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

/// Two factors of this rank, or the matrix itself.
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

/// `value` rounded to an integer, where differences below `slack` do not count.
inline index_t round_with_slack(double value, double slack, rounding towards) {
  switch (towards) {
    case rounding::down:
      return static_cast<index_t>(std::floor(value + slack));
    case rounding::up:
      return static_cast<index_t>(std::ceil(value - slack));
    case rounding::nearest:
      break;
  }
  return static_cast<index_t>(std::ceil(value - 0.5 - slack));
}

} // namespace detail

/// The choice of the matrix itself.
inline rank_choice keep_dense(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return {.rank = (std::min)(rows, cols), .dense = true};
}

/// What stays of a matrix: mn when dense, r(m+n) otherwise.
inline index_t kept_parameters(index_t rows, index_t cols, const rank_choice& choice) {
  detail::require_rank(rows, cols, choice.rank);
  return choice.dense ? rows * cols : choice.rank * (rows + cols);
}

/// The ratio that a choice reaches: 0 when dense, else 1 − r/α, negative where the factors are
/// larger than the matrix.
inline double achieved_ratio(index_t rows, index_t cols, const rank_choice& choice) {
  const auto kept = static_cast<double>(kept_parameters(rows, cols, choice));
  return 1 - kept / static_cast<double>(rows * cols);
}

/// α = mn/(m+n), the rank at which two factors cost what the matrix costs.
inline double break_even_rank(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return static_cast<double>(rows * cols) / static_cast<double>(rows + cols);
}

/// The largest rank whose factors are smaller than the matrix, ⌈α⌉ − 1; 0 for a vector.
inline index_t largest_saving_rank(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return (rows * cols - 1) / (rows + cols);
}

/// The rank (1−R)α, rounded as `options` says, at least one multiple. Dense where that rank saves
/// nothing, or R = 0.
inline rank_choice rank_for_ratio(index_t rows, index_t cols, double ratio,
                                  const rank_rounding& options = {}) {
  detail::require_ratio(ratio);
  detail::require_multiple(options.multiple);
  const double multiples = break_even_rank(rows, cols) / static_cast<double>(options.multiple);
  const index_t rounded = detail::round_with_slack(
      (1 - ratio) * multiples, detail::ratio_epsilon * multiples, options.towards);
  const index_t rank = options.multiple * std::max<index_t>(rounded, 1);
  if (ratio == 0 || rank > largest_saving_rank(rows, cols)) return keep_dense(rows, cols);
  return {.rank = rank, .dense = false};
}

/// What a caller asks of a matrix whose shape is not known yet: at_ratio(0.4), at_rank(128).
class rank_target {
 public:
  friend rank_target at_ratio(double ratio, const rank_rounding& rounding);
  friend rank_target at_rank(index_t rank);

  /// The choice for an m×n matrix. A rank is taken as it is, also where its factors are larger than
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

/// The share of parameters to remove, in [0, 1): rank_for_ratio.
inline rank_target at_ratio(double ratio, const rank_rounding& rounding = {}) {
  detail::require_ratio(ratio);
  detail::require_multiple(rounding.multiple);
  return rank_target{rank_target::wanted_ratio{ratio, rounding}};
}

/// Two factors of this rank.
inline rank_target at_rank(index_t rank) {
  return rank_target{rank};
}

} // namespace v0
} // namespace ressvd
