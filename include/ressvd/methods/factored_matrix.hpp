// SPDX-License-Identifier: Apache-2.0
//
// A weight matrix that was factored once and answers for any rank: its two factors, both losses,
// its singular values. It holds nested factors U: m × R and V: R × n, whose leading r columns and
// rows are the answer at rank r ≤ R, and, for a method with a residual stage, the vectors of that
// stage for each rank that was prepared.
//
//   at          copies of mr + rn scalars; a residual stage 2mn·r_r flops more, or where it was not
//               prepared the cost of residual_compensation
//   losses      known for all ranks when the matrix is made (residual/losses.hpp); no cost. With a
//               residual stage they are differences: good to eps of the loss at the intermediate
//               rank
//   memory      (m + n)R scalars, W itself (mn), m·r_r for each prepared stage, (m + n)·r_r with
//               metrics on both sides, 16R bytes
//               for losses; the whitening factor is shared with the calibration and other matrices
//   blocks      yes
//   errors      std::invalid_argument for a rank that the factors do not reach
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/stopwatch.hpp"
#include "ressvd/methods/factored_state.hpp"
#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {

template <backend B>
class factored_matrix {
 public:
  using scalar = typename B::scalar;
  using space = typename B::space;
  using state_type = factored_state<scalar>;

  /// From a basis of `w`, in a metric that came about as `metric_report` says. `reference` is a
  /// whitening factor of the Gram of W's input, or null: then activation losses are not known.
  /// calibration::factor is how a caller comes here.
  factored_matrix(B be, std::shared_ptr<const weight<B>> w, svd_basis<B> basis,
                  std::shared_ptr<const whitening<B>> reference,
                  std::optional<whitening_report> metric_report = std::nullopt)
      : be_(std::move(be)),
        w_(std::move(w)),
        reference_(std::move(reference)),
        whitening_(std::move(metric_report)),
        acts_(basis.acts),
        rank_(basis.rank()),
        nested_(slice(be_, *w_, basis, basis.rank())),
        singular_values_(std::move(basis.singular_values)),
        svd_(std::move(basis.report)) {
    weight_losses_ = truncation_losses(be_, *w_, nested_.u.ref(), nested_.v.ref(), kind());
    if (reference_) {
      if (!whitening_) whitening_ = reference_->report;
      activation_losses_ = truncation_losses(be_, *w_, nested_.u.ref(), nested_.v.ref(), kind(),
                                             reference_->metric());
      for (std::size_t r = 0; r < activation_losses_.size(); ++r)
        activation_losses_[r] = undamped(activation_losses_[r], weight_losses_[r]);
    }
  }

  index_t rows() const { return w_->rows(); }
  index_t cols() const { return w_->cols(); }
  /// The largest rank that can be cut without a residual stage.
  index_t rank() const { return rank_; }
  /// All singular values of the weighted matrix, descending (see svd_basis).
  const std::vector<double>& singular_values() const { return singular_values_; }
  const weight<B>& original() const { return *w_; }
  const B& handle() const { return be_; }
  const svd_report& svd() const { return svd_; }

  /// Gives the matrix a residual stage, and prepares it for these ranks: many ranks of one matrix
  /// cost a fraction of each alone (residual_stages). A method with metrics on both sides keeps
  /// `left`, that of the outputs, in the second stage: each rank costs a truncated SVD then.
  void compensate(const residual_plan& plan, std::vector<index_t> ranks,
                  std::shared_ptr<const ressvd::whitening<B>> left = nullptr) {
    detail::require(acts_ == projection::left || (acts_ == projection::both && left),
                    "a residual stage needs a method with the identity as left metric, or that "
                    "metric");
    plan_ = plan;
    left_ = std::move(left);
    if (ranks.size() == 1 || acts_ == projection::both) {
      for (const index_t rank : ranks)
        stages_.push_back(single_stage(rank));
      return;
    }
    std::ranges::sort(ranks, std::ranges::greater{}); // the fast order
    const auto stage1 = first_stage();
    residual_stages<B> stages(be_, *w_, stage1, second_metric());
    for (const index_t rank : ranks)
      stages_.push_back(stage_of(rank, stages.at(plan_at(rank))));
  }

