// SPDX-License-Identifier: Apache-2.0
//
// KFAC-SVD: min tr(H·(W−Ŵ)·G·(W−Ŵ)ᵀ), the loss of the model to second order. With the Fisher
// information as its curvature and inputs and output gradients taken as independent (Kronecker
// factors), replacing W by Ŵ costs ½·tr(…)/N² a token, H = Σ ggᵀ and G = Σ xxᵀ over N tokens each.
// The truncated energies Σ_{i>r} σ_i² of all matrices of a model are in that one unit, so that
// ranks can be allocated from them alone.
//   metrics     F_L·F_Lᵀ = μ((H + λμI)/μ)ᵖ with μ the mean of diag H, F_R·F_Rᵀ = Gᑫ likewise
//               without a ridge; p = q = 1 is the loss above. λ keeps directions that no gradient
//               of the calibration has seen from counting for nothing
//   residual    with β > 0 a residual stage as ResSVD's: the residual rank βα is spent in the
//               metric of the outputs alone, all inputs alike
//   needs       the Gram, and weight::output_curvature
//   shapes      W: m × n, H: m × m, G: n × n
//   cost        m³/3 flops a weight for a Cholesky factorisation of H, about 5m³ for p < 1, and
//               2m²n for F_LᵀW, beside the truncated SVD; with a residual stage the factorisation
//               once more, and a truncated SVD of rank βα for each rank
//   workspace   8m² bytes for F_L and 16m² in scratch, and the truncated SVD's
//   blocks      yes
//   errors      as whiten and truncated_svd
//   source      K-FAC: Martens and Grosse, arXiv 1503.05671; as a metric of truncation: IO-SVD,
//               arXiv 2605.15626; docs/theory.md
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct kfac_svd {
  svd_options options = {};
  double output_power = 1; ///< p in [0, 1]
  double input_power = 1;  ///< q in [0, 1]
  double ridge = 0.01;     ///< λ
  double beta = 0;         ///< residual rank, as a share of α = mn/(m+n); 0: no residual stage

  static constexpr std::string_view name = "kfac-svd";
  template <backend B>
  void prepare(calibration<B>& input) const {
    right(input);
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    const auto left = output_whitening(be, w);
    return truncated_svd(be, w, left.metric(), right(input).metric(), rank, options);
  }

  std::optional<residual_plan> residual() const {
    if (beta == 0) return std::nullopt;
    return residual_plan{.options = {.beta = beta, .svd = options}};
  }
  template <backend B>
  std::shared_ptr<const whitening<B>> residual_metric(B& be, const weight<B>& w) const {
    return std::make_shared<const whitening<B>>(output_whitening(be, w));
  }

  /// F_L. Throws std::invalid_argument where the curvature is not known or of another size.
  template <backend B>
  whitening<B> output_whitening(B& be, const weight<B>& w) const {
    detail::require(!w.output_curvature.empty(), "KFAC-SVD needs the curvature of W's outputs");
    detail::check_shape(w.output_curvature, w.rows(), w.rows(), "the curvature of W's outputs");
    if (output_power == 1) return whiten(be, w.output_curvature, {.ridge = ridge});
    return whiten_power(be, w.output_curvature, output_power, ridge);
  }

 private:
  template <backend B>
  const whitening<B>& right(calibration<B>& input) const {
    constexpr const char* reader = "KFAC-SVD";
    return input_power == 1 ? input.whitening(reader) : input.whitening_power(input_power, reader);
  }
};

} // namespace methods

/// The singular values of F_Lᵀ·W·F_R in KFAC-SVD's metrics, all min(m, n), descending: what ranks
/// are allocated by when another method makes the factors. Cost as methods::kfac_svd at rank 1.
template <backend B>
std::vector<double> curvature_spectrum(B& be, const weight<B>& w, calibration<B>& input,
                                       const methods::kfac_svd& method = {}) {
  methods::kfac_svd values = method;
  values.options.algorithm = svd_algorithm::gram;
  return values.basis(be, w, input, 1).singular_values;
}

} // namespace v0
} // namespace ressvd
