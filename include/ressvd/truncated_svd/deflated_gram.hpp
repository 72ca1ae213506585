// SPDX-License-Identifier: Apache-2.0
//
// Leading singular subspace of A: m × p from one symmetric eigendecomposition in the backend's own
// scalar, of the Gram of what is left of A when its outliers are taken out. On the shorter side of
// A, of length k, with B = A (m > p) or B = Aᵀ:
//   X     directions far above the rest: Ritz vectors of power iteration on a small block
//   B'    B − (BX)·Xᵀ
//   U'    the leading r − x eigenvectors of B'ᵀB' = UΛUᵀ
//   Q     [X, U'], its leading columns rotated to Ritz vectors; U = Q or B·Q·Σ⁻¹
//
// Rounding moves the eigenvectors as a change E of B'ᵀB' would, ‖E‖ ≈ 2·eps·λ'_1. By Ky Fan the
// loss at rank r is then above the optimum by at most 2·min(r, k − r)·‖E‖, which is the estimate of
// its excess; where eigenvalues are apart it is far less, of the second order in E. Outliers would
// set λ'_1: beside them a Gram in float loses the rest. To this comes what X misses, with the
// residuals of its vectors outside of Q, Σ_i ‖(I − QQᵀ)·BᵀB·x_i‖²/(θ_i − λ), λ the first eigenvalue
// dropped, and what the loss is above the sum of the eigenvalues dropped.
//
//   cost        long·k² flops for the Gram, an eigendecomposition of order k with r vectors (about
//               4/3·k³ and 3k²r), 2mp·r for the images, 3r²k to polish, 14mp·c for the outliers
//               among c = max(k/64, 16) directions
//   workspace   2k² + 2(m + p)·c + long·r scalars and the eigendecomposition's
//   blocks      yes
//   source      Fan, "On a theorem of Weyl concerning eigenvalues of linear transformations I",
//               PNAS 35 (1949)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

struct deflated_gram_options {
  double tolerance = 1e-3;
  std::uint64_t seed = 0;
};

template <backend B>
class deflated_gram {
  using T = typename B::scalar;
  using block_type = block_of<B>;

 public:
  /// a: destroyed.
  deflated_gram(B& be, block_type a, const deflated_gram_options& options)
      : be_(be),
        a_(a),
        options_(options),
        on_right_(a.rows > a.cols),
        short_(on_right_ ? a.cols : a.rows),
        long_(on_right_ ? a.rows : a.cols) {}

  /// values: all singular values, descending; u: m × rank. Returns the estimated excess of the
  /// loss, relative to the optimum; nothing where it is above the tolerance, values and u then
  /// being unspecified.
  std::optional<double> run(std::span<double> values, block_type u) {
    auto frame = be_.frame();
    const index_t rank = u.cols;
    // Of norm 1 to a power of two: its squares neither overflow nor vanish in float.
    const double unit = power_of_two_above(std::sqrt(be_.dot(a_, a_)));
    be_.scale(static_cast<T>(1 / unit), a_);
    const double total = be_.dot(a_, a_);
    const index_t count = (std::min)(short_, (std::max)(short_ / 64, index_t{16}));
    const auto outliers = total > 0 ? take_outliers(count, rank) : outlier_block{};

    const double remaining = be_.dot(a_, a_);
    // The values beyond the rank are the lowest, so the mean of all bounds theirs.
    const double most_loss =
        remaining * static_cast<double>(short_ - rank) / static_cast<double>(short_);
    if (rounding(rank, outliers.next) > options_.tolerance * most_loss) return std::nullopt;

    const index_t x = outliers.x.cols;
    const auto q = on_right_ ? be_.scratch(short_, rank) : u;
    std::vector<double> lambda(at(short_));
    {
      auto inner = be_.frame();
      const auto h = be_.scratch(short_, short_);
      be_.fill(h, T{0});
      be_.add_gram(on_right_ ? a_.transposed() : a_.view(), h);
      leading_eigenpairs(be_, h, std::span<double>(lambda), q.col_range(x, rank - x));
    }
    be_.copy(outliers.x, q.left_cols(x));
    // Where B' has less than its rank, null vectors in U' need not be orthogonal to X.
    orthonormalize(be_, q);

    // Images in rows, Qᵀ·B'ᵀ, so that their norms are those of rows.
    const auto images = be_.scratch(rank, long_);
    be_.gemm(op::transpose, on_right_ ? op::transpose : op::none, T{1}, q, a_, T{0}, images);
    const double loss = remaining - be_.dot(images, images);
    const auto beyond = std::span<const double>(lambda).subspan(at(rank - x), at(short_ - rank));
    const double excess = rounding(rank, lambda.front()) + missed_by(outliers, q, lambda) +
                          (std::max)(loss - sum_of(beyond), 0.0);
    if (!(excess <= options_.tolerance * loss)) return std::nullopt;

    std::vector<double> energies(at(rank));
    be_.row_squared_norms(images, energies);
    const index_t lead = x > 0 ? (std::min)(rank, x + count) : 0;
    const auto first = be_.scratch(long_, lead);
    if (lead > 0) {
      be_.copy(outliers.bx, first.left_cols(x));
      be_.copy(images.part(x, 0, lead - x, long_).transposed(), first.col_range(x, lead - x));
      std::ranges::copy(rotate_to_ritz_vectors<B>(be_, q.left_cols(lead), first), energies.begin());
    }
    fill_values(energies, beyond, loss, values);
    for (double& v : values)
      v *= unit;
    if (on_right_) {
      be_.copy(first, u.left_cols(lead));
      be_.copy(images.part(lead, 0, rank - lead, long_).transposed(),
               u.col_range(lead, rank - lead));
      normalize(u, energies);
    }
    return loss > 0 ? excess / loss : 0;
  }