  /// The factors at a rank, or W kept dense.
  compressed_matrix<B> at(const rank_choice& choice) const {
    const detail::stopwatch watch;
    compressed_matrix<B> result;
    method_report& report = result.report;
    report = {.rows = rows(), .cols = cols(), .choice = choice, .svd = svd_};
    report.compression_ratio = achieved_ratio(rows(), cols(), choice);
    report.whitening = whitening_;
    if (choice.dense) {
      report.choice.rank = (std::min)(rows(), cols());
      report.activation_loss = activation_loss(choice);
      return result;
    }
    const auto stage = stage_for(choice.rank);
    report.intermediate_rank = stage ? stage->intermediate_rank : choice.rank;
    report.weight_loss = detail::weight_loss_of(weight_losses_, choice.rank, stage.get());
    report.activation_loss =
        detail::activation_loss_of(activation_losses_, choice.rank, stage.get());
    if (!plan_) report.truncation_loss = detail::truncation_loss(singular_values_, choice.rank);
    result.factors = cut(choice.rank, stage);
    report.seconds = seconds + watch.seconds();
    return result;
  }
  compressed_matrix<B> at(const rank_target& target) const {
    return at(target.choose(rows(), cols()));
  }

  /// ‖W−Ŵ‖_F² at a rank.
  loss weight_loss(const rank_choice& choice) const {
    if (choice.dense) return {};
    return detail::weight_loss_of(weight_losses_, choice.rank, stage_for(choice.rank).get());
  }
  /// ‖(W−Ŵ)X‖_F² at a rank, where it is known.
  std::optional<loss> activation_loss(const rank_choice& choice) const {
    if (choice.dense && !activation_losses_.empty()) return loss{};
    if (choice.dense) return std::nullopt;
    return detail::activation_loss_of(activation_losses_, choice.rank,
                                      stage_for(choice.rank).get());
  }

  /// The report's losses of other factors of the same matrix, formed from their residual.
  void measure(const low_rank<scalar, space>& pair, method_report& report) const {
    report.truncation_loss.reset();
    report.weight_loss = weighted_loss(be_, *w_, pair);
    report.activation_loss.reset();
    if (!reference_) return;
    const double lost = undamped(weighted_loss(be_, *w_, pair, reference_->metric()).absolute,
                                 report.weight_loss.absolute);
    const double total = activation_losses_.front();
    report.activation_loss = {lost, total > 0 ? lost / total : 0};
  }

  double seconds = 0; ///< that factoring took

  /// Everything but W and the whitening factor, on the host.
  state_type state() const {
    state_type s;
    s.rows = rows();
    s.cols = cols();
    s.rank = rank();
    s.acts = acts_;
    s.q = acts_ == projection::right ? to_host(nested_.v.transposed()) : to_host(nested_.u);
    if (acts_ == projection::both) s.p = to_host(nested_.v);
    s.singular_values = singular_values_;
    s.weight_losses = weight_losses_;
    s.activation_losses = activation_losses_;
    for (const stage_type& stage : stages_) {
      s.stages.push_back({stage.rank, stage.intermediate_rank, to_host(stage.q), to_host(stage.p),
                          stage.weight_energy, stage.activation_energy});
    }
    s.residual = plan_;
    s.whitening = whitening_;
    s.svd = svd_;
    s.seconds = seconds;
    return s;
  }

  /// The same matrix from its state and W; nothing is factored again. A rank whose residual stage
  /// was not prepared is served, without its activation loss, unless it needs the left metric.
  /// Throws std::invalid_argument for a state that does not fit W or itself.
  static factored_matrix from_state(B be, std::shared_ptr<const weight<B>> w, const state_type& s) {
    return factored_matrix(std::move(be), std::move(w), s);
  }

 private:
  using stage_type = residual_stage<matrix<scalar, space>>;

