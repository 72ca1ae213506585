// SPDX-License-Identifier: Apache-2.0
//
// AdamW over blocks of parameters in a backend's memory: gradient descent whose steps are scaled,
// element by element, by running means of the gradients, with weight decay beside it. With the
// gradient g of step t, clipped to a norm over all blocks together:
//   m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²
//   θ ← θ − η·m̂/(√v̂ + ε) − ηλ(θ − θ°),   m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)
// The decay pulls towards a centre θ°, the closed form that a refinement starts from, or towards 0
// where there is none. The first step moves every element by η, whatever its gradient, as long as
// that is far above ε.
//
//   cost        about 14 flops, 5 reads and 3 writes an element, and 2 flops for the norm
//   memory      two scalars an element, the backend's: m and v
//   blocks      yes: the norm comes to the host
//   errors      std::invalid_argument for blocks that do not fit and options out of their range. A
//               gradient that is not finite changes nothing, which the report says
//   source      Loshchilov & Hutter, Decoupled weight decay regularization, arXiv 1711.05101
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {

struct adamw_options {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double decay = 0; ///< λ
  /// Gradients of a larger Frobenius norm, over all blocks, are scaled down to this one.
  double largest_norm = std::numeric_limits<double>::infinity();
};

/// A block that is trained. All memory is the caller's and outlives the optimiser; gradients are
/// read at every step.
template <backend B>
struct adamw_parameter {
  block_of<B> value;
  const_block_of<B> gradient;    ///< of the same shape, as below
  const_block_of<B> centre = {}; ///< of the decay, or empty
};

struct adamw_report {
  double gradient_norm = 0; ///< before clipping
  bool finite = true;       ///< else nothing was done
};

/// Cost, memory and errors as above.
template <backend B>
class adamw {
 public:
  using scalar = typename B::scalar;

  adamw(const B& be, std::vector<adamw_parameter<B>> parameters, const adamw_options& options = {})
      : be_(be), parameters_(std::move(parameters)), options_(options) {
    check_options();
    for (adamw_parameter<B>& p : parameters_) {
      detail::check_view(p.value.view(), "a parameter");
      detail::check_view(p.gradient.view(), "a gradient");
      detail::check_view(p.centre.view(), "a centre");
      detail::check_shape(p.gradient, p.value.rows, p.value.cols, "a gradient");
      if (!p.centre.empty()) {
        detail::check_shape(p.centre, p.value.rows, p.value.cols, "a centre");
      }
      moments_.push_back(
          {be_.allocate(p.value.rows, p.value.cols), be_.allocate(p.value.rows, p.value.cols)});
    }
    forget();
  }

  /// One step at rate η ≥ 0.
  adamw_report step(double rate) {
    detail::require(rate >= 0 && std::isfinite(rate), "a learning rate of ", rate);
    double squares = 0;
    for (const adamw_parameter<B>& p : parameters_)
      squares += be_.dot(p.gradient, p.gradient);
    adamw_report report{.gradient_norm = std::sqrt(squares), .finite = std::isfinite(squares)};
    if (!report.finite) return report;
    ++steps_;
    const auto t = static_cast<double>(steps_);
    const adam_step now{.gradient = report.gradient_norm > options_.largest_norm
                                        ? options_.largest_norm / report.gradient_norm
                                        : 1,
                        .fresh1 = 1 - options_.beta1,
                        .fresh2 = 1 - options_.beta2,
                        .rate = rate / (1 - std::pow(options_.beta1, t)),
                        .root = 1 / std::sqrt(1 - std::pow(options_.beta2, t)),
                        .epsilon = options_.epsilon,
                        .pull = rate * options_.decay};
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const adamw_parameter<B>& p = parameters_[i];
      be_.adam(now, p.gradient, moments_[i].mean, moments_[i].square, p.centre, p.value);
    }
    return report;
  }

  /// Forgets all gradients so far: the next step is a first one.
  void forget() {
    steps_ = 0;
    for (moments& m : moments_) {
      be_.fill(m.mean, scalar{0});
      be_.fill(m.square, scalar{0});
    }
  }

  /// Since the first one, those refused not counted.
  index_t steps() const { return steps_; }

 private:
  struct moments {
    matrix_of<B> mean;
    matrix_of<B> square;
  };

  void check_options() const {
    const auto share = [](double beta, const char* name) {
      detail::require(beta >= 0 && beta < 1, name, " = ", beta, " is outside [0, 1)");
    };
    share(options_.beta1, "beta1");
    share(options_.beta2, "beta2");
    detail::require(options_.epsilon > 0 && std::isfinite(options_.epsilon),
                    "epsilon = ", options_.epsilon, " is not above 0");
    detail::require(options_.decay >= 0 && std::isfinite(options_.decay), "a weight decay of ",
                    options_.decay);
    detail::require(options_.largest_norm > 0, "gradients cannot be clipped to a norm of ",
                    options_.largest_norm);
  }

  B be_;
  std::vector<adamw_parameter<B>> parameters_;
  std::vector<moments> moments_;
  adamw_options options_;
  index_t steps_ = 0;
};

/// The share of the highest rate at step t of n, from 0 on: rising in a line over the first w
/// steps, then falling to 0 along half a cosine.
inline double warmup_cosine(index_t t, index_t n, index_t w) {
  detail::require(0 <= t && t < n && w >= 0, "step ", t, " of ", n, " with ", w, " to warm up");
  if (t < w) return static_cast<double>(t + 1) / static_cast<double>(w);
  const double done = static_cast<double>(t - w) / static_cast<double>(n - w);
  return 0.5 * (1 + std::cos(std::numbers::pi * done));
}

} // namespace v0
} // namespace ressvd
