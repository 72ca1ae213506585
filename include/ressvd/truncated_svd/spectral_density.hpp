// SPDX-License-Identifier: Apache-2.0
//
// How many eigenvalues of a symmetric H: k × k lie above a value, roughly, from products alone: the
// moments of Chebyshev polynomials, averaged over random vectors v,
//   t_m ≈ tr T_m(2H/a − 1)/k = Σ vᵀT_m·v / Σ vᵀv,   spectrum in [0, a],
//   #{λ > μ} ≈ k/π·(θ + 2 Σ_m g_m·t_m·sin(mθ)/m),   θ = arccos(2μ/a − 1),
// with Jackson's factors g_m, which keep the density from being negative. For s vectors the count c
// has a standard deviation of √(2c/s), and the step at μ a width of about π/M·√(μ(a − μ)) for M
// moments.
//   cost        2k²·s flops for each two moments
//   workspace   2ks scalars
//   blocks      twice for each product
//   source      Weiße, Wellein, Alvermann, Fehske, "The kernel polynomial method", Rev. Mod. Phys.
//               78 (2006); Di Napoli, Polizzi, Saad, "Efficient estimation of eigenvalue counts in
//               an interval", Numer. Linear Algebra Appl. 23 (2016)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

class spectral_density {
 public:
  /// h: both triangles. bound: a.
  template <backend B>
  spectral_density(B& be, const_block_of<B> h, double bound, std::uint64_t seed)
      : order_(static_cast<double>(h.rows)), bound_(bound), moments_{1} {
    using T = typename B::scalar;
    auto frame = be.frame();
    auto before = be.scratch(h.rows, vectors);
    auto now = be.scratch(h.rows, vectors);
    be.random_normal(before, seed);
    const double unit = 1 / be.dot(before, before);
    be.copy(before, now);
    be.gemm(op::none, op::none, static_cast<T>(2 / bound), h, before, T{-1}, now);
    moments_.push_back(unit * be.dot(now, before));
    for (int step = 1; step < products; ++step) {
      moments_.push_back(2 * unit * be.dot(now, now) - 1);
      be.gemm(op::none, op::none, static_cast<T>(4 / bound), h, now, T{-1}, before);
      be.add(T{-2}, now, before);
      std::swap(before, now);
      moments_.push_back(2 * unit * be.dot(now, before) - moments_[1]);
    }
  }

  /// Whether no moment tells of eigenvalues beyond the bound: |T_m| ≤ 1 within it.
  bool is_bounded() const {
    return std::ranges::all_of(moments_, [](double t) { return std::abs(t) <= 1 + 1e-3; });
  }

  /// Falls with mu.
  double count_above(double mu) const {
    const double theta = std::acos(std::clamp(2 * mu / bound_ - 1, -1.0, 1.0));
    const double step = std::numbers::pi / static_cast<double>(moments_.size() + 1);
    double sum = theta;
    for (std::size_t i = 1; i < moments_.size(); ++i) {
      const auto m = static_cast<double>(i);
      const double jackson = (1 - m * step / std::numbers::pi) * std::cos(m * step) +
                             std::sin(m * step) / std::tan(step) * step / std::numbers::pi;
      sum += 2 * jackson * moments_[i] * std::sin(m * theta) / m;
    }
    return order_ / std::numbers::pi * sum;
  }

  /// The value above which that many eigenvalues lie.
  double cut_for(double count) const {
    double low = 0;
    double high = bound_;
    for (int halving = 0; halving < 60; ++halving) {
      const double middle = (low + high) / 2;
      (count_above(middle) > count ? low : high) = middle;
    }
    return low;
  }

 private:
  static constexpr index_t vectors = 64;
  static constexpr int products = 40;

  double order_;
  double bound_;
  std::vector<double> moments_;
};

} // namespace detail
} // namespace v0
} // namespace ressvd