  factored_matrix(B be, std::shared_ptr<const weight<B>> w, const state_type& s)
      : seconds(s.seconds),
        be_(std::move(be)),
        w_(std::move(w)),
        whitening_(s.whitening),
        acts_(s.acts),
        rank_(s.rank),
        singular_values_(s.singular_values),
        weight_losses_(s.weight_losses),
        activation_losses_(s.activation_losses),
        svd_(s.svd),
        plan_(s.residual) {
    detail::require(s.rows == w_->rows() && s.cols == w_->cols(), "the factored state is of a ",
                    s.rows, " x ", s.cols, " matrix, W is ", w_->rows(), " x ", w_->cols());
    const auto losses = static_cast<std::size_t>(s.rank) + 1;
    detail::require(s.rank >= 1 && s.weight_losses.size() == losses &&
                        (s.activation_losses.empty() || s.activation_losses.size() == losses),
                    "the factored state of rank ", s.rank, " has ", s.weight_losses.size(), " and ",
                    s.activation_losses.size(), " losses");
    // The other factor of a projection follows from W, as far as it is asked for.
    auto q = to_device(s.q, acts_ == projection::right ? s.cols : s.rows, rank_);
    if (acts_ == projection::right) {
      nested_.v = be_.allocate(rank_, s.cols);
      be_.copy(q.transposed(), nested_.v.ref());
    } else {
      nested_.u = std::move(q);
    }
    if (acts_ == projection::both) nested_.v = to_device(s.p, rank_, s.cols);
    for (const auto& stage : s.stages) {
      const index_t rest = stage.rank - stage.intermediate_rank;
      stages_.push_back({stage.rank, stage.intermediate_rank, to_device(stage.q, s.rows, rest),
                         to_device(stage.p, rest, stage.p.empty() ? 0 : s.cols),
                         stage.weight_energy, stage.activation_energy});
    }
  }

  /// A loss or an energy under G from those under G + δI and under I. Nothing is lost of X = 0.
  double undamped(double damped, double plain) const {
    if (reference_->report.path == whitening_path::plain) return 0;
    return (std::max)(damped - reference_->report.damping * plain, 0.0);
  }

  nesting kind() const {
    return acts_ == projection::left ? nesting::projection : nesting::general;
  }

  /// The first stage as residual compensation takes it.
  svd_basis<B> first_stage() const {
    svd_basis<B> basis;
    basis.q = be_.allocate(rows(), rank());
    be_.copy(nested_.u, basis.q.ref());
    return basis;
  }

  residual_options plan_at(index_t rank) const {
    residual_options options = plan_->options;
    options.rank = rank;
    return options;
  }

  metric<space> second_metric() const {
    detail::require(!plan_->whitened || reference_ != nullptr,
                    "a residual stage in the whitened metric needs the whitening factor");
    return plan_->whitened ? reference_->metric() : metric<space>{};
  }

  stage_type single_stage(index_t rank) const {
    if (acts_ == projection::both) return two_sided_stage(rank);
    return stage_of(rank,
                    residual_compensation(be_, *w_, first_stage(), plan_at(rank), second_metric()));
  }

  /// What the first stage leaves, truncated in the metric of the outputs.
  stage_type two_sided_stage(index_t rank) const {
    detail::require(left_ != nullptr, "the residual stage of rank ", rank,
                    " was not prepared, and the metric of the outputs is not known");
    const auto options = plan_at(rank);
    const index_t leading = detail::intermediate_rank_within(rank_, rows(), cols(), options);
    stage_type stage{.rank = rank, .intermediate_rank = leading};
    if (reference_) stage.activation_energy = 0;
    if (leading == rank) return stage;
    const auto u = nested_.u.ref().left_cols(leading);
    const auto v = nested_.v.ref().top_rows(leading);
    auto left_over = be_.allocate(rows(), cols());
    be_.copy(w_->values, left_over.ref());
    be_.gemm(op::none, op::none, static_cast<scalar>(-1 / w_->unit), u, v, scalar{1},
             left_over.ref());
    weight<B> residual(be_, left_over, "the residual of W");
    residual.unit *= w_->unit;
    const auto basis =
        truncated_svd(be_, residual, left_->metric(), second_metric(), rank - leading, options.svd);
    auto pair = slice(be_, residual, basis, rank - leading);
    const auto before = static_cast<std::size_t>(leading);
    const double lost = weighted_loss(be_, residual, pair).absolute;
    stage.weight_energy = weight_losses_[before] - lost;
    if (reference_) {
      const double damped = weighted_loss(be_, residual, pair, reference_->metric()).absolute;
      stage.activation_energy = activation_losses_[before] - undamped(damped, lost);
    }
    stage.q = std::move(pair.u);
    stage.p = std::move(pair.v);
    return stage;
  }

