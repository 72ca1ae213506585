// SPDX-License-Identifier: Apache-2.0
//
// Whitening: a factor F with F·Fᵀ = G (the Gram X·Xᵀ, n × n), so that ‖(W−Ŵ)X‖_F = ‖(W−Ŵ)F‖_F.
//
//   Cholesky       G + δI = S·Sᵀ, S lower triangular. δ = 0 first; where G is not numerically
//                  positive definite (fewer tokens than features, dead channels), δ grows by
//                  factors of 10 from `damping` to `max_damping`, both relative to mean(diag G).
//   eigenvalues    when no allowed damping helps: G = VΛVᵀ, F = V·max(Λ, 0)^(1/2), dense.
//   QR             S = Rᵀ from a qr_accumulator: never squares the condition number.
//   power          F = V·(Λ/μ)^(p/2)·√μ with μ = tr(G)/n: the metric Gᵖ scaled to the trace of G
//                  (tempered whitening). p = 1 is G itself, p = 0 is plain SVD.
//   plain          F = I where G = 0: inputs that are all zero do not say which directions count.
//
// No inverse is formed, here or anywhere: the projector form needs only W·F.
//
//   cost        Cholesky n³/3 flops an attempt; eigenvalues and powers about 5n³; double always
//   memory      8n² bytes for the factor; scratch 16n² for copies of G
//   blocks      yes (each attempt reports its outcome to the host)
//   source      SVD-LLM, arXiv 2403.07378, section 3.1; QR: COALA, arXiv 2507.07580
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/core/progress.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/whitening/metric.hpp"
#include "ressvd/whitening/qr_accumulator.hpp"

