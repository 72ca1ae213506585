// SPDX-License-Identifier: Apache-2.0
//
// Leading singular subspace of A: m × p by a spectral projector made of matrix products in reduced
// precision, for machines on which those cost a fraction of others (tensor cores). It works on the
// shorter side of A, of length k, with B = A (m ≥ p) or B = Aᵀ:
//   outliers    taken out of B, as for `subspace`
//   H = BᵀB     and a cut μ with about c = 1.04·r of its eigenvalues above (spectral_density.hpp)
//   X           (H − μ)/max(a − μ, μ), H ≤ a, and then towards sign(H − μ): quintic steps
//               X ← 3.4445X + (2.0315X⁴ − 4.775X²)·X, which draw values far below 1 apart quickly,
//               and three cubic ones X ← 1.5X − 0.5X³
//   Q           orth(½(1 + X)·Ω), Ω random with 1.08·r columns
//   U           Ritz vectors of Q, certificate and estimate as for `subspace`
// Errors of X, also those of the low precision, only mix directions on both sides of the cut: they
// cost a loss of second order, 1e-5 to 7e-4 on spectra of layers. Above the tolerance a power step
// in B's scalar follows, Q ← orth(BᵀB·Q), and another, each from the products of the estimate; then
// the algorithm declines. The trace of the projector counts the eigenvalues above μ; where that is
// not in [r, 1.08·r] the cut is moved once.
//
//   cost        2k³ flops for each reduced product, 3 for a quintic step (3 to 12 of them); long·k²
//               for H; for each estimate 4mp·1.08r and an eigendecomposition of order 1.08·r
//               in double
//   workspace   A, 4k² + (3k + long)·1.08r scalars, (1.08r)² doubles and the eigendecomposition's
//   blocks      yes
//   source      the coefficients: Jordan et al., "Muon: an optimizer for hidden layers in neural
//               networks" (2024); the sign function by products: Higham, "Functions of Matrices",
//               ch. 5
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/ritz_svd.hpp"
#include "ressvd/truncated_svd/ritz_values.hpp"
#include "ressvd/truncated_svd/spectral_density.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// One factorisation of a B of norm 1 up to a power of two.
template <backend B>
class spectral_projector {
  using T = typename B::scalar;
  using block_type = block_of<B>;

 public:
  /// Makes the blocks it works on in the caller's frame; b is destroyed.
  spectral_projector(B& be, iterated_matrix<B>& b, double energy, index_t rank,
                     const svd_options& options)
      : be_(be),
        b_(b),
        options_(options),
        rank_(rank),
        columns_(columns(rank)),
        all_(be, be.scratch(b.cols(), columns_), be.scratch(b.rows(), columns_)),
        y_(be.scratch(b.cols(), columns_)),
        ritz_(be, all_, rank),
        remaining_(energy) {}

  /// Columns of the block.
  static index_t columns(index_t rank) { return rank + (std::max)(rank * 2 / 25, index_t{8}); }

  /// False where it declines.
  bool run() {
    if (remaining_ > 0) take_outliers();
    if (remaining_ <= 0 || !project()) return false;
    report_progress(options_, 0.5);
    orthonormalize_active();
    if (options_.tolerance < 5e-4) power_step(); // mostly needed then, and cheaper than to find out
    constexpr int attempts = 3;
    for (int attempt = 1;; ++attempt) {
      b_.forward(q(), z());
      ritz_.find(active(), remaining_);
      // Rounding must not be what is left.
      if (!(ritz_.tail() > 4 * eps * remaining_)) return false;
      report_.excess_loss = ritz_.missed(b_, y_);
      if (report_.excess_loss <= margin * options_.tolerance) return true;
      if (attempt == attempts) return false;
      report_progress(options_, 0.8);
      be_.copy(y_.col_range(locked_, columns_ - locked_), q());
      orthonormalize_active();
      ++report_.sweeps;
    }
  }

  const svd_report& report() const { return report_; }
  leading_ritz_vectors<B>& ritz() { return ritz_; }

 private:
  static constexpr auto eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  /// As for `subspace`: the estimate was up to 1.15 times too small.
  static constexpr double margin = 0.8;

  ritz_block<B> active() const { return all_.part(locked_, columns_ - locked_); }
  block_type q() const { return active().x(); }
  block_type z() const { return active().image(); }

  /// The directions far above the rest: they would leave the others no digits of X.
  void take_outliers() {
    const index_t count = (std::min)(columns_ / 2, (std::max)(columns_ / 16, index_t{16}));
    const auto candidates = all_.part(0, count);
    candidates.seek_leading(b_, options_.seed);
    locked_ =
        candidates.take_outliers(b_, 9, (std::min)(count, rank_ - 1), y_.left_cols(count)).count();
    remaining_ = b_.energy();
    report_progress(options_, 0.1);
  }