 private:
  static constexpr auto eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  /// An outlier's Ritz value over the lowest one of its block.
  static constexpr double apart = 9;
  /// ‖BᵀB·x − θx‖/θ of an outlier.
  static constexpr double most_residual = 0.02;

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

  struct outlier_block {
    block_type x;              ///< short × count, orthonormal
    block_type bx;             ///< long × count, their images under B
    block_type residuals;      ///< short × count, BᵀB·x
    std::vector<double> theta; ///< their Ritz values, descending
    double next = 0;           ///< the largest Ritz value that stays in B'
  };

  /// The outliers of A among `count` directions, at most `most`; A loses them.
  outlier_block take_outliers(index_t count, index_t most) {
    const auto x = be_.scratch(short_, count);
    const auto bx = be_.scratch(long_, count);
    const auto back = be_.scratch(short_, count);
    const auto forward = on_right_ ? op::none : op::transpose;
    const auto backward = on_right_ ? op::transpose : op::none;
    be_.random_normal(bx, options_.seed);
    for (int step = 0; step < 3; ++step) {
      be_.gemm(backward, op::none, T{1}, a_, bx, T{0}, x);
      orthonormalize(be_, x);
      be_.gemm(forward, op::none, T{1}, a_, x, T{0}, bx);
    }
    std::vector<double> theta = rotate_to_ritz_vectors<B>(be_, x, bx);
    be_.gemm(backward, op::none, T{1}, a_, bx, T{0}, back);
    // ‖BᵀB·x − θx‖² = ‖BᵀB·x‖² − θ²
    const std::vector<double> squares = column_energies(back);
    const auto is_outlier = [&](std::size_t i) {
      return theta[i] > apart * theta.back() &&
             squares[i] <= (1 + most_residual * most_residual) * theta[i] * theta[i];
    };
    std::size_t done = 0;
    while (done < (std::min)(theta.size(), at(most)) && is_outlier(done))
      ++done;
    const auto found = static_cast<index_t>(done);
    be_.gemm(op::none, op::transpose, T{-1}, (on_right_ ? bx : x).left_cols(found),
             (on_right_ ? x : bx).left_cols(found), T{1}, a_);
    const double next = theta[(std::min)(done, theta.size() - 1)];
    theta.resize(done);
    return {x.left_cols(found), bx.left_cols(found), back.left_cols(found), std::move(theta), next};
  }

  /// Σ_j c_ji² for each column i.
  std::vector<double> column_energies(block_type c) {
    auto frame = be_.frame();
    const auto rows = be_.scratch(c.cols, c.rows);
    be_.copy(c.transposed(), rows);
    std::vector<double> energies(at(c.cols));
    be_.row_squared_norms(rows, energies);
    return energies;
  }

  /// What rounding may cost the loss.
  double rounding(index_t rank, double largest) const {
    return 2 * static_cast<double>((std::min)(rank, short_ - rank)) * 2 * eps * largest;
  }

  /// What the loss is above the optimum because the outliers span no eigenvectors. Their residuals
  /// are destroyed.
  double missed_by(const outlier_block& outliers, block_type q, const std::vector<double>& lambda) {
    const index_t x = outliers.x.cols;
    if (x == 0) return 0;
    auto frame = be_.frame();
    const auto overlap = be_.scratch(q.cols, x);
    be_.gemm(op::transpose, op::none, T{1}, q, outliers.residuals, T{0}, overlap);
    be_.gemm(op::none, op::none, T{-1}, q, overlap, T{1}, outliers.residuals);
    const std::vector<double> outside = column_energies(outliers.residuals);
    const double dropped = lambda[at(q.cols - x)];
    double sum = 0;
    for (std::size_t i = 0; i < outside.size(); ++i) {
      const double gap = outliers.theta[i] - dropped;
      sum += gap > 0 ? outside[i] / gap : std::sqrt(outside[i]);
    }
    return sum;
  }

  static double sum_of(std::span<const double> energies) {
    double sum = 0;
    for (const double energy : energies)
      sum += (std::max)(energy, 0.0);
    return sum;
  }

  /// Square roots of the basis's energies and, beyond it, of the eigenvalues, scaled to the loss.
  static void fill_values(const std::vector<double>& energies, std::span<const double> beyond,
                          double loss, std::span<double> values) {
    const double sum = sum_of(beyond);
    const double share = sum > 0 ? loss / sum : 0;
    const auto root = [](double energy) { return std::sqrt((std::max)(energy, 0.0)); };
    const auto rest = std::ranges::transform(energies, values.begin(), root).out;
    std::ranges::transform(beyond, rest, [&](double energy) { return root(share * energy); });
    std::ranges::sort(values, std::ranges::greater{});
  }

  /// Columns of those energies become orthonormal.
  void normalize(block_type u, const std::vector<double>& energies) {
    auto frame = be_.frame();
    std::vector<T> reciprocals(energies.size());
    std::ranges::transform(energies, reciprocals.begin(), [](double energy) {
      return energy > 0 ? static_cast<T>(1 / std::sqrt(energy)) : T{0};
    });
    const auto d = be_.scratch(u.cols, 1);
    be_.upload({reciprocals.data(), u.cols, 1, u.cols}, d);
    be_.scale_cols(u, d);
    orthonormalize(be_, u);
  }

  B& be_;
  block_type a_;
  deflated_gram_options options_;
  bool on_right_; ///< Q acts on A's columns
  index_t short_;
  index_t long_;
};

/// See deflated_gram::run.
template <backend B>
std::optional<double> deflated_gram_svd(B& be, block_of<B> a, const deflated_gram_options& options,
                                        std::span<double> values, block_of<B> q) {
  return deflated_gram<B>(be, a, options).run(values, q);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
