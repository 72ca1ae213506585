// SPDX-License-Identifier: Apache-2.0
//
// Leading singular subspace of A: m × p from one symmetric eigendecomposition in the backend's own
// scalar. A few enormous singular values would leave no digits for the others in float, so they are
// taken out first; the Gram of the rest is decomposed. It acts on the shorter side of A, of length
// k, with B = A (m > p) or B = Aᵀ:
//   X     directions far above the rest: Ritz vectors of power iteration on a small block
//   B'    B − (BX)·Xᵀ
//   U'    the leading r − x eigenvectors of B'ᵀB' = UΛUᵀ
//   Q     [X, U'], its leading columns rotated to Ritz vectors; U = Q or B·Q·Σ⁻¹
//
// Rounding moves the eigenvectors as a change E of B'ᵀB' would, ‖E‖ ≈ 2·eps·λ'_1. The loss at rank
// r is then above the optimum by at most 2·min(r, k − r)·‖E‖ (Ky Fan), which is the estimate of its
// excess; it is far less, of the second order in E, where eigenvalues are apart. The estimate also
// has what X misses, with the residuals of its vectors outside of Q,
// Σ_i ‖(I − QQᵀ)·BᵀB·x_i‖²/(θ_i − λ), λ the first eigenvalue dropped, and what the loss is above
// the sum of the eigenvalues dropped. The algorithm declines where the estimate is above the
// tolerance.
//
//   cost        long·k² flops for the Gram, an eigendecomposition of order k with r vectors (about
//               4/3·k³ and 3k²r), 2mp·r for the images, 3r²k to polish, 14mp·c for the outliers
//               among c = max(k/64, 16) directions
//   workspace   A, 2k² + 2(m + p)·c + long·r scalars and the eigendecomposition's
//   blocks      yes
//   source      Fan, "On a theorem of Weyl concerning eigenvalues of linear transformations I",
//               PNAS 35 (1949)
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/eigenpairs.hpp"
#include "ressvd/truncated_svd/gram.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

inline double sum_of_positive(std::span<const double> energies) {
  double sum = 0;
  for (const double energy : energies)
    sum += (std::max)(energy, 0.0);
  return sum;
}

/// One factorisation of a B of norm 1 up to a power of two.
template <backend B>
class deflated_gram {
  using T = typename B::scalar;
  using block_type = block_of<B>;

 public:
  /// energy: ‖B‖_F². b is destroyed.
  deflated_gram(B& be, iterated_matrix<B>& b, double energy, const svd_options& options)
      : be_(be), b_(b), energy_(energy), options_(options), short_(b.cols()) {}

  /// q: the leading right singular vectors of B, one for each column; its image becomes B·q. Their
  /// squared norms, and those of the other right singular vectors in `beyond`, are not sorted.
  /// Returns the estimated excess of the loss, relative to the optimum; nothing where it is above
  /// the tolerance, all else being unspecified then.
  std::optional<double> run(const ritz_block<B>& q) {
    auto frame = be_.frame();
    const index_t rank = q.size();
    const index_t count = (std::min)(short_, (std::max)(short_ / 64, index_t{16}));
    const ritz_block<B> candidates(be_, be_.scratch(short_, count), be_.scratch(b_.rows(), count));
    const auto back = be_.scratch(short_, count);
    taken_outliers outliers;
    if (energy_ > 0) {
      candidates.seek_leading(b_, options_.seed);
      outliers = candidates.take_outliers(b_, 9, rank, back);
    }
    const index_t x = outliers.count();
    const double remaining = b_.energy();
    // The values beyond the rank are the lowest, so the mean of all bounds theirs.
    const double most_loss =
        remaining * static_cast<double>(short_ - rank) / static_cast<double>(short_);
    if (rounding(rank, outliers.next) > options_.tolerance * most_loss) return std::nullopt;
    report_progress(options_, 0.1);

    std::vector<double> lambda(static_cast<std::size_t>(short_));
    {
      auto inner = be_.frame();
      const auto h = be_.scratch(short_, short_);
      be_.fill(h, T{0});
      b_.add_gram(h);
      report_progress(options_, 0.3);
      leading_eigenpairs(be_, h, std::span<double>(lambda), q.x().col_range(x, rank - x));
    }
    report_progress(options_, 0.8);
    be_.copy(candidates.x().left_cols(x), q.x().left_cols(x));
    // Null vectors in U' need not be orthogonal to X where B' has a lower rank.
    orthonormalize(be_, q.x());
    b_.forward(q.x(), q.image());
    const double loss = remaining - be_.dot(q.image(), q.image());
    beyond_ = {lambda.begin() + (rank - x), lambda.begin() + (short_ - x)};
    const double excess = rounding(rank, lambda.front()) +
                          missed_by(outliers, q, back.left_cols(x), lambda) +
                          (std::max)(loss - sum_of_positive(beyond_), 0.0);
    if (!(excess <= options_.tolerance * loss)) return std::nullopt;

    q.part(0, x).join(0, candidates.x().left_cols(x).view(),
                      candidates.image().left_cols(x).view());
    energies_ = column_energies<B>(be_, q.image());
    if (x > 0) {
      const auto lead = q.part(0, (std::min)(rank, x + count));
      std::ranges::copy(lead.rotate_to_ritz_vectors(lead.size()), energies_.begin());
    }
    // Scaled to what the basis was seen to lose.
    const double sum = sum_of_positive(beyond_);
    for (double& energy : beyond_)
      energy *= sum > 0 ? loss / sum : 0;
    return loss > 0 ? excess / loss : 0;
  }

