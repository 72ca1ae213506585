// SPDX-License-Identifier: Apache-2.0
//
// One matrix of a rank allocation as a curve: what each choice costs and loses.
//
// The low-rank choices, ranks lowest, lowest + q, …, highest, lie on a convex curve of loss over
// parameters, because the energies descend. The dense choice is one more point, far to the right.
// Of the lower convex hull of all of them the low-rank part reaches to a rank called the knee; from
// there the tangent goes straight to the dense point. The knee is where the next rank saves less
// per parameter than the jump to dense does, c T(r) / (mn − r(m+n)) with T(r) = Σ_{i>r} σ²_i.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "ressvd/layer_ratio/allocation_problem.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

class loss_curve {
 public:
  /// `matrix` has passed check_matrix. Reads the spectrum from its end to the knee.
  loss_curve(const allocation_matrix& matrix, double max_rank_share)
      : energies_{matrix.energies},
        sensitivity_{matrix.sensitivity},
        step_{matrix.rank_multiple},
        rank_cost_{matrix.rows + matrix.cols},
        dense_cost_{matrix.rows * matrix.cols},
        full_rank_{(std::min)(matrix.rows, matrix.cols)},
        saving_per_energy_{matrix.sensitivity / (static_cast<double>(matrix.rank_multiple) *
                                                 static_cast<double>(matrix.rows + matrix.cols))},
        may_be_dense_{matrix.stored != storage::low_rank} {
    const double alpha = break_even_rank(matrix.rows, matrix.cols);
    const index_t usable = (std::min)(
        {matrix.max_rank, static_cast<index_t>(energies_.size()),
         largest_saving_rank(matrix.rows, matrix.cols),
         round_with_slack(max_rank_share * alpha, ratio_epsilon * alpha, rounding::down)});
    lowest_ = (matrix.min_rank - 1) / step_ * step_ + step_;
    highest_ = usable / step_ * step_;
    if (pinned_dense(matrix)) highest_ = 0;
    knee_ = highest_;
    if (may_be_dense_ && has_factors()) find_knee(matrix.tail_energy);
  }

  bool has_factors() const { return lowest_ <= highest_; }
  bool may_be_dense() const { return may_be_dense_; }
  bool has_choice() const { return has_factors() || may_be_dense_; }

  bool allows(const rank_choice& stored) const {
    if (stored.dense) return may_be_dense_;
    return stored.rank >= lowest_ && stored.rank <= highest_ && stored.rank % step_ == 0;
  }

  index_t lowest() const { return lowest_; }
  index_t highest() const { return highest_; }
  index_t step() const { return step_; }

  index_t cost(const rank_choice& stored) const {
    return stored.dense ? dense_cost_ : stored.rank * rank_cost_;
  }

  /// The choice of the fewest parameters.
  rank_choice cheapest() const { return has_factors() ? factors(lowest_) : dense(); }

  /// The choice that minimises loss + price · cost; of several the cheapest.
  rank_choice choice_at(double price) const {
    if (!has_factors() || (may_be_dense_ && dense_saving_ > price)) return dense();
    index_t below = lowest_; // paid for at this price, or the lowest there is
    index_t above = knee_ + step_;
    while (above - below > step_) {
      const index_t middle = below + (above - below) / (2 * step_) * step_;
      (saving(middle) > price ? below : above) = middle;
    }
    return factors(below);
  }

  /// The step after `stored` when steps are taken in the order of what they save per parameter;
  /// the jump to dense is left out when it is `refused`. Empty when there is none.
  struct next_step {
    rank_choice to;
    double saving = 0; ///< loss per parameter; 0 where the step saves nothing or does not exist
  };
  next_step next(const rank_choice& stored, bool refused) const {
    if (stored.dense) return {};
    const bool jump = may_be_dense_ && !refused;
    if (jump && stored.rank >= knee_) return {dense(), dense_saving_};
    if (stored.rank + step_ > highest_) return {};
    return {factors(stored.rank + step_), saving(stored.rank + step_)};
  }

  /// c (σ²_{r−q+1} + … + σ²_r) / (q(m+n)): what the step up to rank r saves per parameter.
  /// Does not grow with r, in floating point as well.
  double saving(index_t rank) const {
    double energy = 0;
    for (index_t i = rank - step_; i < rank; ++i)
      energy += energies_[static_cast<std::size_t>(i)];
    return energy * saving_per_energy_;
  }

  /// The same curve with one choice taken away.
  loss_curve without_dense() const {
    loss_curve curve = *this;
    curve.may_be_dense_ = false;
    curve.knee_ = highest_;
    return curve;
  }
  loss_curve without_factors() const {
    loss_curve curve = *this;
    curve.highest_ = 0;
    return curve;
  }

 private:
  rank_choice factors(index_t rank) const { return {.rank = rank, .dense = false}; }
  rank_choice dense() const { return {.rank = full_rank_, .dense = true}; }

  void find_knee(double tail_energy) {
    double tail = truncated_energy(energies_, highest_, tail_energy); // T(knee)
    while (knee_ > lowest_) {
      double energy = 0;
      for (index_t i = knee_; i > knee_ - step_; --i)
        energy += energies_[static_cast<std::size_t>(i - 1)];
      const index_t jump = dense_cost_ - (knee_ - step_) * rank_cost_;
      // Stop where the step up to the knee saves more than the jump from below it would.
      if (energy * static_cast<double>(jump) >
          (tail + energy) * static_cast<double>(step_ * rank_cost_))
        break;
      tail += energy;
      knee_ -= step_;
    }
    dense_saving_ = sensitivity_ * tail / static_cast<double>(dense_cost_ - knee_ * rank_cost_);
  }

  std::span<const double> energies_;
  double sensitivity_;
  index_t step_;
  index_t rank_cost_;
  index_t dense_cost_;
  index_t full_rank_;
  double saving_per_energy_; ///< c / (q(m+n))
  bool may_be_dense_;
  index_t lowest_ = 0;
  index_t highest_ = 0;
  index_t knee_ = 0;
  double dense_saving_ = 0;
};

} // namespace detail
} // namespace v0
} // namespace ressvd
