// SPDX-License-Identifier: Apache-2.0
//
// The smallest and the largest eigenvalues of a small symmetric h = ZᵀZ (b × b, double), roughly: a
// block iteration steers by them. A few steps of inverse and of power iteration find them.
//   cost        b³/3 flops and 20 b² for each of the lowest values
//   workspace   b² and 2b doubles for each of the lowest values
//   blocks      yes
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Eigenvalues of xᵀ·h·x, ascending.
template <backend W>
std::vector<double> ritz_values(W& be64, block_of<W> h, block_of<W> x) {
  auto frame = be64.frame();
  const auto hx = be64.scratch(x.rows, x.cols);
  const auto small = be64.scratch(x.cols, x.cols);
  be64.gemm(op::none, op::none, 1.0, h, x, 0.0, hx);
  be64.gemm(op::transpose, op::none, 1.0, x, hx, 0.0, small);
  std::vector<double> values(static_cast<std::size_t>(x.cols));
  be64.eigh(small, values);
  return values;
}

/// Power iteration on a few columns reaches 9/10 of it.
template <backend W>
double largest_eigenvalue(W& be64, block_of<W> h, std::uint64_t seed) {
  auto frame = be64.frame();
  const index_t count = (std::min)(index_t{4}, h.cols);
  auto x = be64.scratch(h.cols, count);
  auto y = be64.scratch(h.cols, count);
  be64.random_normal(x, seed);
  for (int step = 0; step < 6; ++step) {
    be64.gemm(op::none, op::none, 1.0, h, x, 0.0, y);
    std::swap(x, y);
    orthonormalize(be64, x);
  }
  return 1.1 * ritz_values(be64, h, x).back();
}

/// The ends of a spectrum θ_1 ≥ … ≥ θ_b of which the last `dropped` values are not wanted.
struct ritz_interval {
  double lowest = 0;  ///< θ_b
  double wanted = 0;  ///< θ_r, r = b − dropped
  double beyond = 0;  ///< Σ_{r<i≤b} θ_i
  double highest = 0; ///< θ_1
};

/// The ends of the spectrum of h, whose entries are good to eps·θ_1. Inverse iteration finds the
/// lowest values, power iteration the highest.
template <backend W>
ritz_interval ritz_interval_of(W& be64, block_of<W> h, index_t dropped, double eps,
                               std::uint64_t seed) {
  auto frame = be64.frame();
  std::vector<double> diagonal(static_cast<std::size_t>(h.cols));
  be64.diagonal(h, diagonal);
  double trace = 0;
  for (const double d : diagonal)
    trace += d;
  require<backend_error>(trace > 0 && std::isfinite(trace), "the Gram of ", h.cols,
                         " columns of an iteration has trace ", trace);
  // Far below what rounding leaves of the lowest value; makes the factorisation exist.
  double shift = trace * eps / 16;
  const auto l = be64.scratch(h.cols, h.cols);
  for (;; shift *= 16) {
    be64.copy(h, l);
    be64.shift_diagonal(l, shift);
    if (be64.potrf(l) == 0) break;
  }
  const index_t count = (std::min)(dropped + dropped / 2 + 8, h.cols);
  const auto x = be64.scratch(h.cols, count);
  be64.random_normal(x, seed);
  for (int step = 0; step < 4; ++step) {
    be64.trsm(side::left, op::none, l, x);
    be64.trsm(side::left, op::transpose, l, x);
    if (step % 2 == 1) orthonormalize(be64, x);
  }
  const std::vector<double> values = ritz_values(be64, h, x); // ascending
  ritz_interval theta;
  theta.lowest = (std::max)(values.front(), shift);
  theta.wanted = values[static_cast<std::size_t>((std::min)(dropped, count - 1))];
  // h may have fewer values than are not wanted where the rank is small: the others are locked.
  for (index_t i = 0; i < (std::min)(dropped, count); ++i)
    theta.beyond += (std::max)(values[static_cast<std::size_t>(i)], 0.0);
  theta.highest = (std::max)(largest_eigenvalue(be64, h, seed + 1), theta.wanted);
  return theta;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