  /// q ← ½(1 + X)·Ω. False where no cut was found.
  bool project() {
    auto frame = be_.frame();
    const index_t k = b_.cols();
    const auto h = be_.scratch(k, k);
    be_.fill(h, T{0});
    b_.add_gram(h);
    be_.mirror_lower(h);

    double bound = largest_eigenvalue(be_, h, options_.seed + 1);
    std::optional<spectral_density> density;
    for (int attempt = 0; attempt < 4; ++attempt, bound *= 1.2) {
      density.emplace(be_, h, bound, options_.seed + 2);
      if (density->is_bounded()) break;
    }
    const auto fewest = static_cast<double>(rank_ - locked_);
    const auto most = static_cast<double>(columns_ - locked_);
    report_progress(options_, 0.2);

    auto x = be_.scratch(k, k);
    auto y = be_.scratch(k, k);
    auto s = be_.scratch(k, k);
    double asked = (fewest + most) / 2;
    for (int attempt = 0; attempt < 2; ++attempt) {
      const double cut = density->cut_for(asked);
      if (!(cut > 0)) return false;
      sign_of_difference(h, cut, bound, x, y, s);
      const double above = (static_cast<double>(k) + trace(x)) / 2;
      if (above >= fewest && above <= most) {
        be_.random_normal(y_, options_.seed + 3);
        const auto omega = y_.left_cols(columns_ - locked_);
        be_.copy(omega, q());
        be_.reduced_gemm(op::none, op::none, T{0.5}, x, omega, T{0.5}, q());
        return true;
      }
      asked += (fewest + most) / 2 - above;
      if (!(asked > 0)) return false;
    }
    return false;
  }

  /// x ← about sign(h − cut); y, s: as large.
  void sign_of_difference(block_type h, double cut, double bound, block_type& x, block_type& y,
                          block_type& s) {
    const double largest = (std::max)(bound - cut, cut);
    be_.copy(h, x);
    be_.shift_diagonal(x, static_cast<T>(-cut));
    be_.scale(static_cast<T>(1 / largest), x);
    // Until what lies a sixth of the cut away from it is near ±1.
    const double needed = std::log(6 * largest / cut) / std::log(3.4445);
    const int steps = static_cast<int>(std::clamp(std::ceil(needed), 3.0, 12.0));
    const auto multiply = [&](double alpha, block_type a, block_type b, double beta, block_type c) {
      be_.reduced_gemm(op::none, op::none, static_cast<T>(alpha), a, b, static_cast<T>(beta), c);
    };
    for (int step = 0; step < steps; ++step) {
      multiply(1, x, x, 0, s);
      be_.copy(s, y);
      multiply(2.0315, s, s, -4.775, y); // y = 2.0315X⁴ − 4.775X²
      be_.copy(x, s);
      multiply(1, y, x, 3.4445, s);
      std::swap(x, s);
    }
    for (int step = 0; step < 3; ++step) {
      multiply(1, x, x, 0, s);
      be_.copy(x, y);
      multiply(-0.5, s, x, 1.5, y);
      std::swap(x, y);
    }
  }

  double trace(block_type x) {
    std::vector<double> diagonal(static_cast<std::size_t>(x.cols));
    be_.diagonal(x, diagonal);
    double sum = 0;
    for (const double d : diagonal)
      sum += d;
    return sum;
  }

  void power_step() {
    b_.forward(q(), z());
    b_.backward(z(), q());
    orthonormalize_active();
    ++report_.sweeps;
  }

  /// Within the complement of the outliers. The projector has fewer directions than q columns: the
  /// others are what the low precision left.
  void orthonormalize_active() {
    if (locked_ > 0) project_out<B>(be_, all_.x().left_cols(locked_), q());
    if (!mixed_cholesky_qr_pass(be_, q()) || cholesky_qr_pass(be_, q()).deviation > 0.1) {
      orthonormalize(be_, q());
    }
  }

  B& be_;
  iterated_matrix<B>& b_;
  const svd_options& options_;
  index_t rank_;
  index_t columns_;
  index_t locked_ = 0; ///< outliers, the leading columns
  ritz_block<B> all_;
  block_type y_; ///< like X
  leading_ritz_vectors<B> ritz_;
  double remaining_; ///< energy of B without the outliers
  svd_report report_{.algorithm = svd_algorithm::projector};
};

/// u: the leading u.cols left singular vectors. Declines where the backend has no products in
/// reduced precision or the block has as many columns as A has rows or columns, where no cut is
/// found, and above the tolerance.
template <backend B>
std::optional<svd_outcome> projector_svd(B& be, const weighted_matrix<B>& parts,
                                         const svd_options& options, block_of<B> u) {
  if constexpr (has_reduced_gemm<B>) {
    return ritz_svd<spectral_projector<B>>(be, parts, options, u);
  } else {
    return std::nullopt;
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