namespace ressvd {
inline namespace v0 {

enum class whitening_path : std::uint8_t {
  cholesky,
  damped_cholesky,
  eigenvalues,
  qr,
  power,
  plain ///< G is 0, which says nothing of X: the metric is the identity
};

struct whitening_options {
  double damping = 1e-12;    ///< first δ after a failure, relative to mean(diag G)
  double max_damping = 1e-6; ///< last δ tried before the eigenvalue path, relative likewise
  double ridge = 0; ///< always added: G + ridge·mean(diag G)·I, a shrinkage of the metric
  progress_callback progress = nullptr; ///< before each factorisation of `whiten`
};

struct whitening_report {
  whitening_path path = whitening_path::cholesky;
  double damping = 0;          ///< δ added to the diagonal, ridge included, in the units of G
  double relative_damping = 0; ///< δ / mean(diag G)
  int attempts = 0;            ///< Cholesky factorisations tried
  /// Estimate of G's condition number after damping: a lower bound from the pivots, exact from
  /// eigenvalues. Infinity for a singular G.
  double condition = 1;
  /// Eigenvalues above n·eps of the largest, where eigenvalues are known.
  std::optional<index_t> rank = std::nullopt;
  double most_negative_eigenvalue = 0; ///< what was clamped to 0, in the units of G
  double power = 1;                    ///< p of the power path
};

/// A whitening factor and how it came about. Serves all matrices that read the same input.
template <backend B>
struct whitening {
  matrix<double, typename B::space> factor; ///< S (lower triangle valid) or a dense F, n × n
  metric_kind kind = metric_kind::triangular;
  whitening_report report = {};

  index_t features() const { return factor.rows(); }
  /// The factor as the right metric of a weighted problem. This object must outlive it.
  ressvd::metric<typename B::space> metric() const { return {kind, factor.ref()}; }
};

namespace detail {

inline double pivot_condition(const std::vector<double>& pivots) {
  double lowest = std::numeric_limits<double>::infinity();
  double highest = 0;
  for (const double p : pivots) {
    lowest = (std::min)(lowest, std::abs(p));
    highest = (std::max)(highest, std::abs(p));
  }
  const double ratio = highest / lowest;
  return highest == 0 ? std::numeric_limits<double>::infinity() : ratio * ratio;
}

/// tr(G)/n, after refusing what cannot be a Gram by its diagonal.
template <backend W>
double checked_mean_diagonal(W& be, const_block_of<W> g) {
  const double largest = require_finite(be, g.view(), "the Gram");
  std::vector<double> diagonal(static_cast<std::size_t>(g.rows));
  be.diagonal(g, diagonal);
  double sum = 0;
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    require<indefinite_error>(diagonal[i] >= 0, "the Gram is indefinite: diagonal element ", i,
                              " is ", diagonal[i]);
    sum += diagonal[i];
  }
  // |g_ij| ≤ max g_ii for a semidefinite matrix.
  const double bound = *std::max_element(diagonal.begin(), diagonal.end());
  require<indefinite_error>(largest <= bound * (1 + 1e-5), "the Gram is indefinite: an element of ",
                            "magnitude ", largest, " exceeds the largest diagonal element ", bound);
  return sum / static_cast<double>(g.rows);
}

template <backend W, class U>
void check_gram(const matrix_view<U, typename W::space>& g) {
  check_nonempty(g, "the Gram");
  require(g.rows == g.cols, "the Gram is ", g.rows, " x ", g.cols, ", expected a square matrix");
}

/// Refuses a G whose triangles differ by more than the rounding of float products.
template <backend W>
void check_symmetric(W& be, const_block_of<W> g) {
  auto frame = be.frame();
  const auto difference = be.scratch(g.rows, g.cols);
  be.copy(g.transposed(), difference);
  be.add(-1.0, g, difference);
  // |g_ij| ≤ √(g_ii·g_jj) for a semidefinite matrix. Channels that are zero are left as they are.
  std::vector<double> scales(static_cast<std::size_t>(g.rows));
  be.diagonal(g, scales);
  for (double& s : scales)
    s = s > 0 ? 1 / std::sqrt(s) : 1;
  const auto d = be.scratch(g.rows, 1);
  be.upload({scales.data(), g.rows, 1, g.rows}, d);
  be.scale_rows(d, difference);
  be.scale_cols(difference, d);
  const double asymmetry = be.max_abs(difference);
  require(asymmetry <= 1e-5, "the Gram is not symmetric: opposite elements differ by up to ",
          asymmetry, " of the root of their diagonal elements' product");
}

/// For G = 0: the identity, which is G + I.
template <backend B>
whitening<B> plain_whitening(wide_backend<B>& be64, index_t features) {
  whitening<B> result{.factor = be64.allocate(features, features)};
  be64.fill(result.factor.ref(), 0.0);
  be64.shift_diagonal(result.factor.ref(), 1.0);
  result.report.path = whitening_path::plain;
  result.report.damping = 1;
  result.report.relative_damping = std::numeric_limits<double>::infinity();
  result.report.condition = std::numeric_limits<double>::infinity();
  result.report.rank = 0;
  return result;
}

/// F = V·f(Λ) and the report's eigenvalue fields.
template <backend W, class F>
void eigenvalue_factor(W& be, const_block_of<W> g, block_of<W> factor, whitening_report& report,
                       F square_root) {
  const auto n = static_cast<std::size_t>(g.rows);
  std::vector<double> values(n);
  be.copy(g.view(), factor);
  be.eigh(factor, values);

  const double largest = values.back();
  const double smallest = values.front();
  // Sums of float products are positive semidefinite up to float's rounding, not to double's.
  require<indefinite_error>(smallest >= -1e-5 * (std::max)(largest, 0.0),
                            "the Gram is indefinite: its eigenvalues range from ", smallest, " to ",
                            largest);
  report.most_negative_eigenvalue = (std::min)(smallest, 0.0);
  const double negligible =
      static_cast<double>(n) * std::numeric_limits<double>::epsilon() * largest;
  report.rank =
      std::count_if(values.begin(), values.end(), [&](double v) { return v > negligible; });
  report.condition =
      smallest > negligible ? largest / smallest : std::numeric_limits<double>::infinity();

  auto frame = be.frame();
  for (double& v : values)
    v = square_root((std::max)(v, 0.0));
  const auto roots = be.scratch(g.rows, 1);
  be.upload({values.data(), g.rows, 1, g.rows}, roots);
  be.scale_cols(factor, roots);
}

} // namespace detail

/// Whitening factor of a Gram. G is symmetric, of any storage; both triangles are checked, the
/// lower one is used.
/// Throws std::invalid_argument for an empty or non-square G and where ridge or damping overflow,
/// nonfinite_error for NaN or infinity, indefinite_error for a G that is not positive semidefinite
/// beyond rounding, cancelled where options.progress asks for the end.
template <backend B, readable_matrix<typename B::space> G>
whitening<B> whiten(B& be, const G& gram_matrix, const whitening_options& options = {}) {
  using wide = wide_backend<B>;
  const auto gram = const_view(gram_matrix);
  detail::check_gram<B>(gram);
  detail::require(options.damping > 0 && options.max_damping >= options.damping &&
                      std::isfinite(options.max_damping) && options.ridge >= 0 &&
                      std::isfinite(options.ridge),
                  "whitening damping ", options.damping, " to ", options.max_damping, ", ridge ",
                  options.ridge, " is not a valid range");
  wide be64(be);
  auto frame = be64.frame();
  const auto g = be64.scratch(gram.rows, gram.cols);
  be64.copy(gram, g);
  const double mean = detail::checked_mean_diagonal<wide>(be64, g);
  detail::check_symmetric<wide>(be64, g);
  if (mean == 0) return detail::plain_whitening<B>(be64, g.rows);
  // No diagonal element grows beyond this.
  const double largest =
      mean * (static_cast<double>(g.rows) + options.ridge + 2 * options.max_damping);
  detail::require(std::isfinite(largest), "whitening damping up to ", options.max_damping,
                  ", ridge ", options.ridge, " overflow on a Gram of mean diagonal ", mean);
  if (options.ridge > 0) be64.shift_diagonal(g, options.ridge * mean);

  whitening<B> result{.factor = be64.allocate(g.rows, g.cols)};
  whitening_report& report = result.report;
  report.relative_damping = options.ridge;
  report.damping = options.ridge * mean;
  const auto s = result.factor.ref();
  // Without damping, with each, and the eigendecomposition.
  const double steps = 3 + std::floor(std::log10(options.max_damping / options.damping) + 1e-9);
  for (double relative = 0; relative <= options.max_damping * (1 + 1e-9);
       relative = relative == 0 ? options.damping : 10 * relative) {
    detail::report_progress(options.progress, report.attempts / steps, "a whitening");
    ++report.attempts;
    be64.copy(g, s);
    if (relative > 0) be64.shift_diagonal(s, relative * mean);
    if (be64.potrf(s) == 0) {
      std::vector<double> pivots(static_cast<std::size_t>(g.rows));
      be64.diagonal(s, pivots);
      report.path = relative > 0 ? whitening_path::damped_cholesky : whitening_path::cholesky;
      report.relative_damping = options.ridge + relative;
      report.damping = report.relative_damping * mean;
      report.condition = detail::pivot_condition(pivots);
      return result;
    }
  }
  detail::report_progress(options.progress, report.attempts / steps, "a whitening");
  report.path = whitening_path::eigenvalues;
  result.kind = metric_kind::dense;
  detail::eigenvalue_factor<wide>(be64, g, s, report, [](double v) { return std::sqrt(v); });
  return result;
}

/// Whitening factor of what was accumulated.
template <backend B, backend A>
whitening<B> whiten(B& be, gram_accumulator<A>& accumulator,
                    const whitening_options& options = {}) {
  return whiten(be, accumulator.gram(), options);
}

/// The factor Rᵀ of a streaming QR, copied: the accumulator may go on. Throws std::invalid_argument
/// without any tokens.
template <backend B, backend A>
whitening<B> whiten(B& be, qr_accumulator<A>& accumulator) {
  detail::require(accumulator.tokens() > 0, accumulator.name(), ": no tokens were accumulated");
  wide_backend<B> be64(be);
  const auto r = accumulator.factor();
  if (be64.max_abs(r.view()) == 0) return detail::plain_whitening<B>(be64, r.cols);
  whitening<B> result{.factor = be64.allocate(r.rows, r.cols)};
  be64.copy(r.transposed(), result.factor.ref());
  std::vector<double> pivots(static_cast<std::size_t>(r.rows));
  be64.diagonal(result.factor, pivots);
  result.report.path = whitening_path::qr;
  result.report.condition = detail::pivot_condition(pivots);
  return result;
}

/// Tempered whitening: the metric μ((G + ridge·μI)/μ)ᵖ, μ = tr(G)/n, p in [0, 1]. Errors as in
/// whiten.
template <backend B, readable_matrix<typename B::space> G>
whitening<B> whiten_power(B& be, const G& gram_matrix, double power, double ridge = 0) {
  using wide = wide_backend<B>;
  const auto gram = const_view(gram_matrix);
  detail::check_gram<B>(gram);
  detail::require(power >= 0 && power <= 1, "whitening power ", power, " is outside [0, 1]");
  detail::require(ridge >= 0 && std::isfinite(ridge), "the ridge ", ridge,
                  " of a whitening power is negative or not finite");
  wide be64(be);
  auto frame = be64.frame();
  const auto g = be64.scratch(gram.rows, gram.cols);
  be64.copy(gram, g);
  const double mean = detail::checked_mean_diagonal<wide>(be64, g);
  detail::check_symmetric<wide>(be64, g);
  if (mean == 0) return detail::plain_whitening<B>(be64, g.rows);
  if (ridge > 0) be64.shift_diagonal(g, ridge * mean);

  whitening<B> result{.factor = be64.allocate(g.rows, g.cols), .kind = metric_kind::dense};
  result.report.path = whitening_path::power;
  result.report.power = power;
  result.report.relative_damping = ridge;
  result.report.damping = ridge * mean;
  detail::eigenvalue_factor<wide>(be64, g, result.factor, result.report, [&](double v) {
    return std::sqrt(mean * std::pow(v / mean, power));
  });
  return result;
}

} // namespace v0
} // namespace ressvd