  /// The stage from its basis, with what it takes off the losses.
  stage_type stage_of(index_t rank, const compensated_basis<B>& both) const {
    const index_t leading = both.intermediate_rank;
    const index_t rest = rank - leading;
    stage_type stage{.rank = rank, .intermediate_rank = leading, .q = be_.allocate(rows(), rest)};
    if (reference_) stage.activation_energy = 0;
    if (rest == 0) return stage;
    be_.copy(both.q.ref().col_range(leading, rest), stage.q.ref());
    const auto image = project_on(stage.q);
    const auto sum = [](const std::vector<double>& energies) {
      double total = 0;
      for (const double e : energies)
        total += e;
      return total;
    };
    const auto energy = [&](const metric<space>& m) {
      return sum(captured_energies(be_, *w_, stage.q.ref(), image.ref(), nesting::projection, m));
    };
    stage.weight_energy = energy({});
    if (reference_) {
      stage.activation_energy = undamped(energy(reference_->metric()), stage.weight_energy);
    }
    return stage;
  }

  /// qᵀW.
  matrix<scalar, space> project_on(const matrix<scalar, space>& q) const {
    auto image = be_.allocate(q.cols(), cols());
    be_.gemm(op::transpose, op::none, static_cast<scalar>(w_->unit), q, w_->values, scalar{0},
             image.ref());
    return image;
  }

  /// The residual stage of a rank where the method has one: a prepared one, or one made now.
  std::shared_ptr<const stage_type> stage_for(index_t rank) const {
    if (!plan_) {
      detail::require(rank >= 1 && rank <= this->rank(), "rank ", rank,
                      " cannot be cut from factors of rank ", this->rank());
      return nullptr;
    }
    if (const stage_type* stage = detail::find_stage(stages_, rank)) {
      return {std::shared_ptr<void>(), stage};
    }
    return std::make_shared<const stage_type>(single_stage(rank));
  }

  using stage_pointer = std::shared_ptr<const stage_type>;

  low_rank<scalar, space> cut(index_t rank, const stage_pointer& stage) const {
    const index_t leading = stage ? stage->intermediate_rank : rank;
    low_rank<scalar, space> pair{be_.allocate(rows(), rank), be_.allocate(rank, cols())};
    const auto u = pair.u.ref().left_cols(leading);
    const auto v = pair.v.ref().top_rows(leading);
    const auto unit = static_cast<scalar>(w_->unit);
    if (!nested_.u.empty()) be_.copy(nested_.u.ref().left_cols(leading), u);
    if (!nested_.v.empty()) be_.copy(nested_.v.ref().top_rows(leading), v);
    if (nested_.u.empty()) be_.gemm(op::none, op::transpose, unit, w_->values, v, scalar{0}, u);
    if (nested_.v.empty()) be_.gemm(op::transpose, op::none, unit, u, w_->values, scalar{0}, v);
    if (leading < rank) {
      const auto rest = pair.v.ref().part(leading, 0, rank - leading, cols());
      be_.copy(stage->q, pair.u.ref().col_range(leading, rank - leading));
      if (stage->p.empty())
        be_.gemm(op::transpose, op::none, unit, stage->q, w_->values, scalar{0}, rest);
      else
        be_.copy(stage->p, rest);
    }
    return pair;
  }

  template <readable_matrix<space> M>
  std::vector<scalar> to_host(const M& m) const {
    const auto view = const_view(m);
    std::vector<scalar> host(static_cast<std::size_t>(view.size()));
    auto frame = be_.frame();
    const auto packed = be_.scratch(view.rows, view.cols);
    be_.copy(view, packed);
    be_.download(packed, {host.data(), view.rows, view.cols, view.rows});
    return host;
  }

  matrix<scalar, space> to_device(const std::vector<scalar>& host, index_t rows, index_t cols) {
    detail::require(static_cast<index_t>(host.size()) == rows * cols,
                    "the factored state has a matrix of ", host.size(), " elements, expected ",
                    rows, " x ", cols);
    auto m = be_.allocate(rows, cols);
    be_.upload({host.data(), rows, cols, rows}, m.ref());
    return m;
  }

  mutable B be_; // a handle on a context; reading a factored matrix uses its scratch
  std::shared_ptr<const weight<B>> w_;
  std::shared_ptr<const whitening<B>> reference_;
  std::shared_ptr<const whitening<B>> left_; ///< of the outputs, for residual stages on both sides
  std::optional<whitening_report> whitening_;
  projection acts_;
  index_t rank_;
  low_rank<scalar, space> nested_; ///< one of the two may be empty: it follows from W
  std::vector<double> singular_values_;
  std::vector<double> weight_losses_;
  std::vector<double> activation_losses_;
  svd_report svd_;
  std::optional<residual_plan> plan_;
  std::vector<stage_type> stages_;
};

} // namespace v0
} // namespace ressvd