  const std::vector<double>& energies() const { return energies_; } ///< ‖B·q_i‖²
  const std::vector<double>& beyond() const { return beyond_; }     ///< of those that q leaves out

 private:
  static constexpr auto eps = static_cast<double>(std::numeric_limits<T>::epsilon());

  /// The loss that rounding may add.
  double rounding(index_t rank, double largest) const {
    return 2 * static_cast<double>((std::min)(rank, short_ - rank)) * 2 * eps * largest;
  }

  /// The loss above the optimum because the outliers span no eigenvectors. back: BᵀB of them,
  /// destroyed.
  double missed_by(const taken_outliers& outliers, const ritz_block<B>& q, block_type back,
                   const std::vector<double>& lambda) {
    if (outliers.count() == 0) return 0;
    const std::vector<double> outside = q.residuals(back);
    const double dropped = lambda[static_cast<std::size_t>(q.size() - outliers.count())];
    double sum = 0;
    for (std::size_t i = 0; i < outside.size(); ++i) {
      const double gap = outliers.theta[i] - dropped;
      sum += gap > 0 ? outside[i] / gap : std::sqrt(outside[i]);
    }
    return sum;
  }

  B& be_;
  iterated_matrix<B>& b_;
  double energy_;
  const svd_options& options_;
  index_t short_;
  std::vector<double> energies_;
  std::vector<double> beyond_;
};

/// u: the leading u.cols left singular vectors. Declines where rounding may cost more than the
/// tolerance.
template <backend B>
std::optional<svd_outcome> deflated_gram_svd(B& be, const weighted_matrix<B>& parts,
                                             const svd_options& options, block_of<B> u) {
  auto frame = be.frame();
  auto formed = form(be, parts);
  const auto a = formed.a;
  svd_outcome outcome{.energy = formed.energy,
                      .report = {.algorithm = svd_algorithm::deflated_gram}};
  const double unit = normalize(be, formed);
  const bool on_right = a.rows > a.cols; // Q acts on A's columns, and its image is U but for scale
  iterated_matrix<B> b(be, a, on_right ? op::none : op::transpose);
  const auto other = be.scratch(on_right ? b.cols() : b.rows(), u.cols);
  const ritz_block<B> q(be, on_right ? other : u, on_right ? u : other);
  deflated_gram<B> factored(be, b, formed.energy, options);
  const auto excess = factored.run(q);
  if (!excess) return std::nullopt;

  const auto root = [](double energy) { return std::sqrt((std::max)(energy, 0.0)); };
  auto& values = outcome.singular_values;
  std::ranges::transform(factored.energies(), std::back_inserter(values), root);
  if (on_right) normalize_columns(be, u, values);
  std::ranges::transform(factored.beyond(), std::back_inserter(values), root);
  for (double& v : values)
    v *= unit;
  std::ranges::sort(values, std::ranges::greater{});
  outcome.report.excess_loss = *excess;
  const index_t longer = (std::max)(a.rows, a.cols);
  outcome.report.numerical_rank = count_above(values, gram_resolution<typename B::scalar>(longer));
  return outcome;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
