// SPDX-License-Identifier: Apache-2.0
//
// The input X' that a compressed prefix of the model really produces, beside the original one X°,
// and what can be done for it in closed form (residual/closed_form_update.hpp): fit the factors of
// a compressed matrix to it, or truncate the matrix anew for it.
//
//   update      U = WTVᵀ(VG'Vᵀ)⁺ for given V, and V = U⁺W in turn where asked
//   truncate    W' = (WT + λW)(G' + λI)⁻¹, then a method's truncation of W' for X'
//   target      T = (1 − s)·G' + s·C, C = X°X'ᵀ: s = 0 keeps the outputs for X', s = 1 asks for the
//               original outputs
//   memory      8n² bytes for G', as much for C where s > 0
//   blocks      yes
//   errors      as gram_accumulator and the closed forms; std::invalid_argument without tokens
//   source      SVD-LLM, arXiv 2403.07378, section 3.2; AdaSVD, arXiv 2502.01403; AA-SVD,
//               arXiv 2604.02119 (truncate with s = 1, λ = 0)
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "ressvd/core/backend.hpp"
#include "ressvd/methods/calibration.hpp"
#include "ressvd/methods/factored_matrix.hpp"
#include "ressvd/residual/closed_form_update.hpp"
#include "ressvd/whitening/gram.hpp"

namespace ressvd {
inline namespace v0 {

struct shifted_options {
  std::string name = "shifted activations"; ///< what error messages call the batches
  double original_share = 0;                ///< s in [0, 1], of the target
  double ridge = 0.01; ///< truncate: λ over the mean of diag G', also of SVD-LLM's whitening
};

struct update_options {
  int iterations = 1;
  bool alternating = false; ///< V is updated after U
};

namespace detail {

/// How a method's factors are fitted to shifted inputs: SVD-LLM's update unless it says otherwise.
template <class M>
update_options update_of(const M& method) {
  if constexpr (requires { method.update(); }) {
    return method.update();
  } else {
    return {};
  }
}

} // namespace detail

template <backend B>
class shifted_input {
 public:
  using scalar = typename B::scalar;
  using space = typename B::space;

  shifted_input(B be, index_t features, shifted_options options = {})
      : be_(std::move(be)),
        options_(std::move(options)),
        sums_(be_, features,
              {.name = options_.name, .cross_features = needs_original() ? features : 0}) {
    detail::require(options_.original_share >= 0 && options_.original_share <= 1,
                    "the original outputs' share ", options_.original_share,
                    " of the target is outside [0, 1]");
  }

  /// Whether observe takes the original activations too.
  bool needs_original() const { return options_.original_share > 0; }

  /// Tokens × features, once a batch.
  template <readable_matrix<space> X>
  void observe(const X& shifted) {
    sums_.add(shifted);
  }
  template <readable_matrix<space> X, readable_matrix<space> Y>
  void observe(const X& shifted, const Y& original) {
    sums_.add(shifted, original);
  }

  /// The factors of f at a rank, fitted to X'; as they are where X' is all zero. Losses in the
  /// report are those of the fitted factors on the original input.
  template <class M>
  compressed_matrix<B> update(const factored_matrix<B>& f, const M& method,
                              const rank_choice& choice) {
    auto result = f.at(choice);
    if (choice.dense) return result;
    const detail::stopwatch watch;
    const update_options how = detail::update_of(method);
    detail::require(how.iterations >= 0, "an update of ", how.iterations, " iterations");
    const auto gram = shifted_gram();
    if (wide_backend<B>(be_).max_abs(gram.view()) == 0) { // every pair is as good
      result.report.update_rank = 0;
      return result;
    }
    const auto target = this->target();
    for (int i = 0; i < how.iterations; ++i) {
      result.report.update_rank =
          update_left(be_, f.original(), result.factors, gram, target.ref());
      if (how.alternating) update_right(be_, f.original(), result.factors);
    }
    f.measure(result.factors, result.report);
    result.report.seconds += watch.seconds();
    return result;
  }

  /// W truncated anew for X'; in the plain metric where X' is all zero. The report's weight loss is
  /// against W itself; the activation loss on the original input is not known here.
  template <class M>
  compressed_matrix<B> truncate(const weight<B>& w, const M& method, const rank_choice& choice) {
    if (choice.dense) return input().compress(weight<B>(be_, w.values), method, at_ratio(0));
    const detail::stopwatch watch;
    weight<B> fitted(be_, shifted_weights(be_, w, shifted_gram(), target().ref(), options_.ridge));
    fitted.row_importance = w.row_importance;
    fitted.output_curvature = w.output_curvature;
    auto result = input().factor(std::move(fitted), method, {choice.rank}).at(choice);
    result.report.weight_loss = weighted_loss(be_, w, result.factors);
    result.report.activation_loss.reset();
    result.report.truncation_loss.reset();
    result.report.seconds = watch.seconds();
    return result;
  }

 private:
  block<const double, space> shifted_gram() { return sums_.gram(); }

  /// The statistics of X', for methods; made once. X' must not be observed any more.
  calibration<B>& input() {
    if (!input_) {
      input_.emplace(be_, shifted_gram(), block<const double, space>{},
                     whitening_options{.ridge = options_.ridge});
    }
    return *input_;
  }

  /// T, or empty for T = G'.
  matrix<double, space> target() {
    if (!needs_original()) return {};
    wide_backend<B> be64(be_);
    auto t = be64.allocate(sums_.features(), sums_.features());
    be64.copy(shifted_gram(), t.ref());
    be64.scale(1 - options_.original_share, t.ref());
    be64.add(options_.original_share, sums_.cross(), t.ref());
    return t;
  }

  B be_;
  shifted_options options_;
  gram_accumulator<B> sums_;
  std::optional<calibration<B>> input_;
};

} // namespace v0
} // namespace ressvd
