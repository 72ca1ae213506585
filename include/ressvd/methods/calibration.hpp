// SPDX-License-Identifier: Apache-2.0
//
// The statistics of one input, X of n channels, and the weights that read it: q, k and v share one,
// gate and up another. What a method needs of X (a whitening factor, a power of the Gram, channel
// means) is made when the first weight asks for it and kept for the others.
//
//   factor      one factorisation of a weight for all ranks: truncated_svd, and the losses at every
//               rank, 4mnR + 2mn² flops and as much again where the Gram is known (half of the
//               second term for a triangular factor)
//   compress    factor, then cut at one rank
//   memory      the sums it was given, and 8n² bytes for each factor of the Gram that was asked for
//   blocks      yes
//   errors      std::invalid_argument for a weight of another number of channels and for statistics
//               that a method needs and that are not known, by name
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/stopwatch.hpp"
#include "ressvd/methods/factored_matrix.hpp"
#include "ressvd/methods/method.hpp"
#include "ressvd/whitening/gram.hpp"
#include "ressvd/whitening/qr_accumulator.hpp"
#include "ressvd/whitening/whitening.hpp"

namespace ressvd {
inline namespace v0 {

namespace detail {

/// The residual stage of a method; none where it has no such member.
template <class M>
std::optional<residual_plan> residual_of(const M& method) {
  if constexpr (requires { method.residual(); }) {
    return method.residual();
  } else {
    return std::nullopt;
  }
}

/// The metric of W's outputs that a method's residual stage keeps; null where it has none.
template <backend B, class M>
std::shared_ptr<const whitening<B>> residual_metric_of(B& be, const weight<B>& w, const M& method) {
  if constexpr (requires { method.residual_metric(be, w); }) {
    return method.residual_metric(be, w);
  } else {
    return nullptr;
  }
}

} // namespace detail

template <backend B>
class calibration {
 public:
  using scalar = typename B::scalar;
  using space = typename B::space;

  /// Nothing is known of X: plain SVD and FWSVD run, and report no activation loss.
  explicit calibration(B be) : be_(std::move(be)) {}

  /// What an accumulator has summed. It is taken over: pass std::move(accumulator).
  /// Throws std::invalid_argument when it has seen no token.
  template <backend A>
  calibration(B be, gram_accumulator<A> sums, const whitening_options& options = {})
      : be_(std::move(be)), options_(options) {
    detail::require(sums.tokens() > 0, sums.name(), ": no tokens were accumulated");
    struct kept {
      gram_accumulator<A> sums;
      matrix<double, space> means;
    };
    const auto all = std::make_shared<kept>(kept{std::move(sums), {}});
    gram_ = all->sums.gram();
    if (all->sums.has_channel_means()) {
      all->means = all->sums.mean_abs();
      mean_abs_ = all->means.ref();
    }
    owner_ = all;
  }

  /// A Gram in the caller's memory, n × n, both triangles, and optionally mean_t |x_it|, n × 1.
  /// Both must outlive this object.
  calibration(B be, block<const double, space> gram, block<const double, space> mean_abs = {},
              const whitening_options& options = {})
      : be_(std::move(be)), options_(options), gram_(gram), mean_abs_(mean_abs) {}

  /// A whitening factor that was made elsewhere, as from a streaming QR. Without the Gram itself
  /// its powers are not known.
  calibration(B be, ressvd::whitening<B> factor)
      : be_(std::move(be)),
        whitening_(std::make_shared<const ressvd::whitening<B>>(std::move(factor))) {}

  /// The same statistics for another context, as another thread needs it: nothing is copied, and
  /// factors of the Gram that `other` has made are shared.
  calibration(B be, const calibration& other)
      : be_(std::move(be)),
        options_(other.options_),
        gram_(other.gram_),
        mean_abs_(other.mean_abs_),
        owner_(other.owner_),
        whitening_(other.whitening_),
        tempered_(other.tempered_) {}

  /// n; 0 where nothing is known of X.
  index_t features() const {
    if (!gram_.empty()) return gram_.rows;
    return whitening_ ? whitening_->features() : mean_abs_.rows;
  }
  bool has_gram() const { return !gram_.empty(); }

  /// `reader`, the name of the method, stands in the message when the statistics are not known.
  block<const double, space> gram(const char* reader = "this call") const {
    detail::require(has_gram(), reader, " needs the Gram of the calibration inputs");
    return gram_;
  }
  block<const double, space> mean_abs(const char* reader = "this call") const {
    detail::require(!mean_abs_.empty(), reader,
                    " needs the channel means of the calibration "
                    "inputs");
    return mean_abs_;
  }

  /// A factor of the Gram itself.
  const ressvd::whitening<B>& whitening(const char* reader = "this call") {
    detail::require(whitening_ || has_gram(), reader,
                    " needs the Gram of the calibration inputs, or a whitening factor of it");
    used_ = shared_whitening()->report;
    return *whitening_;
  }
  /// A factor of the Gram's power p (tempered whitening). The last power asked for is kept.
  const ressvd::whitening<B>& whitening_power(double power, const char* reader = "this call") {
    if (!tempered_ || tempered_->report.power != power) {
      tempered_ =
          std::make_shared<const ressvd::whitening<B>>(whiten_power(be_, gram(reader), power));
    }
    used_ = tempered_->report;
    return *tempered_;
  }

  /// Makes what the method needs of X now, so that copies for other contexts share it.
  template <class M>
  void prepare(const M& method) {
    if constexpr (requires { method.prepare(*this); }) method.prepare(*this);
    shared_whitening();
  }

  /// Factors W once, for all of `ranks` (in any order; at least one).
  template <class M>
  requires method_on<M, B> factored_matrix<B> factor(std::shared_ptr<const weight<B>> w,
                                                     const M& method, std::vector<index_t> ranks) {
    const detail::stopwatch watch;
    check(*w, ranks);
    const auto plan = detail::residual_of(method);
    index_t first = 0; // the largest rank of the first stage
    for (const index_t rank : ranks)
      first = (std::max)(first, plan ? first_rank(*w, *plan, rank) : rank);
    used_.reset();
    auto basis = method.basis(be_, *w, *this, first);
    const auto left = plan ? detail::residual_metric_of(be_, *w, method) : nullptr;
    factored_matrix<B> result(be_, std::move(w), std::move(basis), shared_whitening(), used_);
    if (plan) result.compensate(*plan, std::move(ranks), left);
    result.seconds = watch.seconds();
    return result;
  }
  template <class M>
  requires method_on<M, B> factored_matrix<B> factor(weight<B> w, const M& method,
                                                     std::vector<index_t> ranks) {
    return factor(std::make_shared<const weight<B>>(std::move(w)), method, std::move(ranks));
  }
  template <readable_matrix<space> W, class M>
  requires method_on<M, B> factored_matrix<B> factor(const W& w, const M& method,
                                                     std::vector<index_t> ranks) {
    return factor(weight<B>(be_, w), method, std::move(ranks));
  }

  /// Factors W and cuts it at one rank. A target that keeps W dense factors nothing.
  template <class M>
  requires method_on<M, B> compressed_matrix<B> compress(weight<B> w, const M& method,
                                                         const rank_target& target) {
    const rank_choice choice = target.choose(w.rows(), w.cols());
    if (choice.dense) {
      check_channels(w);
      method_report report{.rows = w.rows(), .cols = w.cols(), .choice = choice};
      if (whitening_ || has_gram()) report.activation_loss = loss{};
      return {.factors = {}, .report = std::move(report)};
    }
    return factor(std::move(w), method, {choice.rank}).at(choice);
  }
  template <readable_matrix<space> W, class M>
  requires method_on<M, B> compressed_matrix<B> compress(const W& w, const M& method,
                                                         const rank_target& target) {
    return compress(weight<B>(be_, w), method, target);
  }

 private:
  static index_t first_rank(const weight<B>& w, const residual_plan& plan, index_t rank) {
    residual_options options = plan.options;
    options.rank = rank;
    return intermediate_rank(w.rows(), w.cols(), options);
  }

  void check_channels(const weight<B>& w) const {
    detail::require(features() == 0 || features() == w.cols(), "the calibration is of ", features(),
                    " channels, W (", w.rows(), " x ", w.cols(), ") reads ", w.cols());
  }
  void check(const weight<B>& w, const std::vector<index_t>& ranks) const {
    check_channels(w);
    const index_t largest = (std::min)(w.rows(), w.cols());
    detail::require(!ranks.empty(), "no ranks to factor W (", w.rows(), " x ", w.cols(), ") for");
    for (const index_t rank : ranks) {
      detail::require(rank >= 1 && rank <= largest, "rank ", rank, " of a ", w.rows(), " x ",
                      w.cols(), " matrix is outside [1, ", largest, "]");
    }
  }

  /// Null where the Gram is not known.
  std::shared_ptr<const ressvd::whitening<B>> shared_whitening() {
    if (!whitening_ && has_gram()) {
      whitening_ = std::make_shared<const ressvd::whitening<B>>(whiten(be_, gram_, options_));
    }
    return whitening_;
  }

  B be_;
  whitening_options options_;
  block<const double, space> gram_;
  block<const double, space> mean_abs_;
  std::shared_ptr<const void> owner_; ///< of both, where they were taken over
  std::shared_ptr<const ressvd::whitening<B>> whitening_;
  std::shared_ptr<const ressvd::whitening<B>> tempered_;
  std::optional<whitening_report> used_; ///< by the method that runs
};

} // namespace v0
} // namespace ressvd
